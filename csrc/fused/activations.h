// Activations and their derivatives, both from one exponential.
#pragma once

#include "problem.h"
#if DF_LANES == 1
#include "gpu/scalar.h"
#else
#include "cpu/simd.h"
#endif

namespace diffflow {
namespace DF_NAMESPACE {

struct Activated {
  Vec value, slope;
};

/// h cdf(h). With t = 1 / (1 + 0.275 |h|) the upper tail of the normal law is P(t) exp(-h^2/2),
/// P a fit of degree 6 without constant: error below 6e-9.
DF_INLINE Activated gelu(Vec h) {
  const Vec t = reciprocal(fma(magnitude(h), splat(0.275f), splat(1.0f)));
  const Vec e = exponential(h * h * splat(-0.5f));
  Vec p = splat(-0.11476129293441772f);
  p = fma(p, t, splat(0.4515944719314575f));
  p = fma(p, t, splat(-0.3303234875202179f));
  p = fma(p, t, splat(0.3333803415298462f));
  p = fma(p, t, splat(0.042337529361248016f));
  p = fma(p, t, splat(0.11777244508266449f));
  const Vec tail = p * t * e;
  const Vec cdf = choose(h < splat(0.0f), tail, splat(1.0f) - tail);
  return {h * cdf, fma(h * e, splat(0.3989422804f), cdf)};
}

/// h / (1 + e^-h).
DF_INLINE Activated silu(Vec h) {
  const Vec e = exponential(-magnitude(h));
  const Vec high = reciprocal(splat(1.0f) + e);
  const Vec logistic = choose(h < splat(0.0f), e * high, high);
  return {h * logistic, logistic * fma(h, splat(1.0f) - logistic, splat(1.0f))};
}

/// Near 0 a polynomial (that of Cephes' tanhf), because 1 - e^(-2|h|) loses digits there.
DF_INLINE Activated hyperbolic_tangent(Vec h) {
  const Vec size = magnitude(h), e = exponential(splat(-2.0f) * size);
  const Vec far = (splat(1.0f) - e) * reciprocal(splat(1.0f) + e);
  const Vec square = h * h;
  Vec p = splat(-5.70498872745e-3f);
  p = fma(p, square, splat(2.06390887954e-2f));
  p = fma(p, square, splat(-5.37397155531e-2f));
  p = fma(p, square, splat(1.33314422036e-1f));
  p = fma(p, square, splat(-3.33332819422e-1f));
  const Vec near = fma(p * square, h, h);
  const Vec value = choose(size < splat(0.625f), near, choose(h < splat(0.0f), -far, far));
  return {value, fma(-value, value, splat(1.0f))};
}

template <Activation kind>
DF_INLINE Activated activate(Vec h) {
  if (kind == Activation::kGelu) return gelu(h);
  if (kind == Activation::kSilu) return silu(h);
  return hyperbolic_tangent(h);
}

}  // namespace DF_NAMESPACE
}  // namespace diffflow
