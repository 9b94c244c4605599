// Scalars of a kernel call, given by value or read from memory at run time.
#pragma once

#include "../math/sde_step.h"

namespace diffflow {

/// A number, or the place where it lies on the kernel's device. A CUDA graph and a learnable
/// diffusion need the second form: their values are not known when the call is made.
template <typename T>
struct Scalar {
  T value;
  const T* where;

  DF_HD T get() const { return where != nullptr ? *where : value; }
};

/// dt and g of one step; the square root is taken in T, so that both forms agree to the last bit.
template <typename T>
struct StepSource {
  Scalar<T> dt, g;

  DF_HD StepScalars<T> get() const {
    const T length = dt.get();
    return {length, square_root(length), g.get()};
  }
};

}  // namespace diffflow
