// The one order in which per-sample sums are taken, on every device and for any number of threads.
//
// A row is cut into segments of kSegmentQuads quads. Within a segment, lane l of L adds quads
// l, l + L, l + 2L, ... one after the other; lanes are then folded in halves within groups of up to
// 32 (a warp), groups one after the other. Segments are added one after the other.
#pragma once

#include "quad.h"

namespace diffflow {

constexpr int kWarp = 32;
constexpr int kBlock = 256;
constexpr int64_t kSegmentQuads = 8 * kBlock;
/// Rows of up to this many quads are summed by one warp or a part of it, longer ones by a block.
constexpr int64_t kWarpQuads = 8 * kWarp;

DF_HD int64_t num_segments(int64_t quads_per_sample) {
  const int64_t segments = (quads_per_sample + kSegmentQuads - 1) / kSegmentQuads;
  return segments > 1 ? segments : 1;
}

/// Lanes that share a row: the smallest power of two that covers it, at most a warp; or a block.
DF_HD int num_lanes(int64_t quads_per_sample) {
  if (quads_per_sample > kWarpQuads) return kBlock;
  int lanes = 1;
  while (lanes < kWarp && lanes < quads_per_sample) lanes *= 2;
  return lanes;
}

/// What a reduction sums: one or more values of each element, 0 past the row's end.
template <class Values, int count>
struct Terms {
  Values value[count];
};

/// The two ways to add the terms of a quad.
template <typename T>
DF_HD T in_order(const Quad<T>& q) {
  return T(0) + q.value[0] + q.value[1] + q.value[2] + q.value[3];
}
template <typename T>
DF_HD T in_pairs(const Quad<T>& q) {
  return (q.value[0] + q.value[1]) + (q.value[2] + q.value[3]);
}

/// Terms of elements past the row's end become 0.
template <typename T>
DF_HD Quad<T> inside(const Place& at, Quad<T> terms) {
  for (int i = 0; i < 4; ++i) terms.value[i] = i < at.count ? terms.value[i] : T(0);
  return terms;
}

/// Sums the quads of one lane. `partial_of(quad)` returns a quad's part.
template <typename T, class PartialOf>
DF_HD T lane_sum(int64_t segment, int lane, int lanes, int64_t quads_per_sample,
                 const PartialOf& partial_of) {
  const int64_t end_of_segment = (segment + 1) * kSegmentQuads;
  const int64_t end = end_of_segment < quads_per_sample ? end_of_segment : quads_per_sample;
  T sum = T(0);
  for (int64_t quad = segment * kSegmentQuads + lane; quad < end; quad += lanes) {
    sum += partial_of(quad);
  }
  return sum;
}

}  // namespace diffflow
