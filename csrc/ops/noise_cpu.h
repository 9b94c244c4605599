// The normals of many quads at a time, on a CPU: the same operations as normals() in noise.h, for
// vectors whose lanes are quads.
#pragma once

#include "noise.h"
#include "simd.h"

namespace diffflow {
namespace DF_NAMESPACE {

/// Quads that are drawn at a time: two vectors, whose lanes are quads.
constexpr int kDrawn = 2 * kLanes;
using Words = Two<WordVec>;

/// Quads that follow one another in a batch, one in each lane.
struct QuadLanes {
  Words quad, sample;
  uint32_t per_sample, more_quads, more_samples;

  /// Quad `first` of the batch and those after it.
  DF_INLINE QuadLanes from(const Shape& shape, int64_t first) {
    const int64_t per_sample = shape.quads_per_sample();
    uint32_t quad = static_cast<uint32_t>(first % per_sample);
    uint32_t sample = static_cast<uint32_t>(first / per_sample);
    uint32_t quads[kDrawn], samples[kDrawn];
    for (int i = 0; i < kDrawn; ++i) {
      quads[i] = quad, samples[i] = sample;
      if (++quad == per_sample) quad = 0, ++sample;
    }
    const auto size = static_cast<uint32_t>(per_sample);
    QuadLanes out{{}, {}, size, kDrawn % size, kDrawn / size};
    memcpy(&out.quad, quads, sizeof(quads)), memcpy(&out.sample, samples, sizeof(samples));
    return out;
  }

  /// Moves on by as many quads as there are lanes.
  DF_HD void advance() {
    quad = quad + more_quads, sample = sample + more_samples;
    const auto beyond = quad >= per_sample;
    const Words wrapped = {(WordVec)beyond.first, (WordVec)beyond.second};
    quad = quad - (wrapped & per_sample);
    sample = sample - wrapped;  // which is -1 in lanes that begin another row
  }
};

DF_INLINE void put(const VecPair& pair, float* out) {
  memcpy(out, &pair.low, sizeof(Vec)), memcpy(out + kLanes, &pair.high, sizeof(Vec));
}

/// Writes four normals of each of kLanes quads in the order of their elements.
DF_INLINE void put_quads(const NormalPair<Vec>& low, const NormalPair<Vec>& high, float* out) {
  const VecPair even = interleave(low.first, high.first);
  const VecPair odd = interleave(low.second, high.second);
  put(interleave(even.low, odd.low), out);
  put(interleave(even.high, odd.high), out + 2 * kLanes);
}

/// Writes the normals of kDrawn quads in the order of their elements: four of each quad, or in rows
/// of one or two elements only those, for which one pair of normals is enough.
DF_INLINE void draw_lanes(const NoiseSource& source, NoiseNumbers numbers, const QuadLanes& at,
                          int64_t elements, float* out) {
  const PhiloxWords<Words> words = noise_words(source, numbers, at.quad, at.sample);
  if (elements <= 2) {
    const NormalPair<Two<Vec>> z = box_muller<Two<Vec>>(words.word[0], words.word[1]);
    if (elements == 2) {
      put(interleave(z.first.first, z.second.first), out);
      return put(interleave(z.first.second, z.second.second), out + 2 * kLanes);
    }
    memcpy(out, &z.first, sizeof(z.first));
    return;
  }
  const auto z =
      box_muller<Two<Two<Vec>>>({words.word[0], words.word[2]}, {words.word[1], words.word[3]});
  const auto &low = z.first, &high = z.second;
  put_quads({low.first.first, high.first.first}, {low.second.first, high.second.first}, out);
  put_quads({low.first.second, high.first.second}, {low.second.second, high.second.second},
            out + 4 * kLanes);
}

/// Offset of the first element of a quad of the batch.
DF_INLINE int64_t start_of(const Shape& shape, int64_t quad) {
  const int64_t per_sample = shape.quads_per_sample();
  return quad / per_sample * shape.elements + 4 * (quad % per_sample);
}

/// The normals of `count` quads of a batch from quad `first` on, without gaps between rows.
DF_INLINE void draw(const NoiseSource& source, const Shape& shape, int64_t first, int64_t count,
                    float* out) {
  const NoiseNumbers numbers = noise_numbers(source);
  const int64_t elements = shape.elements, per_sample = shape.quads_per_sample();
  const int64_t each = elements <= 2 ? elements : 4, last = elements - 4 * (per_sample - 1);
  const float* const end = out + start_of(shape, first + count) - start_of(shape, first);
  int64_t quad = first % per_sample;
  for (QuadLanes at = QuadLanes::from(shape, first); count > 0; count -= kDrawn, at.advance()) {
    alignas(64) float drawn[4 * kDrawn + 4];
    const bool in_place = last == each && count >= kDrawn;
    draw_lanes(source, numbers, at, elements, in_place ? out : drawn);
    if (in_place) {
      out += kDrawn * each;
      continue;
    }
    for (int i = 0; i < kDrawn && i < count; ++i) {
      const int64_t size = quad == per_sample - 1 ? last : each;
      if (end - out >= 4) {
        // What is too much is overwritten by the next quad.
        memcpy(out, drawn + each * i, 4 * sizeof(float));
      } else {
        for (int64_t j = 0; j < size; ++j) out[j] = drawn[each * i + j];
      }
      out += size;
      if (++quad == per_sample) quad = 0;
    }
  }
}

}  // namespace DF_NAMESPACE
}  // namespace diffflow
