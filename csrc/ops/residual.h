// Bodies of the backward residual, of its cost, and of their gradients; see bodies.h for what a
// body is.
#pragma once

#include "quad.h"
#include "scalars.h"
#include "sum_order.h"

namespace diffflow {

/// The four tensors of a residual. Step: dt_i and g_{i+1}.
template <typename T, typename N>
struct ResidualInputs {
  const T *x, *x_next;
  const N *f_next, *s_next;
  StepSource<T> step;
};

template <class Values>
struct ResidualValues {
  Values delta_b, s_next;
};

template <typename T, typename N, class At>
DF_HD auto residual_at(const ResidualInputs<T, N>& in, const StepScalars<T>& by, const At& at) {
  using Values = typename At::template Values<T>;
  const Values s = load<T>(in.s_next, at);
  return ResidualValues<Values>{
      backward_residual(load<T>(in.x, at), load<T>(in.x_next, at), load<T>(in.f_next, at), s, by),
      s};
}

/// delta_b of one step.
template <typename T, typename N>
struct BackwardResidual {
  ResidualInputs<T, N> in;
  T* delta_b;

  DF_HD StepScalars<T> scalars() const { return in.step.get(); }
  template <class At>
  DF_HD void apply(const At& at, const StepScalars<T>& by) const {
    store(delta_b, at, residual_at(in, by, at).delta_b);
  }
};

/// cost_b = (previous_b +) 1/2 |delta_b|^2; the residual is not stored.
template <typename T, typename N>
struct ResidualCost {
  using Sum = T;
  static constexpr int kTerms = 1;
  ResidualInputs<T, N> in;
  const T* previous;  ///< added to the sum, or null
  T* cost;

  DF_HD StepScalars<T> scalars() const { return in.step.get(); }
  template <class At>
  DF_HD auto apply(const At& at, const StepScalars<T>& by) const {
    const auto r = residual_at(in, by, at).delta_b;
    // Elements past the row's end were loaded as zeros and give a residual of zero.
    return Terms<typename At::template Values<T>, 1>{{r * r}};
  }
  DF_HD T part(const StepScalars<T>&, int64_t, const Quad<T>* terms) const {
    return T(0.5) * in_pairs(terms[0]);
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

  DF_HD StepScalars<T> scalars() const { return step.get(); }
  template <class At>
  DF_HD void apply(const At& at, const StepScalars<T>& by) const {
    const auto part = backward_residual_vjp(load<T>(grad, at), by);
    store(grad_x, at, part.x), store(grad_x_next, at, part.x_next);
    store(grad_f, at, part.f_next), store(grad_s, at, part.s_next);
  }
};

/// Gradients of sum_b grad_b 1/2 |delta_b|^2, with delta_b computed again from the inputs. The
/// reduction is the gradient with respect to g for each sample.
template <typename T, typename N>
struct ResidualCostVjp {
  using Sum = T;
  static constexpr int kTerms = 1;
  ResidualInputs<T, N> in;
  const T* grad;  ///< per sample
  T *grad_x, *grad_x_next;
  N *grad_f, *grad_s;
  T* grad_g;  ///< per sample

  DF_HD StepScalars<T> scalars() const { return in.step.get(); }
  template <class At>
  DF_HD auto apply(const At& at, const StepScalars<T>& by) const {
    using Values = typename At::template Values<T>;
    const ResidualValues<Values> residual = residual_at(in, by, at);
    // The divisions come first: beside the gradients they would make ptxas spill registers.
    const Terms<Values, 1> terms = {{residual_cost_grad_g(residual.delta_b, residual.s_next, by)}};
    const auto part = backward_residual_vjp(of_samples(grad, at) * residual.delta_b, by);
    store(grad_x, at, part.x), store(grad_x_next, at, part.x_next);
    store(grad_f, at, part.f_next), store(grad_s, at, part.s_next);
    return terms;
  }
  DF_HD T part(const StepScalars<T>&, int64_t sample, const Quad<T>* terms) const {
    return grad[sample] * in_order(terms[0]);
  }
  DF_HD void finish(int64_t sample, T sum) const { grad_g[sample] = sum; }
};

}  // namespace diffflow
