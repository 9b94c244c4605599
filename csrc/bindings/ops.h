// The operations, as functions of a Target and addresses. One function a kernel.
#pragma once

#include "launch.h"

namespace diffflow {
namespace ops {

/// A value, or an address from which the kernel reads it at run time (0: use the value).
struct Number {
  double value;
  Address address;

  template <typename T>
  Scalar<T> as() const {
    return {static_cast<T>(value), pointer<const T>(address)};
  }
};

template <typename T>
StepSource<T> step_source(const Number& dt, const Number& g) {
  return {dt.as<T>(), g.as<T>()};
}

inline void philox_words(const Target& target, Address counter, Address key, Address words) {
  const PhiloxBlocks body{pointer<int64_t>(counter), pointer<int64_t>(key),
                          pointer<int64_t>(words)};
  run_each(target, target.flat(), body, false);
}

inline void normal(const Target& target, const NoiseSource& noise, Address out) {
  with_state(target.types, [&](auto state) {
    using T = decltype(state);
    T* to = pointer<T>(out);
    run_each(target, target.rows(), Normal<T>{to, noise}, starts_aligned<T>({to}));
  });
}

inline void em_step(const Target& target, const NoiseSource& noise, Number dt, Number g, Address x,
                    Address f, Address x_next) {
  with_types(target.types, [&](auto state, auto net) {
    using T = decltype(state);
    using N = decltype(net);
    const EmStep<T, N> body{pointer<T>(x), pointer<N>(f), pointer<T>(x_next), step_source<T>(dt, g),
                            noise};
    run_each(target, target.rows(), body,
             starts_aligned<T>({body.x, body.x_next}) && starts_aligned<N>({body.f}));
  });
}

template <typename T, typename N>
ResidualInputs<T, N> residual_inputs(Number dt, Number g, Address x, Address x_next, Address f,
                                     Address s) {
  return {pointer<T>(x), pointer<T>(x_next), pointer<N>(f), pointer<N>(s), step_source<T>(dt, g)};
}

template <typename T, typename N>
bool residual_aligned(const ResidualInputs<T, N>& in) {
  return starts_aligned<T>({in.x, in.x_next}) && starts_aligned<N>({in.f_next, in.s_next});
}

inline void backward_residual(const Target& target, Number dt, Number g, Address x, Address x_next,
                              Address f, Address s, Address delta_b) {
  with_types(target.types, [&](auto state, auto net) {
    using T = decltype(state);
    using N = decltype(net);
    const BackwardResidual<T, N> body{residual_inputs<T, N>(dt, g, x, x_next, f, s),
                                      pointer<T>(delta_b)};
    run_each(target, target.flat(), body,
             residual_aligned(body.in) && starts_aligned<T>({body.delta_b}));
  });
}

inline void backward_residual_vjp(const Target& target, Number dt, Number g, Address grad,
                                  Address grad_x, Address grad_x_next, Address grad_f,
                                  Address grad_s) {
  with_types(target.types, [&](auto state, auto net) {
    using T = decltype(state);
    using N = decltype(net);
    const ResidualVjp<T, N> body{pointer<T>(grad),   step_source<T>(dt, g),
                                 pointer<T>(grad_x), pointer<T>(grad_x_next),
                                 pointer<N>(grad_f), pointer<N>(grad_s)};
    run_each(target, target.flat(), body,
             starts_aligned<T>({body.grad, body.grad_x, body.grad_x_next}) &&
                 starts_aligned<N>({body.grad_f, body.grad_s}));
  });
}

inline void residual_cost(const Target& target, Number dt, Number g, Address x, Address x_next,
                          Address f, Address s, Address previous, Address cost, Address partials) {
  with_types(target.types, [&](auto state, auto net) {
    using T = decltype(state);
    using N = decltype(net);
    const ResidualCost<T, N> body{residual_inputs<T, N>(dt, g, x, x_next, f, s),
                                  pointer<T>(previous), pointer<T>(cost)};
    run_reduction(target, body, residual_aligned(body.in), partials);
  });
}

inline void residual_cost_vjp(const Target& target, Number dt, Number g, Address x, Address x_next,
                              Address f, Address s, Address grad, Address grad_x,
                              Address grad_x_next, Address grad_f, Address grad_s, Address grad_g,
                              Address partials) {
  with_types(target.types, [&](auto state, auto net) {
    using T = decltype(state);
    using N = decltype(net);
    const ResidualCostVjp<T, N> body{residual_inputs<T, N>(dt, g, x, x_next, f, s),
                                     pointer<T>(grad),
                                     pointer<T>(grad_x),
                                     pointer<T>(grad_x_next),
                                     pointer<N>(grad_f),
                                     pointer<N>(grad_s),
                                     pointer<T>(grad_g)};
    run_reduction(target, body,
                  residual_aligned(body.in) && starts_aligned<T>({body.grad_x, body.grad_x_next}) &&
                      starts_aligned<N>({body.grad_f, body.grad_s}),
                  partials);
  });
}

inline void reverse_step(const Target& target, const NoiseSource& noise, Number dt, Number g,
                         double stochasticity, Address x_next, Address f, Address s, Address x) {
  with_types(target.types, [&](auto state, auto net) {
    using T = decltype(state);
    using N = decltype(net);
    const ReverseStep<T, N> body{pointer<T>(x_next),
                                 pointer<N>(f),
                                 pointer<N>(s),
                                 pointer<T>(x),
                                 step_source<T>(dt, g),
                                 static_cast<T>(stochasticity),
                                 noise};
    run_each(
        target, target.rows(), body,
        starts_aligned<T>({body.x_next, body.x}) && starts_aligned<N>({body.f_next, body.s_next}));
  });
}

/// The factors are those of math/affine.h.
inline void affine_step(const Target& target, const NoiseSource& noise, Number c_x, Number c_a,
                        Number c_b, Number noise_scale, Address x, Address a, Address b,
                        Address y) {
  with_types(target.types, [&](auto state, auto net) {
    using T = decltype(state);
    using N = decltype(net);
    const AffineSource<T> factors{c_x.as<T>(), c_a.as<T>(), c_b.as<T>(), noise_scale.as<T>()};
    const AffineStep<T, N> body{pointer<T>(x), pointer<N>(a), pointer<N>(b),
                                pointer<T>(y), factors,       noise};
    // Only noise depends on rows.
    run_each(target, factors.draws() ? target.rows() : target.flat(), body,
             starts_aligned<T>({body.x, body.y}) && starts_aligned<N>({body.a, body.b}));
  });
}

inline void perturb(const Target& target, const NoiseSource& noise, Address x0, Address alpha_t,
                    Address sigma_t, int64_t scalar_stride, bool sigma_of_elements, Address x_t,
                    Address eps) {
  with_state(target.types, [&](auto state) {
    using T = decltype(state);
    const Perturb<T> body{
        pointer<T>(x0),    pointer<T>(alpha_t), pointer<T>(sigma_t), scalar_stride,
        sigma_of_elements, pointer<T>(x_t),     pointer<T>(eps),     noise};
    const T* const sigma = sigma_of_elements ? body.sigma_t : nullptr;
    run_each(target, target.rows(), body, starts_aligned<T>({body.x0, sigma, body.x_t, body.eps}));
  });
}

inline void noise_dot(const Target& target, const NoiseSource& noise, Address v, Address dot,
                      Address partials) {
  with_state(target.types, [&](auto state) {
    using T = decltype(state);
    const NoiseDot<T> body{pointer<T>(v), pointer<T>(dot), noise};
    run_reduction(target, body, starts_aligned<T>({body.v}), partials);
  });
}

inline void noise_energy(const Target& target, const NoiseSource& noise, Address previous,
                         Address energy, Address partials) {
  with_state(target.types, [&](auto state) {
    using T = decltype(state);
    run_reduction(target, NoiseEnergy<T>{pointer<T>(previous), pointer<T>(energy), noise}, true,
                  partials);
  });
}

/// Addresses of one state of the adjoint; ops/adjoint.h says which may be 0.
struct AdjointTensors {
  Address x_prev, x, f, s, local_next, vjp_f_next, vjp_s_next, carry_next, weight;
  Address cotangent_f, cotangent_s, local, carry, grad_g, partials;
};

template <typename T, typename N>
AdjointStep<T, N> adjoint_body(const AdjointTensors& at, double weight_for_all, Number dt,
                               Number dt_next, Number g, const NoiseSource& noise) {
  AdjointStep<T, N> body;
  body.x_prev = pointer<T>(at.x_prev), body.x = pointer<T>(at.x);
  body.f = pointer<N>(at.f), body.s = pointer<N>(at.s);
  body.local_next = pointer<T>(at.local_next);
  body.vjp_f_next = pointer<T>(at.vjp_f_next), body.vjp_s_next = pointer<T>(at.vjp_s_next);
  body.carry_next = pointer<T>(at.carry_next), body.weight = pointer<T>(at.weight);
  body.weight_for_all = static_cast<T>(weight_for_all);
  body.cotangent_f = pointer<N>(at.cotangent_f), body.cotangent_s = pointer<N>(at.cotangent_s);
  body.local = pointer<T>(at.local), body.carry = pointer<T>(at.carry);
  body.grad_g = pointer<T>(at.grad_g);
  body.dt = dt.as<T>(), body.dt_next = dt_next.as<T>(), body.g = g.as<T>();
  body.noise = noise;
  return body;
}

inline void adjoint_step(const Target& target, const NoiseSource& noise, Number dt, Number dt_next,
                         Number g, double weight_for_all, const AdjointTensors& at) {
  with_types(target.types, [&](auto state, auto net) {
    using T = decltype(state);
    using N = decltype(net);
    const auto body = adjoint_body<T, N>(at, weight_for_all, dt, dt_next, g, noise);
    const bool aligned =
        starts_aligned<T>({body.x_prev, body.x, body.local_next, body.vjp_f_next, body.vjp_s_next,
                           body.carry_next, body.local, body.carry}) &&
        starts_aligned<N>({body.f, body.s, body.cotangent_f, body.cotangent_s});
    if (at.grad_g != 0) {
      return run_reduction(target, AdjointStepLearnedG<T, N>{body}, aligned, at.partials);
    }
    // Only weights per sample depend on rows.
    const Shape shape = at.weight != 0 ? target.rows() : target.flat();
    run_each(target, shape, AdjointStepFixedG<T, N>{body}, aligned);
  });
}

}  // namespace ops
}  // namespace diffflow
