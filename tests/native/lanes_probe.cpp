// The transform from words to normals: in the lanes of vectors, and its definition, which goes from
// one float to the next without a look at their bits. Compiled for one set of instructions, which
// -DDF_NAMESPACE and -DDF_LANES name.
#include "../../csrc/ops/simd.h"

namespace df = diffflow;
using df::DF_NAMESPACE::Two;
using df::DF_NAMESPACE::Vec;
using df::DF_NAMESPACE::WordVec;

namespace {

float log_of_uniform(float u) {
  int exponent;
  float m = 2.0f * std::frexp(u, &exponent);
  float e = static_cast<float>(exponent - 1);
  if (m >= 0x1.6a09e6p0f) m *= 0.5f, e += 1.0f;  // m is in [sqrt(1/2), sqrt(2))
  const float f = m - 1.0f, square = f * f;
  const float coefficients[] = {0.06746619194746017f, -0.11675646156072617f, 0.11888168752193451f,
                                -0.1240558996796608f, 0.14219552278518677f,  -0.1666799634695053f,
                                0.2000211924314499f,  -0.25000008940696716f, 0.3333331346511841f};
  float p = coefficients[0];
  for (int i = 1; i < 9; ++i) p = p * f + coefficients[i];
  const float small = f * square * p + e * -2.12194440e-4f - 0.5f * square;
  return e * 0.693359375f + (f + small);
}

df::NormalPair<float> defined(uint32_t word_u, uint32_t word_v) {
  const float u = static_cast<float>(word_u >> 8 | 1u) * 0x1p-24f;
  const float radius = std::sqrt(-2.0f * log_of_uniform(u));
  const float turns = static_cast<float>(word_v >> 8 | 1u) * 0x1p-24f;
  const int n = static_cast<int>(turns * 4.0f + 0.5f);
  const float r = turns * 2.0f - static_cast<float>(n) * 0.5f, square = r * r;
  float p = -0.5890786647796631f * square + 2.549767255783081f;
  p = p * square + -5.167707920074463f;
  p = p * square + -9.707895998189997e-08f;
  float q = 0.2314295470714569f * square + -1.3350584506988525f;
  q = q * square + 4.0587077140808105f;
  q = q * square + -4.934802055358887f;
  const float s = r * 3.1415927410125732f + r * p, c = 1.0f + square * q;
  const float cosines[4] = {c, -s, -c, s}, sines[4] = {s, c, -s, -c};
  return {radius * cosines[n % 4], radius * sines[n % 4]};
}

bool differ(float a, float b) { return memcmp(&a, &b, sizeof(float)) != 0; }

WordVec lanes_of(const uint32_t* words) {
  WordVec out;
  memcpy(&out, words, sizeof(out));
  return out;
}

}  // namespace

/// How many normals differ in a bit from the definition: all 2^23 radii and all 2^23 angles, each
/// with one value of the other, and with lower bits of the words that do not count.
extern "C" int64_t probe_differences() {
  constexpr int lanes = DF_LANES;
  constexpr uint32_t fixed = 0x12345678u;
  int64_t differences = 0;
  for (uint32_t first = 0; first < 1u << 23; first += lanes) {
    uint32_t words[lanes];
    for (uint32_t i = 0; i < lanes; ++i) words[i] = (first + i) << 9 | (first * 2654435761u) >> 23;
    const WordVec changing = lanes_of(words), same = WordVec{} + fixed;
    const Two<WordVec> radii = {changing, same}, angles = {same, changing};
    const df::NormalPair<Two<Vec>> got = df::box_muller<Two<Vec>>(radii, angles);
    for (int i = 0; i < lanes; ++i) {
      const df::NormalPair<float> radius = defined(words[i], fixed);
      const df::NormalPair<float> angle = defined(fixed, words[i]);
      const df::NormalPair<float> alone = df::box_muller<float>(words[i], fixed);
      const df::NormalPair<float> turned = df::box_muller<float>(fixed, words[i]);
      differences += differ(got.first.first[i], radius.first) || differ(alone.first, radius.first);
      differences +=
          differ(got.second.first[i], radius.second) || differ(alone.second, radius.second);
      differences += differ(got.first.second[i], angle.first) || differ(turned.first, angle.first);
      differences +=
          differ(got.second.second[i], angle.second) || differ(turned.second, angle.second);
    }
  }
  return differences;
}

/// A GPU takes the root of a radius from a guess of 1 / sqrt(x), by the steps of
/// square_root_of_normal. How many of all radii come out wrong for some guess of this relative
/// error or less.
extern "C" int64_t probe_wrong_roots(double error) {
  int64_t wrong = 0;
  for (uint32_t cell = 0; cell < 1u << 23; ++cell) {
    const float x = df::minus_two_log(df::uniform_open<float>(cell << 9));
    const double truth = 1.0 / std::sqrt(static_cast<double>(x));
    const double least = truth * (1.0 - error), most = truth * (1.0 + error);
    for (float guess = static_cast<float>(least); guess <= most;
         guess = std::nextafter(guess, 2e9f)) {
      const float root = x * guess, rest = std::fma(-root, root, x);
      wrong += guess >= least && differ(std::fma(rest, 0.5f * guess, root), std::sqrt(x));
    }
  }
  return wrong;
}
