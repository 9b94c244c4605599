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

/// The centre of one of 2^23 equal cells of (0, 1), never 0 and never 1: (2 (word >> 9) + 1) 2^-24.
/// Its bits are put together in [1, 2), where the cells are the floats; the difference is exact.
template <class Float>
DF_HD Float uniform_open(typename BitsOf<Float>::Word word) {
  return BitsOf<Float>::from_word(word >> 9 | 0x3f800000u) - 0x1.fffffep-1f;
}

/// -2 log(u) for a normal float u in (0, 1), within 2 ulp.
///
/// u = m 2^e with m in [sqrt(1/2), sqrt(2)), f = m - 1 (exact):
/// log u = e log 2 + f - f^2/2 + f^3 P(f), relative error of P's part 8e-10. The factor -2 is part
/// of all coefficients, where it changes no rounding, and so is that of `scaled`, which is 2^23 e.
template <class Float>
DF_HD Float minus_two_log(Float u) {
  using Bits = BitsOf<Float>;
  const auto bits = Bits::word(u);
  const auto exponent = (bits - 0x3f3504f3u) & 0xff800000u;  // of u / sqrt(1/2), with its sign
  const Float f = Bits::from_word(bits - exponent) - 1.0f;
  const Float scaled = Bits::from_signed(exponent);
  Float p = -0.13493238389492035f * f + 0.23351292312145233f;
  p = p * f + -0.23776337504386902f;
  p = p * f + 0.2481117993593216f;
  p = p * f + -0.28439104557037354f;
  p = p * f + 0.3333599269390106f;
  p = p * f + -0.4000423848628998f;
  p = p * f + 0.5000001788139343f;
  p = p * f + -0.6666662693023682f;
  const Float square = f * f;
  // log 2 in two parts: the first has so few bits that its product with e is exact.
  const Float small = f * square * p + scaled * 0x1.bd01060p-35f + square;
  return add_exact(scaled, -0x1.63p-23f, add_exact(f, -2.0f, small));
}

template <class Float>
struct NormalPair {
  Float first, second;
};

/// radius (cos 2 pi v, sin 2 pi v) for the uniform v of a word; both functions within 2 ulp.
///
/// 2 v = n/2 + r with -1/4 <= r < 1/4: the upper two bits and the others of v + 1/8 are n and r.
/// Then polynomials in r^2, relative errors 3e-9 and 5e-11.
template <class Float>
DF_HD NormalPair<Float> on_circle(Float radius, typename BitsOf<Float>::Word word) {
  using Bits = BitsOf<Float>;
  const auto turn = word + 0x20000000u;
  // r + 3/4, less half a cell: put together in [1/2, 1) as above.
  const Float r = Bits::from_word((turn >> 7 & 0x007ffffcu) | 0x3f000000u) - 0x1.7ffffcp-1f;
  const Float square = r * r;
  Float p = -0.5890786647796631f * square + 2.549767255783081f;
  p = p * square + -5.167707920074463f;
  p = p * square + -9.707895998189997e-08f;
  const Float s = r * 3.1415927410125732f + r * p;
  Float q = 0.2314295470714569f * square + -1.3350584506988525f;
  q = q * square + 4.0587077140808105f;
  q = q * square + -4.934802055358887f;
  const Float c = 1.0f + square * q;
  // n = 1 and n = 3 are quarters of a turn, n = 2 and n = 3 are half a turn from there.
  const auto quarter = (turn & 0x40000000u) != 0u;
  const Float side = Bits::from_word(Bits::word(radius) ^ (turn & 0x80000000u));
  return {side * Bits::chosen(quarter, -s, c), side * Bits::chosen(quarter, c, s)};
}

/// Two standard normals from two random words. |z| <= sqrt(48 log 2) = 5.77.
template <class Float>
DF_HD NormalPair<Float> box_muller(typename BitsOf<Float>::Word word_u,
                                   typename BitsOf<Float>::Word word_v) {
  return on_circle(BitsOf<Float>::root(minus_two_log(uniform_open<Float>(word_u))), word_v);
}

}  // namespace diffflow
