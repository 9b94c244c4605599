// One struct per kernel: its arguments and its computation for some elements. Host and device run
// the same source; the loops are in loop_cpu.h and loop_cuda.cuh.
//
// T is the type of the state and of all arithmetic, N the storage type of network outputs.
// scalars() reads a call's scalars, and apply(at, scalars) works on the elements `at`: a quad on a
// GPU (quad.h), a vector on a CPU (block.h). Bodies that draw noise get it as a third argument, and
// draws() says whether they need it. A body is elementwise (apply() returns nothing) or a
// reduction: apply() returns the Terms of its elements, part() adds those of a quad, and finish()
// receives the sum of a sample's parts.
#pragma once

#include "adjoint.h"
#include "draws.h"
#include "steps.h"

namespace diffflow {

/// Whether apply() takes noise as a third argument.
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
DF_HD auto run_body(const Body& body, const Place& at) {
  if constexpr (HasNoise<Body>::value) {
    using T = typename TypeOf<Body>::type;
    return body.apply(at, body.scalars(), body.draws() ? normals<T>(body.noise, at) : Quad<T>{});
  } else {
    return body.apply(at, body.scalars());
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
