// The affine step: one state and up to two network outputs, each with a coefficient, plus noise.
// Solvers of linear SDEs and their ODEs consist of such steps, with different coefficients.
#pragma once

#include "host_device.h"

namespace diffflow {

/// Factors of the state, of both network outputs, and of the noise (a standard deviation, >= 0).
template <typename T>
struct AffineScalars {
  T x, a, b, noise;
};

/// y = c_x x + c_a a + c_b b + noise z, added from left to right; z is a standard normal.
/// `Values` are one T or several.
template <class Values, typename T>
DF_HD Values affine_step(Values x, Values a, Values b, Values z, AffineScalars<T> c) {
  return c.x * x + c.a * a + c.b * b + c.noise * z;
}

}  // namespace diffflow
