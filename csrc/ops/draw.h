// The normals of many quads at a time, on a CPU: the same operations as normals() in noise.h, for
// vectors whose lanes are quads.
#pragma once

#include "noise.h"
#include "simd.h"

namespace diffflow {
namespace DF_NAMESPACE {

/// Quads that follow one another in a batch, one in each lane.
struct QuadLanes {
  WordVec quad, sample;
  uint32_t per_sample;

  /// Quad `first` of the batch and those after it.
  DF_INLINE QuadLanes from(const Shape& shape, int64_t first) {
    const int64_t per_sample = shape.quads_per_sample();
    uint32_t quad = static_cast<uint32_t>(first % per_sample);
    uint32_t sample = static_cast<uint32_t>(first / per_sample);
    QuadLanes out{{}, {}, static_cast<uint32_t>(per_sample)};
    for (int i = 0; i < kLanes; ++i) {
      out.quad[i] = quad, out.sample[i] = sample;
      if (++quad == out.per_sample) quad = 0, ++sample;
    }
    return out;
  }

  /// Moves on by as many quads as there are lanes.
  DF_INLINE void advance(QuadLanes* at) {
    at->quad += kLanes % at->per_sample;
    at->sample += kLanes / at->per_sample;
    const WordVec beyond = (WordVec)(at->quad >= at->per_sample);
    at->quad -= beyond & at->per_sample;
    at->sample -= beyond;  // which is -1 in lanes that begin another row
  }
};

/// Writes the normals of kLanes quads in the order of their elements: four of each quad, or in rows
/// of one or two elements only those, for which one pair of normals is enough.
DF_INLINE void draw_lanes(const NoiseSource& source, NoiseNumbers numbers, const QuadLanes& at,
                          int64_t elements, float* out) {
  const PhiloxWords<WordVec> words = noise_words(source, numbers, at.quad, at.sample);
  const NormalPair<Vec> low = box_muller<Vec>(words.word[0], words.word[1]);
  if (elements <= 2) {
    const VecPair both = interleave(low.first, low.second);
    memcpy(out, elements == 1 ? &low.first : &both.low, sizeof(Vec));
    if (elements == 2) memcpy(out + kLanes, &both.high, sizeof(Vec));
    return;
  }
  const NormalPair<Vec> high = box_muller<Vec>(words.word[2], words.word[3]);
  const VecPair even = interleave(low.first, high.first);
  const VecPair odd = interleave(low.second, high.second);
  const VecPair parts[2] = {interleave(even.low, odd.low), interleave(even.high, odd.high)};
  memcpy(out, parts, sizeof(parts));
}

/// The normals of `count` quads of a batch from quad `first` on, without gaps between rows.
DF_INLINE void draw(const NoiseSource& source, const Shape& shape, int64_t first, int64_t count,
                    float* out) {
  const NoiseNumbers numbers = noise_numbers(source);
  const int64_t elements = shape.elements, per_sample = shape.quads_per_sample();
  const bool equal = elements <= 2 || elements % 4 == 0;
  const int64_t each = elements <= 2 ? elements : 4, last = elements - 4 * (per_sample - 1);
  QuadLanes at = QuadLanes::from(shape, first);
  int64_t quad = first % per_sample;
  for (; count > 0; count -= kLanes, QuadLanes::advance(&at)) {
    if (equal && count >= kLanes) {
      draw_lanes(source, numbers, at, elements, out);
      out += kLanes * each;
      continue;
    }
    alignas(64) float drawn[4 * kLanes];
    draw_lanes(source, numbers, at, elements, drawn);
    for (int i = 0; i < kLanes && i < count; ++i) {
      const int64_t size = quad == per_sample - 1 ? last : each;
      for (int64_t j = 0; j < size; ++j) out[j] = drawn[each * i + j];
      out += size;
      if (++quad == per_sample) quad = 0;
    }
  }
}

}  // namespace DF_NAMESPACE
}  // namespace diffflow
