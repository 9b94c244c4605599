// Sixteen-bit storage types of network outputs. Arithmetic is always done in float32 or float64:
// these types only convert, with the same integer operations on the host and on a device.
#pragma once

#include "host_device.h"

namespace diffflow {

/// bfloat16: the upper half of a float32. Rounds to nearest, ties to even; NaN stays NaN.
struct BFloat16 {
  uint16_t bits;

  DF_HD operator float() const { return bits_to_float(static_cast<uint32_t>(bits) << 16); }

  static DF_HD BFloat16 from_float(float value) {
    const uint32_t raw = float_to_bits(value);
    if ((raw & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((raw >> 16) | 0x40u)};
    return {static_cast<uint16_t>((raw + 0x7fffu + ((raw >> 16) & 1u)) >> 16)};
  }
};

/// IEEE binary16. Rounds to nearest, ties to even; overflows to infinity; keeps subnormals and NaN.
struct Half {
  uint16_t bits;

  DF_HD operator float() const {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    const uint32_t magnitude = bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (magnitude << 13));
    // Multiplying by 2^112 moves the exponent from half's bias to float's and is exact, also for
    // subnormal halves.
    const float scaled = bits_to_float(magnitude << 13) * 5.192296858534828e33f;
    return bits_to_float(float_to_bits(scaled) | sign);
  }

  static DF_HD Half from_float(float value) {
    const uint32_t raw = float_to_bits(value);
    const uint16_t sign = static_cast<uint16_t>((raw >> 16) & 0x8000u);
    const uint32_t magnitude = raw & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
    if (magnitude >= 0x47800000u) return {static_cast<uint16_t>(sign | 0x7c00u)};
    if (magnitude < 0x38800000u) {
      // Adding 1/2 aligns the last bit of a subnormal half with the last bit of the sum, so that
      // the addition itself rounds to nearest even.
      const uint32_t aligned = float_to_bits(bits_to_float(magnitude) + 0.5f);
      return {static_cast<uint16_t>(sign | (aligned - 0x3f000000u))};
    }
    const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
    return {static_cast<uint16_t>(sign | (rounded >> 13))};
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
