// Bodies of the steps of an SDE and of noisy data; see bodies.h for what a body is.
#pragma once

#include "../math/perturb.h"
#include "noise.h"
#include "scalars.h"

namespace diffflow {

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

}  // namespace diffflow
