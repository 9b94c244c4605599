// Products of 16 rows with tensor cores. Matrices consist of words of 32 bits: two bfloat16 values
// that follow one another in the sum, or one float. In words, all forms have the same layout.
#pragma once

#include "../../math/half_types.h"
#include "../../ops/device.h"
#include "paths.h"
#include "scalar.h"

namespace diffflow {
namespace gpu {

/// Words of a row that one instruction multiplies.
constexpr int kBlockWords = 8;
/// Rows of matrices in shared memory are this much longer, so that the 32 words of a fragment lie
/// in 32 banks.
constexpr int kRowPadding = 4;
/// The bits of a float that TF32 has.
constexpr uint32_t kTf32Bits = 0xffffe000u;

/// What a lane holds of a factor of 16 rows, of one of 8 columns, and of their product. With
/// group = lane / 4 and place = lane % 4:
///   left   words (group, place), (group + 8, place), (group, place + 4), (group + 8, place + 4)
///   right  words (group, place), (group, place + 4) of the transpose
///   sum    (group, 2 place), (group, 2 place + 1), (group + 8, 2 place), (group + 8, 2 place + 1)
struct Left {
  uint32_t word[4];
};
struct Right {
  uint32_t word[2];
};
struct Sum {
  float value[4];
};

struct Two {
  float first, second;
};

// --- instructions --------------------------------------------------------------------------------

#ifdef DIFFFLOW_CUDA_ON_HOST

DF_INLINE void multiply_bfloat16(Sum& sum, const Left& left, const Right& right) {
  emu::mma(sum.value, left.word, right.word, 2, [](uint32_t word, int i) {
    return bits_to_float(i == 0 ? word << 16 : word & 0xffff0000u);
  });
}
DF_INLINE void multiply_tf32(Sum& sum, const Left& left, const Right& right) {
  emu::mma(sum.value, left.word, right.word, 1,
           [](uint32_t word, int) { return bits_to_float(word & kTf32Bits); });
}
DF_INLINE void load_matrices(uint32_t (&to)[4], const uint32_t* row) { emu::ldmatrix(to, row); }
DF_INLINE uint32_t pair_of(float first, float second) {
  return BFloat16::from_float(first).bits | static_cast<uint32_t>(BFloat16::from_float(second).bits)
                                                << 16;
}
/// Rounds to the 10 bits of TF32, ties away from zero. PTX does not define the other 13 bits.
DF_INLINE uint32_t tf32_of(float value) { return (float_to_bits(value) + 0x1000u) | ~kTf32Bits; }

#else

DF_INLINE void multiply_bfloat16(Sum& sum, const Left& left, const Right& right) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum.value[0]), "+f"(sum.value[1]), "+f"(sum.value[2]), "+f"(sum.value[3])
      : "r"(left.word[0]), "r"(left.word[1]), "r"(left.word[2]), "r"(left.word[3]),
        "r"(right.word[0]), "r"(right.word[1]));
}
DF_INLINE void multiply_tf32(Sum& sum, const Left& left, const Right& right) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum.value[0]), "+f"(sum.value[1]), "+f"(sum.value[2]), "+f"(sum.value[3])
      : "r"(left.word[0]), "r"(left.word[1]), "r"(left.word[2]), "r"(left.word[3]),
        "r"(right.word[0]), "r"(right.word[1]));
}
/// Four matrices of 8 rows and 4 words: lane i brings the address of row i % 8 of matrix i / 8 and
/// gets word i % 4 of row i / 4 of each. Addresses are multiples of 16 bytes.
DF_INLINE void load_matrices(uint32_t (&to)[4], const uint32_t* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row))));
}
DF_INLINE uint32_t pair_of(float first, float second) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}
DF_INLINE uint32_t tf32_of(float value) {
  uint32_t word;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(value));
  return word;
}

#endif

/// A warp's part of 16 rows and 16 columns.
struct WarpSum {
  Sum half[2];
};

// --- forms of factors ----------------------------------------------------------------------------
//
// `word` is how a factor is stored in shared memory, `put` stores two neighbours of a row, `keep`
// stores them where they are read as numbers: `unpack` makes them of a `Pair`. Columns of pairs are
// even.

struct Bfloat16Factors {
  static constexpr int kPerWord = 2;

  DF_INLINE uint32_t word(const float (&value)[2]) { return pair_of(value[0], value[1]); }
  DF_INLINE void put(uint32_t* to, Two two) { *to = pair_of(two.first, two.second); }
  DF_INLINE void keep(uint32_t* to, Two two) { put(to, two); }
  typedef uint32_t Pair;
  DF_INLINE Two unpack(Pair pair) {
    return {bits_to_float(pair << 16), bits_to_float(pair & 0xffff0000u)};
  }

  typedef WarpSum Partial;
  DF_INLINE void multiply(Partial& sum, const Left& left, const Right (&right)[2]) {
    for (int half = 0; half < 2; ++half) multiply_bfloat16(sum.half[half], left, right[half]);
  }
  DF_INLINE WarpSum total(const Partial& sum) { return sum; }
};

/// Two words are copied as 8 bytes: rows have an even number of words.
struct alignas(8) WordPair {
  uint32_t first, second;
};

struct FloatFactors {
  static constexpr int kPerWord = 1;

  DF_INLINE void keep(uint32_t* to, Two two) {
    *reinterpret_cast<WordPair*>(to) = {float_to_bits(two.first), float_to_bits(two.second)};
  }
  typedef WordPair Pair;
  DF_INLINE Two unpack(Pair pair) {
    return {bits_to_float(pair.first), bits_to_float(pair.second)};
  }
};

/// Factors are rounded when they are stored: each is multiplied by many warps.
struct Tf32Factors : FloatFactors {
  DF_INLINE uint32_t word(const float (&value)[1]) { return tf32_of(value[0]); }
  DF_INLINE void put(uint32_t* to, Two two) {
    *reinterpret_cast<WordPair*>(to) = {tf32_of(two.first), tf32_of(two.second)};
  }

  typedef WarpSum Partial;
  DF_INLINE void multiply(Partial& sum, const Left& left, const Right (&right)[2]) {
    for (int half = 0; half < 2; ++half) multiply_tf32(sum.half[half], left, right[half]);
  }
  DF_INLINE WarpSum total(const Partial& sum) { return sum; }
};

struct Float32Factors : FloatFactors {
  DF_INLINE uint32_t word(const float (&value)[1]) { return float_to_bits(value[0]); }
  DF_INLINE void put(uint32_t* to, Two two) { keep(to, two); }

  /// x = high + low up to 2^-23 |x|. `high` is rounded as an integer, which cvt.rna does in more
  /// instructions: `low` has what that makes of numbers that are not finite. Its last bits are
  /// those that products ignore.
  template <int kWords>
  DF_INLINE void split(uint32_t (&high)[kWords], uint32_t (&low)[kWords]) {
    for (int i = 0; i < kWords; ++i) {
      const float value = bits_to_float(high[i]);
      high[i] = (high[i] + 0x1000u) & kTf32Bits;
      low[i] = float_to_bits(value - bits_to_float(high[i]));
    }
  }

  /// Of the four products of a block, low * low is below the errors of the sum. Tensor cores
  /// truncate when they add to a sum: high * high starts at 0 in each block, and the two others,
  /// smaller by 2^-11, have a sum of their own.
  struct Partial {
    WarpSum high, low;
  };
  DF_INLINE void multiply(Partial& sum, const Left& left, const Right (&right)[2]) {
    Left left_high = left, left_low;
    split(left_high.word, left_low.word);
    for (int half = 0; half < 2; ++half) {
      Right right_high = right[half], right_low;
      split(right_high.word, right_low.word);
      Sum block = {};
      multiply_tf32(block, left_high, right_high);
      multiply_tf32(sum.low.half[half], left_low, right_high);
      multiply_tf32(sum.low.half[half], left_high, right_low);
      for (int i = 0; i < 4; ++i) sum.high.half[half].value[i] += block.value[i];
    }
  }
  DF_INLINE WarpSum total(const Partial& sum) {
    WarpSum out = sum.high;
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) out.half[half].value[i] += sum.low.half[half].value[i];
    }
    return out;
  }
};

/// Factors of tiles of `kParts` times 16 rows, for which a warp reads its part of the right factor
/// once.
template <class Factors, int parts>
struct Tiled : Factors {
  static constexpr int kParts = parts, kRows = parts * kTileRows, kPairs = 2 * parts;
};

template <class Factors>
DF_INLINE typename Factors::Pair pair_at(const uint32_t* from) {
  return *reinterpret_cast<const typename Factors::Pair*>(from);
}

/// A warp's part of a tile: 16 columns.
template <class Factors>
struct TileSum {
  WarpSum part[Factors::kParts];
};

/// Position of the first of two neighbouring values of a lane's sum.
struct Position {
  int row, column;
};
DF_INLINE Position position(int half, int pair) {
  const int lane = threadIdx.x % 32;
  const int first = static_cast<int>(threadIdx.x / 32) * 16;
  return {lane / 4 + 8 * pair, first + 8 * half + 2 * (lane % 4)};
}

/// What a lane holds of a tile, [half][pair] as in `position`.
template <class Factors>
struct LaneTwos {
  Two at[2][Factors::kPairs];
};

/// Calls `run(half, pair)` for a lane's pairs of numbers.
template <class Factors, class Run>
DF_INLINE void for_pairs(const Run& run) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int pair = 0; pair < Factors::kPairs; ++pair) run(half, pair);
  }
}

/// The words of a lane's pairs in rows of `row_words` words, behind one address.
template <class Factors>
struct LaneWords {
  int start, row_words;

  DF_INLINE LaneWords of(int row_words) {
    const Position p = position(0, 0);
    return {p.row * row_words + p.column / Factors::kPerWord, row_words};
  }
  DF_HD int at(int half, int pair) const {
    return start + 8 * pair * row_words + half * (8 / Factors::kPerWord);
  }
};

template <class Factors>
DF_INLINE Two two_of(const TileSum<Factors>& sum, int half, int pair) {
  const float* const value = sum.part[pair / 2].half[half].value + 2 * (pair % 2);
  return {value[0], value[1]};
}

/// What a warp multiplies at a time: a block of its rows of both factors.
template <class Factors>
struct Fragments {
  Left left[Factors::kParts];
  Right right[2];

  DF_INLINE Fragments read(const uint32_t* left, const uint32_t* right, int row_words, int block) {
    Fragments out;
    uint32_t words[4];
    left += block * kBlockWords, right += block * kBlockWords;
    for (int part = 0; part < Factors::kParts; ++part) {
      load_matrices(out.left[part].word, left + part * kTileRows * row_words);
    }
    load_matrices(words, right);
    for (int i = 0; i < 4; ++i) out.right[i / 2].word[i % 2] = words[i];
    return out;
  }
};

/// The rows of `left` times the warp's 16 rows of `right`, over `blocks` * kBlockWords words of
/// each. A block is read while the one before it is multiplied.
template <class Factors>
DF_INLINE TileSum<Factors> product(const uint32_t* left, const uint32_t* right, int row_words,
                                   int blocks) {
  // The rows whose addresses the lane brings: those of the left factor lie in the order of its
  // words, (8 rows, 4 words) below one another first, those of the right one next to one another.
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  left += lane % 16 * row_words + lane / 16 * 4;
  right += (16 * warp + lane / 16 * 8 + lane % 8) * row_words + lane / 8 % 2 * 4;
  typename Factors::Partial sum[Factors::kParts] = {};
  auto next = Fragments<Factors>::read(left, right, row_words, 0);
#pragma unroll 2
  for (int block = 0; block < blocks; ++block) {
    const auto here = next;
    next = Fragments<Factors>::read(left, right, row_words, block + 1 < blocks ? block + 1 : block);
#pragma unroll
    for (int part = 0; part < Factors::kParts; ++part) {
      Factors::multiply(sum[part], here.left[part], here.right);
    }
  }
  TileSum<Factors> out;
  for (int part = 0; part < Factors::kParts; ++part) out.part[part] = Factors::total(sum[part]);
  return out;
}

}  // namespace gpu
}  // namespace diffflow
