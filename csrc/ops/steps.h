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
  DF_HD StepScalars<T> scalars() const { return step.get(); }
  template <class At, class Values>
  DF_HD void apply(const At& at, const StepScalars<T>& by, const Values& eps) const {
    store(x_next, at, em_step(load<T>(x, at), load<T>(f, at), eps, by));
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
  DF_HD StepScalars<T> scalars() const { return step.get(); }
  template <class At, class Values>
  DF_HD void apply(const At& at, const StepScalars<T>& by, const Values& eps) const {
    store(x, at,
          reverse_step(load<T>(x_next, at), load<T>(f_next, at), load<T>(s_next, at), eps,
                       stochasticity, by));
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
  DF_HD AffineScalars<T> scalars() const { return factors.get(); }
  template <class At, class Values>
  DF_HD void apply(const At& at, const AffineScalars<T>& by, const Values& draw) const {
    store(y, at, affine_step(load<T>(x, at), load<T>(a, at), load_or_zero<T>(b, at), draw, by));
  }
};

/// x_t = alpha_t x0 + sigma_t eps with alpha_t and sigma_t per sample or common, or sigma_t per
/// element; eps on demand.
template <typename T>
struct Perturb {
  const T* x0;
  const T *alpha_t, *sigma_t;
  int64_t scalar_stride;   ///< 1: one value a sample, 0: one value for all
  bool sigma_of_elements;  ///< sigma_t has the shape of x0
  T *x_t, *eps;            ///< eps may be null: then the noise is never written
  NoiseSource noise;

  DF_HD bool draws() const { return true; }
  DF_HD NoScalars scalars() const { return {}; }
  template <class At, class Values>
  DF_HD void apply(const At& at, NoScalars, const Values& draw) const {
    const bool one = scalar_stride == 0;
    const Values alpha = one ? splat(*alpha_t, at) : of_samples(alpha_t, at);
    const Values sigma = sigma_of_elements ? load<T>(sigma_t, at)
                         : one             ? splat(*sigma_t, at)
                                           : of_samples(sigma_t, at);
    store(x_t, at, perturb(load<T>(x0, at), draw, alpha, sigma));
    store_if(eps, at, draw);
  }
};

}  // namespace diffflow
