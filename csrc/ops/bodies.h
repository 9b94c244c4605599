// One struct per kernel: its arguments and its computation for one quad. Host and device run the
// same source; the loops are in loop_cpu.h and loop_cuda.cuh.
//
// T is the type of the state and of all arithmetic, N the storage type of network outputs.
// A body is elementwise (operator() returns nothing) or a reduction: operator() returns the quad's
// part of a per-sample sum and finish() receives the sum. Elementwise bodies that draw noise have
// apply(at, normals), and draws() says whether they need it: a CPU draws many quads at a time.
#pragma once

#include "adjoint.h"
#include "draws.h"
#include "steps.h"

namespace diffflow {

/// Whether a body draws noise of its own: then it has apply().
template <class Body, class = void>
struct HasNoise : std::false_type {};
template <class Body>
struct HasNoise<Body, std::void_t<decltype(&Body::draws)>> : std::true_type {};

/// The type of a body's arithmetic.
template <class Body>
struct TypeOf;
template <template <typename...> class Body, typename T, typename... Rest>
struct TypeOf<Body<T, Rest...>> {
  using type = T;
};

/// Runs a body on one quad.
template <class Body>
DF_HD void run_body(const Body& body, const Place& at) {
  if constexpr (HasNoise<Body>::value) {
    using T = typename TypeOf<Body>::type;
    body.apply(at, body.draws() ? normals<T>(body.noise, at) : Quad<T>{});
  } else {
    body(at);
  }
}

// The closed lists of what a build contains. X receives a complete type.
#define DF_FOR_STATE_AND_NET(X, BODY) \
  X(BODY<float, float>) X(BODY<float, BFloat16>) X(BODY<float, Half>) X(BODY<double, double>)
#define DF_FOR_STATE(X, BODY) X(BODY<float>) X(BODY<double>)

#define DF_FOR_ELEMENTWISE(X)               \
  X(PhiloxBlocks)                           \
  DF_FOR_STATE(X, Normal)                   \
  DF_FOR_STATE(X, Perturb)                  \
  DF_FOR_STATE_AND_NET(X, EmStep)           \
  DF_FOR_STATE_AND_NET(X, BackwardResidual) \
  DF_FOR_STATE_AND_NET(X, ResidualVjp)      \
  DF_FOR_STATE_AND_NET(X, ReverseStep)      \
  DF_FOR_STATE_AND_NET(X, AffineStep)       \
  DF_FOR_STATE_AND_NET(X, AdjointStepFixedG)

#define DF_FOR_REDUCTIONS(X)               \
  DF_FOR_STATE(X, NoiseDot)                \
  DF_FOR_STATE(X, NoiseEnergy)             \
  DF_FOR_STATE_AND_NET(X, ResidualCost)    \
  DF_FOR_STATE_AND_NET(X, ResidualCostVjp) \
  DF_FOR_STATE_AND_NET(X, AdjointStepLearnedG)

}  // namespace diffflow
