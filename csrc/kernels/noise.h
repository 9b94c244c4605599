// The noise contract: a standard normal is a pure function of (seed, stream, purpose, step, sample,
// element) and of nothing else. See NoiseKey in noise.py for what users may rely on.
#pragma once

#include "../math/normal.h"
#include "quad.h"

namespace diffflow {

/// Names the draws of one kernel call.
///   counter = (element / 4, global sample, step | purpose << 24, stream), key = seed
struct NoiseSource {
  uint64_t seed;
  uint32_t stream;
  uint32_t step_and_purpose;
  uint32_t sample_offset;          ///< global index of the first sample of this call
  const int64_t* key_from_memory;  ///< {seed, stream}, or null: use the two fields above. A
                                   ///< captured CUDA graph reads fresh values at each replay.
};

DF_HD PhiloxWords noise_words(const NoiseSource& source, const Place& at) {
  const bool stored = source.key_from_memory != nullptr;
  const uint64_t seed = stored ? static_cast<uint64_t>(source.key_from_memory[0]) : source.seed;
  const uint32_t stream = stored ? static_cast<uint32_t>(source.key_from_memory[1]) : source.stream;
  const PhiloxWords counter = {{static_cast<uint32_t>(at.quad),
                                source.sample_offset + static_cast<uint32_t>(at.sample),
                                source.step_and_purpose, stream}};
  return philox4x32_10(counter, {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
}

/// The normals of a quad. Words 0, 1 give elements 0, 1 and words 2, 3 give elements 2, 3.
template <typename T>
DF_HD Quad<T> normals(const NoiseSource& source, const Place& at) {
  const PhiloxWords words = noise_words(source, at);
  const NormalPair low = box_muller(words.word[0], words.word[1]);
  Quad<T> out = {{T(low.first), T(low.second), T(0), T(0)}};
  if (at.count > 2) {
    const NormalPair high = box_muller(words.word[2], words.word[3]);
    out.value[2] = T(high.first);
    out.value[3] = T(high.second);
  }
  return out;
}

}  // namespace diffflow
