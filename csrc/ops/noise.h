// The noise contract: a standard normal is a pure function of (seed, stream, purpose, step, sample,
// element). diffflow_ext/functional/noise.py documents it for users.
#pragma once

#include "../math/normal.h"
#include "quad.h"

namespace diffflow {

/// Identifies the draws of one step.
///   counter = (element / 4, global sample, step | purpose << 24, stream), key = seed
struct NoiseSource {
  uint64_t seed;
  uint32_t stream, purpose, step;
  uint32_t sample_offset;          ///< global index of the first sample of this call
  const int64_t* key_from_memory;  ///< {seed, stream}, or null: use the two fields above. A
                                   ///< captured CUDA graph reads fresh values at each replay.
};

struct NoiseNumbers {
  uint64_t seed;
  uint32_t stream;
};

DF_HD NoiseNumbers noise_numbers(const NoiseSource& source) {
  const int64_t* stored = source.key_from_memory;
  if (stored == nullptr) return {source.seed, source.stream};
  return {static_cast<uint64_t>(stored[0]), static_cast<uint32_t>(stored[1])};
}

DF_HD PhiloxWords noise_words(const NoiseSource& source, NoiseNumbers numbers, const Place& at) {
  const PhiloxWords counter = {{static_cast<uint32_t>(at.quad),
                                source.sample_offset + static_cast<uint32_t>(at.sample),
                                source.step | source.purpose << 24, numbers.stream}};
  return philox4x32_10(
      counter, {static_cast<uint32_t>(numbers.seed), static_cast<uint32_t>(numbers.seed >> 32)});
}

/// The draws of another step for the same purpose.
DF_HD NoiseSource at_step(NoiseSource source, int64_t step) {
  source.step = static_cast<uint32_t>(step);
  return source;
}

/// The normals of a quad. Words 0, 1 give elements 0, 1 and words 2, 3 give elements 2, 3.
template <typename T>
DF_HD Quad<T> normals(const NoiseSource& source, const Place& at) {
  const PhiloxWords words = noise_words(source, noise_numbers(source), at);
  const NormalPair low = box_muller(words.word[0], words.word[1]);
  Quad<T> out = {{T(low.first), T(low.second), T(0), T(0)}};
  if (at.count > 2) {
    const NormalPair high = box_muller(words.word[2], words.word[3]);
    out.value[2] = T(high.first);
    out.value[3] = T(high.second);
  }
  return out;
}

/// Quads that a CPU draws at a time.
constexpr int kDrawn = 16;

/// The normals of `count` quads, kDrawn at most: the same operations as normals(), in loops that
/// compilers turn into vectors.
template <typename T>
DF_HD void draw_quads(const NoiseSource& source, const Place* at, int count, Quad<T>* out) {
  const NoiseNumbers numbers = noise_numbers(source);
  uint32_t words[4][kDrawn];
  float z[4][kDrawn];
  for (int i = 0; i < kDrawn; ++i) {
    const PhiloxWords drawn = noise_words(source, numbers, at[i < count ? i : 0]);
    for (int j = 0; j < 4; ++j) words[j][i] = drawn.word[j];
  }
  for (int half = 0; half < 4; half += 2) {
    for (int i = 0; i < kDrawn; ++i) {
      const NormalPair pair = box_muller(words[half][i], words[half + 1][i]);
      z[half][i] = pair.first, z[half + 1][i] = pair.second;
    }
  }
  for (int i = 0; i < count; ++i) {
    for (int j = 0; j < 4; ++j) out[i].value[j] = j < 2 || at[i].count > 2 ? T(z[j][i]) : T(0);
  }
}

}  // namespace diffflow
