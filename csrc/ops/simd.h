// Vectors of DF_LANES floats, and what formulas of math/ need of them. Everything is in the
// namespace DF_NAMESPACE, so that no function compiled for one set of instructions can be linked
// into code for another.
#pragma once

#include <type_traits>

#include "../math/normal.h"

#if DF_LANES > 4
#include <immintrin.h>
#endif

#define DF_INLINE static inline __attribute__((always_inline))

namespace diffflow {
namespace DF_NAMESPACE {

constexpr int kLanes = DF_LANES;

template <typename T, int count>
struct VectorOf {
  typedef T Type __attribute__((vector_size(count * sizeof(T))));
};

typedef float Vec __attribute__((vector_size(4 * DF_LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * DF_LANES)));
typedef uint32_t WordVec __attribute__((vector_size(4 * DF_LANES)));

struct VecPair {
  Vec low, high;
};

/// Two vectors, or two such pairs, that take the same operations in turn: a processor that waits
/// for the result of one works on the other.
template <class V>
struct Two {
  V first, second;
};

#define DF_TWO_OPERATOR(op)                                                                \
  template <class V>                                                                       \
  DF_INLINE auto operator op(const Two<V>& a, const Two<V>& b) {                           \
    return Two<decltype(a.first op b.first)>{a.first op b.first, a.second op b.second};    \
  }                                                                                        \
  template <class V, class Number, class = std::enable_if_t<std::is_arithmetic_v<Number>>> \
  DF_INLINE auto operator op(const Two<V>& a, Number b) {                                  \
    return Two<decltype(a.first op b)>{a.first op b, a.second op b};                       \
  }                                                                                        \
  template <class V, class Number, class = std::enable_if_t<std::is_arithmetic_v<Number>>> \
  DF_INLINE auto operator op(Number a, const Two<V>& b) {                                  \
    return Two<decltype(a op b.first)>{a op b.first, a op b.second};                       \
  }
template <class V>
DF_INLINE Two<V> operator-(const Two<V>& a) {
  return {-a.first, -a.second};
}
DF_TWO_OPERATOR(+)
DF_TWO_OPERATOR(-)
DF_TWO_OPERATOR(*)
DF_TWO_OPERATOR(&)
DF_TWO_OPERATOR(|)
DF_TWO_OPERATOR(^)
DF_TWO_OPERATOR(<<)
DF_TWO_OPERATOR(>>)
DF_TWO_OPERATOR(!=)
DF_TWO_OPERATOR(>=)
#undef DF_TWO_OPERATOR

#if DF_LANES == 16

/// a_0, b_0, a_1, b_1, ...
DF_INLINE VecPair interleave(Vec a, Vec b) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  return {(Vec)_mm512_permutex2var_ps((__m512)a, low, (__m512)b),
          (Vec)_mm512_permutex2var_ps((__m512)a, high, (__m512)b)};
}

#elif DF_LANES == 8

DF_INLINE VecPair interleave(Vec a, Vec b) {
  const __m256 low = _mm256_unpacklo_ps((__m256)a, (__m256)b);
  const __m256 high = _mm256_unpackhi_ps((__m256)a, (__m256)b);
  return {(Vec)_mm256_permute2f128_ps(low, high, 0x20),
          (Vec)_mm256_permute2f128_ps(low, high, 0x31)};
}

#else

DF_INLINE VecPair interleave(Vec a, Vec b) {
  return {Vec{a[0], b[0], a[1], b[1]}, Vec{a[2], b[2], a[3], b[3]}};
}

#endif

}  // namespace DF_NAMESPACE

template <>
struct BitsOf<DF_NAMESPACE::Vec> {
  using Vec = DF_NAMESPACE::Vec;
  using Int = DF_NAMESPACE::IntVec;
  using Word = DF_NAMESPACE::WordVec;
  static DF_HD Word word(Vec value) { return (Word)value; }
  static DF_HD Vec from_word(Word bits) { return (Vec)bits; }
  static DF_HD Vec from_signed(Word value) { return __builtin_convertvector((Int)value, Vec); }
  static DF_HD Vec chosen(Int first, Vec a, Vec b) { return first ? a : b; }
  static DF_HD Vec root(Vec value) {
    for (int i = 0; i < DF_LANES; ++i) value[i] = __builtin_sqrtf(value[i]);
    return value;
  }
};

template <class V>
struct BitsOf<DF_NAMESPACE::Two<V>> {
  using Half = BitsOf<V>;
  using Twice = DF_NAMESPACE::Two<V>;
  using Word = DF_NAMESPACE::Two<typename Half::Word>;
  static DF_HD Word word(const Twice& x) { return {Half::word(x.first), Half::word(x.second)}; }
  static DF_HD Twice from_word(const Word& x) {
    return {Half::from_word(x.first), Half::from_word(x.second)};
  }
  static DF_HD Twice from_signed(const Word& x) {
    return {Half::from_signed(x.first), Half::from_signed(x.second)};
  }
  template <class Mask>
  static DF_HD Twice chosen(const Mask& first, const Twice& a, const Twice& b) {
    return {Half::chosen(first.first, a.first, b.first),
            Half::chosen(first.second, a.second, b.second)};
  }
  static DF_HD Twice root(const Twice& x) { return {Half::root(x.first), Half::root(x.second)}; }
};

/// Products of the even lanes and of the odd ones, whose halves are put together.
template <>
struct WideProduct<DF_NAMESPACE::WordVec> {
  using Word = DF_NAMESPACE::WordVec;
  Word high, low;

  DF_HD WideProduct(uint32_t factor, Word word) {
#if DF_LANES == 16
    const __m512i by = _mm512_set1_epi32(static_cast<int>(factor)), a = (__m512i)word;
    const __m512i even = _mm512_mul_epu32(a, by);
    const __m512i odd = _mm512_mul_epu32(_mm512_shuffle_epi32(a, _MM_PERM_CDAB), by);
    low = (Word)_mm512_mask_shuffle_epi32(even, 0xAAAA, odd, _MM_PERM_CDAB);
    high = (Word)_mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_CDAB);
#elif DF_LANES == 8
    const __m256i by = _mm256_set1_epi32(static_cast<int>(factor)), a = (__m256i)word;
    const __m256i even = _mm256_mul_epu32(a, by);
    const __m256i odd = _mm256_mul_epu32(_mm256_shuffle_epi32(a, 0xB1), by);
    low = (Word)_mm256_blend_epi32(even, _mm256_shuffle_epi32(odd, 0xB1), 0xAA);
    high = (Word)_mm256_blend_epi32(_mm256_shuffle_epi32(even, 0xB1), odd, 0xAA);
#else
    for (int i = 0; i < DF_LANES; ++i) {
      const uint64_t product = static_cast<uint64_t>(factor) * word[i];
      high[i] = static_cast<uint32_t>(product >> 32), low[i] = static_cast<uint32_t>(product);
    }
#endif
  }
};

template <class W>
struct WideProduct<DF_NAMESPACE::Two<W>> {
  DF_NAMESPACE::Two<W> high, low;

  DF_HD WideProduct(uint32_t factor, const DF_NAMESPACE::Two<W>& word) {
    const WideProduct<W> first(factor, word.first), second(factor, word.second);
    high = {first.high, second.high}, low = {first.low, second.low};
  }
};

}  // namespace diffflow
