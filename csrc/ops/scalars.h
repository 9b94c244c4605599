// Scalars of a kernel call, given by value or read from memory at run time.
#pragma once

#include "../math/affine.h"
#include "../math/sde_step.h"

namespace diffflow {

/// A number, or its address on the kernel's device. A CUDA graph and a learnable diffusion need the
/// second form: their values are not known when the call is made.
template <typename T>
struct Scalar {
  T value;
  const T* address;

  DF_HD T get() const { return address != nullptr ? *address : value; }
};

/// What a body without scalars has in their place.
struct NoScalars {};

/// dt and g of one step; the square root is taken in T, so that both forms agree to the last bit.
template <typename T>
struct StepSource {
  Scalar<T> dt, g;

  DF_HD StepScalars<T> get() const {
    const T length = dt.get();
    return {length, square_root(length), g.get()};
  }
};

/// The factors of an affine step. Noise is not drawn if its factor is the number zero; it is always
/// drawn if the factor is in memory, where a captured CUDA graph may read another value.
template <typename T>
struct AffineSource {
  Scalar<T> x, a, b, noise;

  DF_HD AffineScalars<T> get() const { return {x.get(), a.get(), b.get(), noise.get()}; }
  DF_HD bool draws() const { return noise.address != nullptr || noise.value != T(0); }
};

}  // namespace diffflow
