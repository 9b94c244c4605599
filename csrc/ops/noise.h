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

/// `quad` and `sample`, counted from the call's first one, of one quad or of a vector of quads.
/// Step and purpose are added because a GPU shifts and adds at once; a step has 24 bits.
template <class Word>
DF_HD PhiloxWords<Word> noise_words(const NoiseSource& source, NoiseNumbers numbers, Word quad,
                                    Word sample) {
  const PhiloxWords<Word> counter = {{quad, sample + source.sample_offset,
                                      Word{} + (source.step + (source.purpose << 24)),
                                      Word{} + numbers.stream}};
  const PhiloxKey<uint32_t> key = {static_cast<uint32_t>(numbers.seed),
                                   static_cast<uint32_t>(numbers.seed >> 32)};
  return philox4x32_10(counter, key);
}

/// The draws of another step for the same purpose.
DF_HD NoiseSource at_step(NoiseSource source, int64_t step) {
  source.step = static_cast<uint32_t>(step);
  return source;
}

/// The normals of a quad. Words 0, 1 give elements 0, 1 and words 2, 3 give elements 2, 3.
template <typename T>
DF_HD Quad<T> normals(const NoiseSource& source, const Place& at) {
  const PhiloxWords<uint32_t> words =
      noise_words(source, noise_numbers(source), static_cast<uint32_t>(at.quad),
                  static_cast<uint32_t>(at.sample));
  const NormalPair<float> low = box_muller<float>(words.word[0], words.word[1]);
  Quad<T> out = {{T(low.first), T(low.second), T(0), T(0)}};
  if (at.count > 2) {
    const NormalPair<float> high = box_muller<float>(words.word[2], words.word[3]);
    out.value[2] = T(high.first);
    out.value[3] = T(high.second);
  }
  return out;
}

}  // namespace diffflow
