// The operations on vectors that the engines need, beside those of ops/simd.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "../../ops/simd.h"

namespace diffflow {
namespace DF_NAMESPACE {

typedef float UnalignedVec __attribute__((vector_size(4 * DF_LANES), aligned(4), may_alias));

DF_INLINE Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
DF_INLINE void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }

#if DF_LANES == 16

DF_INLINE Vec splat(float value) { return (Vec)_mm512_set1_ps(value); }
DF_INLINE Vec fma(Vec a, Vec b, Vec c) {
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
DF_INLINE Vec reciprocal_guess(Vec v) { return (Vec)_mm512_rcp14_ps((__m512)v); }
DF_INLINE float sum(Vec v) { return _mm512_reduce_add_ps((__m512)v); }

#elif DF_LANES == 8

DF_INLINE Vec splat(float value) { return (Vec)_mm256_set1_ps(value); }
DF_INLINE Vec fma(Vec a, Vec b, Vec c) {
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
DF_INLINE Vec reciprocal_guess(Vec v) { return (Vec)_mm256_rcp_ps((__m256)v); }
DF_INLINE float sum(Vec v) {
  const __m128 four =
      _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

#else

DF_INLINE Vec splat(float value) { return Vec{value, value, value, value}; }
DF_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
DF_INLINE float sum(Vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }

#endif

// --- factors of a product ------------------------------------------------------------------------
//
// Factors of large products consist of units: one float, or two bfloat16 values that follow one
// another in the sum, whose products are added in float32.

typedef int32_t IntVecUnaligned __attribute__((vector_size(4 * DF_LANES), aligned(4), may_alias));

/// Two bfloat16, the first in the low half.
struct Pair {
  int32_t bits;
};

DF_INLINE Vec load_units(const float* p) { return load(p); }
DF_INLINE Vec splat_unit(float value) { return splat(value); }
DF_INLINE Vec accumulate(Vec a, Vec b, Vec c) { return fma(a, b, c); }

#ifdef DF_BF16
using Unit = Pair;
constexpr int64_t kPerUnit = 2;

DF_INLINE IntVec load_units(const Pair* p) { return *reinterpret_cast<const IntVecUnaligned*>(p); }
DF_INLINE IntVec splat_unit(Pair value) { return (IntVec)_mm512_set1_epi32(value.bits); }
DF_INLINE Vec accumulate(IntVec a, IntVec b, Vec c) {
  return (Vec)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
}

/// Rounds to nearest even.
DF_INLINE __m256i bfloat16_of(Vec v) { return (__m256i)_mm512_cvtneps_pbh((__m512)v); }
DF_INLINE IntVec pairs_of(__m256i first, __m256i second) {
  const __m512i low = _mm512_cvtepu16_epi32(first), high = _mm512_cvtepu16_epi32(second);
  return (IntVec)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}
#else
using Unit = float;
constexpr int64_t kPerUnit = 1;
#endif

DF_INLINE Vec choose(IntVec mask, Vec yes, Vec no) { return mask ? yes : no; }
DF_INLINE Vec magnitude(Vec v) { return (Vec)((IntVec)v & (IntVec{} + 0x7fffffff)); }

/// 1 / v for v in [1, 2^100], within 2 ulp.
DF_INLINE Vec reciprocal(Vec v) {
#if DF_LANES > 4
  const Vec guess = reciprocal_guess(v);
  return guess * fma(-v, guess, splat(2.0f));
#else
  return splat(1.0f) / v;
#endif
}

/// e^v for v <= 0, within 2 ulp, and 0 below e^-87.
///
/// v = n log 2 + r with |r| <= log(2)/2, log 2 in two parts; the polynomial is that of Cephes'
/// expf.
DF_INLINE Vec exponential(Vec v) {
  const IntVec nothing = v < splat(-87.0f);
  v = choose(nothing, splat(-87.0f), v);
  // Adding 1.5 * 2^23 leaves no bits for a fraction.
  const Vec shift = splat(12582912.0f);
  const Vec n = (v * splat(1.44269504f) + shift) - shift;
  Vec r = fma(n, splat(-0.693359375f), v);
  r = fma(n, splat(2.12194440e-4f), r);
  Vec p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(r * r, p, r + splat(1.0f));
  const IntVec exponent = __builtin_convertvector(n, IntVec) + 127;
  return choose(nothing, splat(0.0f), p * (Vec)(exponent << 23));
}

}  // namespace DF_NAMESPACE
}  // namespace diffflow
