// Marks functions that compile for the host and for CUDA devices from one source.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(DF_HD)
// A translation unit may ask for more, see csrc/fused/cpu/engines.h.
#elif defined(__CUDACC__)
#define DF_HD __host__ __device__ __forceinline__
#else
#define DF_HD inline
#endif

namespace diffflow {

/// The bits of a float as an integer, and back. memcpy is the one well-defined way on both sides.
DF_HD uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

DF_HD float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

/// Correctly rounded on both sides. Overloads, because an unqualified sqrt(float) may pick
/// double's.
DF_HD float square_root(float value) { return sqrtf(value); }
DF_HD double square_root(double value) { return sqrt(value); }

}  // namespace diffflow
