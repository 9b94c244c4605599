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

  struct Scalars {
    StepScalars<T> step;
    T length_next;
  };
  DF_HD Scalars scalars() const {
    return {StepSource<T>{dt, g}.get(), has_next() ? dt_next.get() : T(0)};
  }

  /// Writes all tensors of some elements. Returns what dL/dg_k sums: through the residual, and the
  /// products total . delta_f of the noise of the forward step k -> k+1, which g_k scales too.
  template <class At, class Values>
  DF_HD Terms<Values, 2> write(const At& at, const Scalars& by, const Values& eps) const {
    const Values c = weight != nullptr ? of_samples(weight, at) : splat(weight_for_all, at);
    const Values total = load_or_zero<T>(local_next, at) + load_or_zero<T>(vjp_f_next, at) +
                         load_or_zero<T>(vjp_s_next, at);
    const ResidualInputs<T, N> in = {x_prev, x, f, s, {dt, g}};
    const auto residual = has_step() ? residual_at(in, by.step, at) : ResidualValues<Values>{};
    const Values q = has_step() ? c / (by.step.g * by.step.sqrt_dt) * residual.delta_b : Values{};
    const AdjointTerms<Values> terms = adjoint_terms(q, load_or_zero<T>(carry_next, at), total,
                                                     by.step.dt, by.length_next, by.step.g);
    store(cotangent_f, at, terms.cotangent_f), store_if(cotangent_s, at, terms.cotangent_s);
    // -log N(x_N; 0, I) contributes c x_N at the last state.
    store(local, at, has_next() ? terms.local : terms.local + c * load<T>(x, at));
    store_if(carry, at, q);
    return {{c * residual_cost_grad_g(residual.delta_b, residual.s_next, by.step), total * eps}};
  }
};

/// AdjointStep where g is a constant: elementwise, no sums.
template <typename T, typename N>
struct AdjointStepFixedG : AdjointStep<T, N> {
  template <class At>
  DF_HD void apply(const At& at, const typename AdjointStep<T, N>::Scalars& by) const {
    this->write(at, by, typename At::template Values<T>{});
  }
};

/// AdjointStep where g is learned: the same pass also sums dL/dg_k per sample.
template <typename T, typename N>
struct AdjointStepLearnedG : AdjointStep<T, N> {
  using Sum = T;
  using Scalars = typename AdjointStep<T, N>::Scalars;
  static constexpr int kTerms = 2;

  DF_HD bool draws() const { return this->has_next(); }
  template <class At, class Values>
  DF_HD Terms<Values, 2> apply(const At& at, const Scalars& by, const Values& eps) const {
    return this->write(at, by, eps);
  }
  DF_HD T part(const Scalars& by, int64_t, const Quad<T>* terms) const {
    const T sum = in_order(terms[0]);
    if (!this->has_next()) return sum;
    return sum + square_root(by.length_next) * in_order(terms[1]);
  }
  DF_HD void finish(int64_t sample, T sum) const { this->grad_g[sample] = sum; }
};

}  // namespace diffflow
