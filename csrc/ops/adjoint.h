// Bodies of the adjoint at one state; see bodies.h for what a body is.
#pragma once

#include "noise.h"
#include "residual.h"

namespace diffflow {

/// The adjoint at one state k of a path (derived in diffflow_ext/engines/adjoint/losses.py):
/// residual of step k, cotangents for both networks, and the local part of dL/dx_k, in one pass.
///
/// At k = 0 `x_prev` and `s` are null, at k = N `total_next` is null. total_next = dL/dx_{k+1}
/// is given in up to three parts, whose sum needs no separate pass.
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

}  // namespace diffflow
