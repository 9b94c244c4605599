// Marks functions that compile for the host and for CUDA devices from one source.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

// The build takes such options back where it can; a wrapper of the compiler may add them again.
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || \
    defined(__NO_SIGNED_ZEROS__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error \
    "diffflow_ext: expected IEEE arithmetic, got an option such as -ffast-math; remove it from the compiler's options or wrapper (CXX, CXXFLAGS, CUDAFLAGS)"
#endif

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

/// The same for 2^-101 <= value < infinity. On a GPU square_root has a branch for other values;
/// these are the steps of its main path: a guess, and one of Newton's steps, whose error is rounded
/// away.
DF_HD float square_root_of_normal(float value) {
#ifdef __CUDA_ARCH__
  float guess;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(guess) : "f"(value));
  const float root = value * guess, rest = __fmaf_rn(-root, root, value);
  return __fmaf_rn(rest, 0.5f * guess, root);
#else
  return square_root(value);
#endif
}

/// a b + c where a b is exact: rounded once either way, and a GPU has one instruction for it.
template <class Float>
DF_HD Float add_exact(Float a, float b, Float c) {
#ifdef __CUDA_ARCH__
  if constexpr (std::is_same_v<Float, float>) return __fmaf_rn(a, b, c);
#endif
  return a * b + c;
}

/// What formulas on the bits of a float need besides operators. A formula for `Float` takes one
/// number, or with the specialisations of ops/simd.h vectors of them.
template <class Float>
struct BitsOf;

template <>
struct BitsOf<float> {
  using Word = uint32_t;
  static DF_HD Word word(float value) { return float_to_bits(value); }
  static DF_HD float from_word(Word bits) { return bits_to_float(bits); }
  static DF_HD float from_signed(Word value) { return static_cast<float>((int32_t)value); }
  static DF_HD float chosen(bool first, float a, float b) { return first ? a : b; }
  static DF_HD float root(float value) { return square_root_of_normal(value); }
};

}  // namespace diffflow
