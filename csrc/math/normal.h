// Standard normals from random words by Box and Muller (1958): for u, v uniform on (0, 1),
// sqrt(-2 log u) (cos 2 pi v, sin 2 pi v) are two independent standard normals.
//
// log and sincospi are our own, in plain float32 multiplications and additions, because library
// versions differ in the last bit between host and device. With contraction into FMA switched off
// the results agree bit for bit everywhere. `Float` is float or a vector of floats. Polynomials:
// weighted minimax fits, see the errors below.
#pragma once

#include "host_device.h"
#include "philox.h"

namespace diffflow {

/// The centre of one of 2^23 equal cells of (0, 2^24), which is exact in float32.
template <class Float>
DF_HD Float cell_centre(typename BitsOf<Float>::Word word) {
  return BitsOf<Float>::from_int((typename BitsOf<Float>::Int)((word >> 8) | 1u));
}

/// The same of (0, 1): never 0 and never 1.
template <class Float>
DF_HD Float uniform_open(typename BitsOf<Float>::Word word) {
  return cell_centre<Float>(word) * 5.9604644775390625e-8f;  // 2^-24
}

/// log(u) for a normal float u in (0, 1), within 2 ulp.
///
/// u = m 2^e with m in [sqrt(1/2), sqrt(2)), f = m - 1 (exact):
/// log u = e log 2 + f - f^2/2 + f^3 P(f), relative error of P's part 8e-10.
template <class Float>
DF_HD Float log_unit(Float u) {
  using Bits = BitsOf<Float>;
  const auto shifted = Bits::word(u) - 0x3f3504f3u;  // bits of sqrt(1/2)
  const auto exponent = (typename Bits::Int)shifted >> 23;
  const Float f = Bits::from_word((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  const Float e = Bits::from_int(exponent);
  Float p = 0.06746619194746017f * f + -0.11675646156072617f;
  p = p * f + 0.11888168752193451f;
  p = p * f + -0.1240558996796608f;
  p = p * f + 0.14219552278518677f;
  p = p * f + -0.1666799634695053f;
  p = p * f + 0.2000211924314499f;
  p = p * f + -0.25000008940696716f;
  p = p * f + 0.3333331346511841f;
  const Float square = f * f;
  // log 2 in two parts: the first has so few bits that its product with e is exact.
  const Float small = f * square * p + e * -2.12194440e-4f - 0.5f * square;
  return e * 0.693359375f + (f + small);
}

template <class Float>
struct SinCos {
  Float sin, cos;
};

/// sin(pi x) and cos(pi x) for 0 <= x <= 2, within 2 ulp.
///
/// x = n/2 + r with |r| <= 1/4 (exact), then polynomials in r^2, relative errors 3e-9 and 5e-11.
template <class Float>
DF_HD SinCos<Float> sincospi_unit(Float x) {
  using Bits = BitsOf<Float>;
  const auto quarter = Bits::truncated(x * 2.0f + 0.5f);
  const Float r = x - Bits::from_int(quarter) * 0.5f;
  const Float square = r * r;
  Float p = -0.5890786647796631f * square + 2.549767255783081f;
  p = p * square + -5.167707920074463f;
  p = p * square + -9.707895998189997e-08f;
  const Float s = r * 3.1415927410125732f + r * p;
  Float q = 0.2314295470714569f * square + -1.3350584506988525f;
  q = q * square + 4.0587077140808105f;
  q = q * square + -4.934802055358887f;
  const Float c = 1.0f + square * q;
  // Bits 0 and 1 of the quarter as signs: which of the two is the sine, and which are negative.
  const auto turn = (typename Bits::Word)quarter;
  const auto odd = (typename Bits::Int)(turn << 31) < 0;
  const Float sine = odd ? c : s, cosine = odd ? s : c;
  return {Bits::from_word(Bits::word(sine) ^ (turn << 30 & 0x80000000u)),
          Bits::from_word(Bits::word(cosine) ^ ((turn + 1u) << 30 & 0x80000000u))};
}

template <class Float>
struct NormalPair {
  Float first, second;
};

/// Two standard normals from two random words. |z| <= sqrt(48 log 2) = 5.77.
template <class Float>
DF_HD NormalPair<Float> box_muller(typename BitsOf<Float>::Word word_u,
                                   typename BitsOf<Float>::Word word_v) {
  const Float radius = BitsOf<Float>::root(-2.0f * log_unit(uniform_open<Float>(word_u)));
  const SinCos<Float> turn =
      sincospi_unit(Float(cell_centre<Float>(word_v) * 1.1920928955078125e-7f));  // 2^-23
  return {radius * turn.cos, radius * turn.sin};
}

}  // namespace diffflow
