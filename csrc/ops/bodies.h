// One struct per kernel: its arguments, and what it does with one quad. Host and device run the
// same source; the loops around it are in loop_cpu.h and loop_cuda.cuh.
//
// T is the type of the state and of all arithmetic, N the storage type of network outputs.
// A body is elementwise (operator() returns nothing) or a reduction: operator() returns the quad's
// part of a per-sample sum and finish() receives the sum. Elementwise bodies that draw noise have
// apply(at, normals), and draws() says whether they want any: a CPU draws many quads at a time.
#pragma once

#include "../math/perturb.h"
#include "noise.h"
#include "scalars.h"

namespace diffflow {

/// The generator itself, for known-answer tests: four words for every counter of four words and key
/// of two. Run on {1, 4 * counters}; words lie in int64.
struct PhiloxBlocks {
  const int64_t *counter, *key;
  int64_t* words;

  DF_HD void operator()(const Place& at) const {
    const int64_t* in = counter + at.offset;
    const int64_t* k = key + 2 * at.quad;
    const PhiloxWords out =
        philox4x32_10({{static_cast<uint32_t>(in[0]), static_cast<uint32_t>(in[1]),
                        static_cast<uint32_t>(in[2]), static_cast<uint32_t>(in[3])}},
                      {static_cast<uint32_t>(k[0]), static_cast<uint32_t>(k[1])});
    for (int i = 0; i < 4; ++i) words[at.offset + i] = out.word[i];
  }
};

/// out = standard normals. The only kernel that writes noise to memory.
template <typename T>
struct Normal {
  T* out;
  NoiseSource noise;

  DF_HD bool draws() const { return true; }
  DF_HD void apply(const Place& at, const Quad<T>& eps) const { store(out, at, eps); }
};

/// x_next = x + f dt + g sqrt(dt) delta_f.
template <typename T, typename N>
struct EmStep {
  const T* x;
  const N* f;
  T* x_next;
  StepSource<T> step;
  NoiseSource noise;

  DF_HD bool draws() const { return true; }
  DF_HD void apply(const Place& at, const Quad<T>& eps) const {
    const StepScalars<T> scalars = step.get();
    const Quad<T> state = load<T>(x, at), drift = load<T>(f, at);
    Quad<T> out;
    for (int i = 0; i < 4; ++i) {
      out.value[i] = em_step(state.value[i], drift.value[i], eps.value[i], scalars);
    }
    store(x_next, at, out);
  }
};

/// The four tensors of a residual. Step: dt_i and g_{i+1}.
template <typename T, typename N>
struct ResidualInputs {
  const T *x, *x_next;
  const N *f_next, *s_next;
  StepSource<T> step;
};

template <typename T>
struct ResidualQuad {
  Quad<T> delta_b, s_next;
};

template <typename T, typename N>
DF_HD ResidualQuad<T> residual_at(const ResidualInputs<T, N>& in, const StepScalars<T>& scalars,
                                  const Place& at) {
  const Quad<T> x = load<T>(in.x, at), x_next = load<T>(in.x_next, at);
  const Quad<T> f = load<T>(in.f_next, at), s = load<T>(in.s_next, at);
  ResidualQuad<T> out;
  for (int i = 0; i < 4; ++i) {
    out.delta_b.value[i] =
        backward_residual(x.value[i], x_next.value[i], f.value[i], s.value[i], scalars);
  }
  out.s_next = s;
  return out;
}

/// delta_b of one step.
template <typename T, typename N>
struct BackwardResidual {
  ResidualInputs<T, N> in;
  T* delta_b;

  DF_HD void operator()(const Place& at) const {
    store(delta_b, at, residual_at(in, in.step.get(), at).delta_b);
  }
};

/// cost_b = (previous_b +) 1/2 |delta_b|^2, the residual itself never written.
template <typename T, typename N>
struct ResidualCost {
  using Sum = T;
  ResidualInputs<T, N> in;
  const T* previous;  ///< added to the sum, or null
  T* cost;

  DF_HD T operator()(const Place& at) const {
    const Quad<T> r = residual_at(in, in.step.get(), at).delta_b;
    // Elements past the row's end were loaded as zeros and give a residual of zero.
    const T low = r.value[0] * r.value[0] + r.value[1] * r.value[1];
    const T high = r.value[2] * r.value[2] + r.value[3] * r.value[3];
    return T(0.5) * (low + high);
  }
  DF_HD void finish(int64_t sample, T sum) const {
    cost[sample] = previous != nullptr ? previous[sample] + sum : sum;
  }
};

/// Gradients of sum_e grad delta_b (grad per element) with respect to the four tensors.
template <typename T, typename N>
struct ResidualVjp {
  const T* grad;
  StepSource<T> step;
  T *grad_x, *grad_x_next;
  N *grad_f, *grad_s;

  DF_HD void operator()(const Place& at) const {
    const StepScalars<T> scalars = step.get();
    const Quad<T> g = load<T>(grad, at);
    Quad<T> x, x_next, f, s;
    for (int i = 0; i < 4; ++i) {
      const ResidualGrad<T> part = backward_residual_vjp(g.value[i], scalars);
      x.value[i] = part.x, x_next.value[i] = part.x_next;
      f.value[i] = part.f_next, s.value[i] = part.s_next;
    }
    store(grad_x, at, x), store(grad_x_next, at, x_next);
    store(grad_f, at, f), store(grad_s, at, s);
  }
};

/// Gradients of sum_b grad_b 1/2 |delta_b|^2, with delta_b made again from the inputs. As a
/// reduction it also gives, per sample, the gradient with respect to g.
template <typename T, typename N>
struct ResidualCostVjp {
  using Sum = T;
  ResidualInputs<T, N> in;
  const T* grad;  ///< per sample
  T *grad_x, *grad_x_next;
  N *grad_f, *grad_s;
  T* grad_g;  ///< per sample

  DF_HD T operator()(const Place& at) const {
    const StepScalars<T> scalars = in.step.get();
    const ResidualQuad<T> residual = residual_at(in, scalars, at);
    const T weight = grad[at.sample];
    Quad<T> x, x_next, f, s;
    T sum = T(0);
    for (int i = 0; i < 4; ++i) {
      const T r = residual.delta_b.value[i];
      const ResidualGrad<T> part = backward_residual_vjp(weight * r, scalars);
      x.value[i] = part.x, x_next.value[i] = part.x_next;
      f.value[i] = part.f_next, s.value[i] = part.s_next;
      sum += residual_cost_grad_g(r, residual.s_next.value[i], scalars);
    }
    store(grad_x, at, x), store(grad_x_next, at, x_next);
    store(grad_f, at, f), store(grad_s, at, s);
    return weight * sum;
  }
  DF_HD void finish(int64_t sample, T sum) const { grad_g[sample] = sum; }
};

/// x = x_next - [f - (1 + lambda^2)/2 g^2 s] dt + lambda g sqrt(dt) eps.
template <typename T, typename N>
struct ReverseStep {
  const T* x_next;
  const N *f_next, *s_next;
  T* x;
  StepSource<T> step;
  T stochasticity;
  NoiseSource noise;

  DF_HD bool draws() const { return stochasticity != T(0); }
  DF_HD void apply(const Place& at, const Quad<T>& eps) const {
    const StepScalars<T> scalars = step.get();
    const Quad<T> state = load<T>(x_next, at);
    const Quad<T> f = load<T>(f_next, at), s = load<T>(s_next, at);
    Quad<T> out;
    for (int i = 0; i < 4; ++i) {
      out.value[i] = reverse_step(state.value[i], f.value[i], s.value[i], eps.value[i],
                                  stochasticity, scalars);
    }
    store(x, at, out);
  }
};

/// y = c_x x + c_a a + c_b b + noise z.
template <typename T, typename N>
struct AffineStep {
  const T* x;
  const N *a, *b;  ///< b may be null
  T* y;
  AffineSource<T> factors;
  NoiseSource noise;

  DF_HD bool draws() const { return factors.draws(); }
  DF_HD void apply(const Place& at, const Quad<T>& draw) const {
    const AffineScalars<T> scalars = factors.get();
    const Quad<T> state = load<T>(x, at);
    const Quad<T> first = load<T>(a, at), second = load_or_zero<T>(b, at);
    Quad<T> out;
    for (int i = 0; i < 4; ++i) {
      out.value[i] =
          affine_step(state.value[i], first.value[i], second.value[i], draw.value[i], scalars);
    }
    store(y, at, out);
  }
};

/// x_t = alpha_t x0 + sigma_t eps with alpha_t and sigma_t per sample or common; eps on demand.
template <typename T>
struct Perturb {
  const T* x0;
  const T *alpha_t, *sigma_t;
  int64_t scalar_stride;  ///< 1: one value a sample, 0: one value for all
  T *x_t, *eps;           ///< eps may be null: then the noise is never written
  NoiseSource noise;

  DF_HD bool draws() const { return true; }
  DF_HD void apply(const Place& at, const Quad<T>& draw) const {
    const T alpha = alpha_t[at.sample * scalar_stride], sigma = sigma_t[at.sample * scalar_stride];
    const Quad<T> clean = load<T>(x0, at);
    Quad<T> out;
    for (int i = 0; i < 4; ++i) {
      out.value[i] = perturb(clean.value[i], draw.value[i], alpha, sigma);
    }
    store(x_t, at, out);
    store_if(eps, at, draw);
  }
};

/// dot_b = sum_e v eps, with the noise made again: the gradient of every noise scale.
template <typename T>
struct NoiseDot {
  using Sum = T;
  const T* v;
  T* dot;
  NoiseSource noise;

  DF_HD T operator()(const Place& at) const {
    const Quad<T> a = load<T>(v, at), eps = normals<T>(noise, at);
    return (a.value[0] * eps.value[0] + a.value[1] * eps.value[1]) +
           (a.value[2] * eps.value[2] + a.value[3] * eps.value[3]);
  }
  DF_HD void finish(int64_t sample, T sum) const { dot[sample] = sum; }
};

/// energy_b = (previous_b +) 1/2 |eps|^2 of the draws that a step used, without writing them.
template <typename T>
struct NoiseEnergy {
  using Sum = T;
  const T* previous;
  T* energy;
  NoiseSource noise;

  DF_HD T operator()(const Place& at) const {
    Quad<T> eps = normals<T>(noise, at);
    T sum = T(0);
    for (int i = 0; i < 4; ++i) sum += i < at.count ? eps.value[i] * eps.value[i] : T(0);
    return T(0.5) * sum;
  }
  DF_HD void finish(int64_t sample, T sum) const {
    energy[sample] = previous != nullptr ? previous[sample] + sum : sum;
  }
};

/// The adjoint at one state k of the trajectory (see adjoint.py for the derivation):
/// residual of step k, cotangents for both networks, and the local part of dL/dx_k, in one pass.
///
/// At k = 0 `x_prev` and `s` are null, at k = N `total_next` is null. total_next = dL/dx_{k+1}
/// comes in up to three parts, so that the sum over the networks' contributions needs no pass of
/// its own.
template <typename T, typename N>
struct AdjointStep {
  using Sum = T;
  const T *x_prev, *x;  ///< x_{k-1}, x_k
  const N *f, *s;       ///< f(t_k, x_k), s(t_k, x_k)
  const T* local_next;  ///< parts of dL/dx_{k+1}
  const T *vjp_f_next, *vjp_s_next;
  const T* carry_next;  ///< q_{k+1}, null at k = N
  const T* weight;      ///< per sample, or null: weight_for_all
  T weight_for_all;
  N *cotangent_f, *cotangent_s;  ///< cotangent_s is null at k = 0
  T *local, *carry;              ///< carry is null at k = 0
  T* grad_g;                     ///< per sample, written by the reduction only
  Scalar<T> dt, dt_next, g;      ///< dt_k, dt_{k+1}, g_k
  NoiseSource noise;             ///< delta_f of the forward step k -> k+1

  DF_HD bool has_step() const { return x_prev != nullptr; }
  DF_HD bool has_next() const { return local_next != nullptr; }

  DF_HD Quad<T> total_next(const Place& at) const {
    const Quad<T> a = load_or_zero<T>(local_next, at), b = load_or_zero<T>(vjp_f_next, at),
                  c = load_or_zero<T>(vjp_s_next, at);
    Quad<T> out;
    for (int i = 0; i < 4; ++i) out.value[i] = a.value[i] + b.value[i] + c.value[i];
    return out;
  }

  /// Writes all tensors of one quad; returns its part of dL/dg_k where that is wanted.
  DF_HD T write(const Place& at, bool want_grad_g) const {
    const StepSource<T> source = {dt, g};
    const StepScalars<T> scalars = source.get();
    const T length_next = has_next() ? dt_next.get() : T(0);
    const T c = weight != nullptr ? weight[at.sample] : weight_for_all;
    const Quad<T> total = total_next(at), q_next = load_or_zero<T>(carry_next, at);
    const ResidualInputs<T, N> in = {x_prev, x, f, s, source};
    const ResidualQuad<T> residual = has_step() ? residual_at(in, scalars, at) : ResidualQuad<T>{};
    const T scale = c / (scalars.g * scalars.sqrt_dt);
    Quad<T> u, w, rest, q;
    T sum = T(0);
    for (int i = 0; i < 4; ++i) {
      q.value[i] = has_step() ? scale * residual.delta_b.value[i] : T(0);
      const AdjointTerms<T> terms = adjoint_terms(q.value[i], q_next.value[i], total.value[i],
                                                  scalars.dt, length_next, scalars.g);
      u.value[i] = terms.cotangent_f, w.value[i] = terms.cotangent_s;
      rest.value[i] = terms.local;
      sum += c * residual_cost_grad_g(residual.delta_b.value[i], residual.s_next.value[i], scalars);
    }
    if (!has_next()) add_prior(at, c, &rest);
    store(cotangent_f, at, u), store_if(cotangent_s, at, w);
    store(local, at, rest), store_if(carry, at, q);
    if (want_grad_g && has_next()) sum += noise_part(at, total, length_next);
    return sum;
  }

  /// -log N(x_N; 0, I) contributes c x_N at the last state.
  DF_HD void add_prior(const Place& at, T c, Quad<T>* rest) const {
    const Quad<T> last = load<T>(x, at);
    for (int i = 0; i < 4; ++i) rest->value[i] += c * last.value[i];
  }

  /// g_k also scales the noise of the forward step k -> k+1: sqrt(dt_{k+1}) total . delta_f.
  DF_HD T noise_part(const Place& at, const Quad<T>& total, T length_next) const {
    const Quad<T> eps = normals<T>(noise, at);
    T sum = T(0);
    for (int i = 0; i < 4; ++i) sum += total.value[i] * eps.value[i];
    return square_root(length_next) * sum;
  }

  DF_HD void finish(int64_t sample, T sum) const { grad_g[sample] = sum; }
};

/// AdjointStep where g is a constant: elementwise, no sums.
template <typename T, typename N>
struct AdjointStepFixedG {
  AdjointStep<T, N> step;

  DF_HD void operator()(const Place& at) const { step.write(at, false); }
};

/// AdjointStep where g is learned: the same pass also sums dL/dg_k per sample.
template <typename T, typename N>
struct AdjointStepLearnedG {
  using Sum = T;
  AdjointStep<T, N> step;

  DF_HD T operator()(const Place& at) const { return step.write(at, true); }
  DF_HD void finish(int64_t sample, T sum) const { step.finish(sample, sum); }
};

// --- how a loop runs an elementwise body ---------------------------------------------------------

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
