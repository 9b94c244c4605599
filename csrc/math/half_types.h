// Sixteen-bit storage types of network outputs. Arithmetic is always done in float32 or float64:
// these types only convert, with the same integer operations on the host and on a device.
#pragma once

#include "host_device.h"

namespace diffflow {

/// bfloat16: the upper half of a float32. Rounds to nearest, ties to even; NaN stays NaN.
///
/// `widened` and `narrowed` take the bits as words, of one number or of a vector.
struct BFloat16 {
  uint16_t bits;

  DF_HD operator float() const { return widened<float>(bits); }
  static DF_HD BFloat16 from_float(float value) { return {static_cast<uint16_t>(narrowed(value))}; }

  template <class Float>
  static DF_HD Float widened(typename BitsOf<Float>::Word bits) {
    return BitsOf<Float>::from_word(bits << 16);
  }
  template <class Float>
  static DF_HD typename BitsOf<Float>::Word narrowed(Float value) {
    const auto raw = BitsOf<Float>::word(value);
    const auto rounded = (raw + 0x7fffu + ((raw >> 16) & 1u)) >> 16;
    return (raw & 0x7fffffffu) > 0x7f800000u ? ((raw >> 16) | 0x40u) : rounded;
  }
};

/// IEEE binary16. Rounds to nearest, ties to even; overflows to infinity; keeps subnormals and NaN.
struct Half {
  uint16_t bits;

  DF_HD operator float() const { return widened<float>(bits); }
  static DF_HD Half from_float(float value) { return {static_cast<uint16_t>(narrowed(value))}; }

  template <class Float>
  static DF_HD Float widened(typename BitsOf<Float>::Word bits) {
    using Bits = BitsOf<Float>;
    const auto sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
    // Multiplying by 2^112 moves the exponent from half's bias to float's and is exact, also for
    // subnormal halves.
    const Float scaled = Bits::from_word(magnitude << 13) * 5.192296858534828e33f;
    const auto large = magnitude >= 0x7c00u;
    return Bits::from_word(sign | (large ? (0x7f800000u | (magnitude << 13)) : Bits::word(scaled)));
  }
  template <class Float>
  static DF_HD typename BitsOf<Float>::Word narrowed(Float value) {
    using Bits = BitsOf<Float>;
    using Word = typename Bits::Word;
    const Word raw = Bits::word(value), magnitude = raw & 0x7fffffffu;
    // Adding 1/2 aligns the last bit of a subnormal half with the last bit of the sum, so that
    // the addition itself rounds to nearest even.
    const Word subnormal = Bits::word(Bits::from_word(magnitude) + 0.5f) - 0x3f000000u;
    const Word normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const Word zero = Word{};
    Word out = magnitude < 0x38800000u ? subnormal : normal;
    out = magnitude >= 0x47800000u ? (zero + 0x7c00u) : out;
    out = magnitude > 0x7f800000u ? (zero + 0x7e00u) : out;
    return ((raw >> 16) & 0x8000u) | out;
  }
};

/// Converts an arithmetic value to a storage type S.
template <typename S, typename T>
DF_HD S to_storage(T value) {
  return static_cast<S>(value);
}
template <>
DF_HD BFloat16 to_storage<BFloat16, float>(float value) {
  return BFloat16::from_float(value);
}
template <>
DF_HD Half to_storage<Half, float>(float value) {
  return Half::from_float(value);
}

}  // namespace diffflow
