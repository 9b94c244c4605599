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
           [](uint32_t word, int) { return bits_to_float(word & 0xffffe000u); });
}
DF_INLINE uint32_t pair_of(float first, float second) {
  return BFloat16::from_float(first).bits | static_cast<uint32_t>(BFloat16::from_float(second).bits)
                                                << 16;
}
/// Rounds to the 10 bits of TF32, ties away from zero. PTX does not define the other 13 bits.
DF_INLINE uint32_t tf32_of(float value) { return (float_to_bits(value) + 0x1000u) | 0x1fffu; }

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

// --- forms of factors ----------------------------------------------------------------------------

struct Bfloat16Factors {
  static constexpr int kPerWord = 2;

  DF_INLINE void put(uint32_t* row, int column, Two two) {
    row[column / 2] = pair_of(two.first, two.second);
  }
  DF_INLINE Two get(const uint32_t* row, int column) {
    const uint32_t word = row[column / 2];
    return {bits_to_float(word << 16), bits_to_float(word & 0xffff0000u)};
  }
  DF_INLINE void multiply(Sum& sum, const Left& left, const Right& right) {
    multiply_bfloat16(sum, left, right);
  }
};

/// Two words are copied as 8 bytes: columns are even, and rows have an even number of words.
struct alignas(8) WordPair {
  uint32_t first, second;
};

struct FloatFactors {
  static constexpr int kPerWord = 1;

  DF_INLINE void put(uint32_t* row, int column, Two two) {
    *reinterpret_cast<WordPair*>(row + column) = {float_to_bits(two.first),
                                                  float_to_bits(two.second)};
  }
  DF_INLINE Two get(const uint32_t* row, int column) {
    const WordPair pair = *reinterpret_cast<const WordPair*>(row + column);
    return {bits_to_float(pair.first), bits_to_float(pair.second)};
  }
};

struct Tf32Factors : FloatFactors {
  DF_INLINE void multiply(Sum& sum, const Left& left, const Right& right) {
    Left a;
    Right b;
    for (int i = 0; i < 4; ++i) a.word[i] = tf32_of(bits_to_float(left.word[i]));
    for (int i = 0; i < 2; ++i) b.word[i] = tf32_of(bits_to_float(right.word[i]));
    multiply_tf32(sum, a, b);
  }
};

struct Float32Factors : FloatFactors {
  /// x = high + low up to 2^-22 |x|; of the four products low * low is below the errors of the sum.
  DF_INLINE void split(uint32_t word, uint32_t* high, uint32_t* low) {
    const float value = bits_to_float(word);
    *high = tf32_of(value) & 0xffffe000u;  // The bits that tf32_of defines.
    *low = tf32_of(value - bits_to_float(*high));
  }
  DF_INLINE void multiply(Sum& sum, const Left& left, const Right& right) {
    Left a_high, a_low;
    Right b_high, b_low;
    for (int i = 0; i < 4; ++i) split(left.word[i], a_high.word + i, a_low.word + i);
    for (int i = 0; i < 2; ++i) split(right.word[i], b_high.word + i, b_low.word + i);
    // Tensor cores truncate when they add to a sum, so each block starts at 0.
    Sum block = {};
    multiply_tf32(block, a_low, b_high);
    multiply_tf32(block, a_high, b_low);
    multiply_tf32(block, a_high, b_high);
    for (int i = 0; i < 4; ++i) sum.value[i] += block.value[i];
  }
};

/// A warp's part of 16 rows and 16 columns.
struct WarpSum {
  Sum half[2];
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

/// Adds the products of block `block` of the rows of both factors.
template <class Factors>
DF_INLINE void multiply_block(WarpSum& sum, const uint32_t* left, const uint32_t* right,
                              int row_words, int block) {
  left += block * kBlockWords, right += block * kBlockWords;
  const int below = 8 * row_words;
  const Left a = {{left[0], left[below], left[4], left[below + 4]}};
  Factors::multiply(sum.half[0], a, {{right[0], right[4]}});
  Factors::multiply(sum.half[1], a, {{right[below], right[below + 4]}});
}

/// 16 rows of `left` times the warp's 16 rows of `right`, over `blocks` * kBlockWords words of
/// each. Two partial sums, because an instruction waits for the sum that it adds to.
template <class Factors>
DF_INLINE WarpSum product(const uint32_t* left, const uint32_t* right, int row_words, int blocks) {
  const int lane = threadIdx.x % 32, start = lane / 4 * row_words + lane % 4;
  left += start;
  right += static_cast<int>(threadIdx.x / 32) * 16 * row_words + start;
  WarpSum even = {}, odd = {};
  for (int block = 0; block + 1 < blocks; block += 2) {
    multiply_block<Factors>(even, left, right, row_words, block);
    multiply_block<Factors>(odd, left, right, row_words, block + 1);
  }
  if (blocks % 2 == 1) multiply_block<Factors>(even, left, right, row_words, blocks - 1);
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 4; ++i) even.half[half].value[i] += odd.half[half].value[i];
  }
  return even;
}

}  // namespace gpu
}  // namespace diffflow
