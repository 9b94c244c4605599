// Bodies of the backward residual, of its cost, and of their gradients; see bodies.h for what a
// body is.
#pragma once

#include "quad.h"
#include "scalars.h"

namespace diffflow {

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

/// cost_b = (previous_b +) 1/2 |delta_b|^2; the residual is not stored.
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

/// Gradients of sum_b grad_b 1/2 |delta_b|^2, with delta_b computed again from the inputs. The
/// reduction is the gradient with respect to g for each sample.
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

}  // namespace diffflow
