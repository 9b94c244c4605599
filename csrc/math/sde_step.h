// Per-element maths of the discretised SDE pair (DiffFlow, arXiv 2110.07579). The only place these
// formulas exist in C++. Indices: x is x_i, x_next is x_{i+1}; g is taken where the letter says.
// `Values` are one T or several: a quad, or a vector.
#pragma once

#include "host_device.h"

namespace diffflow {

/// Scalars of one grid step.
///   dt       t_{i+1} - t_i, > 0                                  [time]
///   sqrt_dt  sqrt(dt)                                            [time^1/2]
///   g        diffusion coefficient at the formula's end, > 0     [data / time^1/2]
template <typename T>
struct StepScalars {
  T dt, sqrt_dt, g;
};

/// One Euler-Maruyama step of the forward SDE, g = g_i:  x_{i+1} = x_i + f dt + g sqrt(dt) delta_f.
template <class Values, typename T>
DF_HD Values em_step(Values x, Values f, Values delta_f, StepScalars<T> at) {
  return x + f * at.dt + at.g * at.sqrt_dt * delta_f;
}

/// Residual delta_b: the unit noise the reverse SDE needs to reach x from x_next, g = g_{i+1}.
///
///   delta_b = (x - x_next + (f_next - g^2 s_next) dt) / (g sqrt(dt))
///
/// Dimensionless; standard normal when drift and score are a true time-reversal pair.
template <class Values, typename T>
DF_HD Values backward_residual(Values x, Values x_next, Values f_next, Values s_next,
                               StepScalars<T> next) {
  const Values reverse_drift = f_next - next.g * next.g * s_next;
  return (x - x_next + reverse_drift * next.dt) / (next.g * next.sqrt_dt);
}

template <class Values>
struct ResidualGrad {
  Values x, x_next, f_next, s_next;
};

/// Transpose of backward_residual, which is linear in its tensors: nothing is saved for it.
template <class Values, typename T>
DF_HD ResidualGrad<Values> backward_residual_vjp(Values grad, StepScalars<T> next) {
  const Values grad_x = grad / (next.g * next.sqrt_dt);
  const Values grad_f = grad_x * next.dt;
  return {grad_x, -grad_x, grad_f, -next.g * next.g * grad_f};
}

/// d(1/2 delta_b^2)/dg at fixed tensors, g = g_{i+1}:  -delta_b (delta_b + 2 g sqrt(dt) s_next) /
/// g.
template <class Values, typename T>
DF_HD Values residual_cost_grad_g(Values delta_b, Values s_next, StepScalars<T> next) {
  return -delta_b * (delta_b + T(2) * next.g * next.sqrt_dt * s_next) / next.g;
}

/// One step of the reverse family, g = g_{i+1}, lambda = stochasticity:
///
///   x_i = x_{i+1} - [f - (1 + lambda^2)/2 g^2 s](x_{i+1}) dt + lambda g sqrt(dt) eps
///
/// lambda = 1 is the process that training fits, lambda = 0 the probability-flow ODE.
template <class Values, typename T>
DF_HD Values reverse_step(Values x_next, Values f_next, Values s_next, Values eps, T stochasticity,
                          StepScalars<T> next) {
  const T weight = T(0.5) * (T(1) + stochasticity * stochasticity) * next.g * next.g;
  return x_next - (f_next - weight * s_next) * next.dt +
         stochasticity * next.g * next.sqrt_dt * eps;
}

/// The terms of the adjoint at state k. q = c delta_b_k / (g_k sqrt(dt_k)) with c the weight of the
/// sample's loss; total = dL/dx_{k+1}; a prime marks the step k+1.
template <class Values>
struct AdjointTerms {
  Values cotangent_f;  ///< dt q + dt' total           for f(t_k, x_k)
  Values cotangent_s;  ///< -g^2 dt q                  for s(t_k, x_k)
  Values local;        ///< total - q + q' (+ c x_N)   dL/dx_k less the two network terms
};

template <class Values, typename T>
DF_HD AdjointTerms<Values> adjoint_terms(Values q, Values q_next, Values total_next, T dt,
                                         T dt_next, T g) {
  const Values cotangent = dt * q;
  return {cotangent + dt_next * total_next, -g * g * cotangent, total_next - q + q_next};
}

}  // namespace diffflow
