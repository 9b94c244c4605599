// Runs bodies on the CPU with OpenMP. Results do not depend on the number of threads.
#pragma once

#include <algorithm>

#include "sum_order.h"

namespace diffflow {
namespace cpu {

/// With fewer quads a parallel region costs more than it saves.
constexpr int64_t kParallelQuads = 2048;

/// Runs a body on quads that follow one another, kDrawn at most.
template <class Body>
void run_quads(const Body& body, const Place* at, int count) {
  if constexpr (HasNoise<Body>::value) {
    Quad<typename TypeOf<Body>::type> eps[kDrawn] = {};
    if (body.draws()) draw_quads(body.noise, at, count, eps);
    for (int i = 0; i < count; ++i) body.apply(at[i], eps[i]);
  } else {
    for (int i = 0; i < count; ++i) body(at[i]);
  }
}

template <class Body>
void for_each(const Body& body, const Shape& shape, bool aligned) {
  constexpr int64_t kChunk = 512;
  const int64_t per_sample = shape.quads_per_sample(), total = shape.quads();
  const int64_t chunks = (total + kChunk - 1) / kChunk;
#pragma omp parallel for schedule(static) if (total > kParallelQuads)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    int64_t sample = chunk * kChunk / per_sample, quad = chunk * kChunk % per_sample;
    const int64_t end = std::min(total, (chunk + 1) * kChunk);
    for (int64_t index = chunk * kChunk; index < end; index += kDrawn) {
      Place at[kDrawn];
      const int count = static_cast<int>(std::min<int64_t>(kDrawn, end - index));
      for (int i = 0; i < count; ++i) {
        at[i] = place_at(sample, quad, shape, aligned);
        if (++quad == per_sample) quad = 0, ++sample;
      }
      run_quads(body, at, count);
    }
  }
}

/// Folds lanes in halves, as a warp's butterfly does.
template <typename T>
T fold(T* lane_sums, int lanes) {
  for (int half = lanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lane_sums[lane] += lane_sums[lane + half];
  }
  return lane_sums[0];
}

template <class Body>
typename Body::Sum segment_sum(const Body& body, const Shape& shape, int64_t sample,
                               int64_t segment, bool aligned) {
  using T = typename Body::Sum;
  const int64_t per_sample = shape.quads_per_sample();
  const int lanes = num_lanes(per_sample);
  T sums[kBlock];
  for (int lane = 0; lane < lanes; ++lane) {
    sums[lane] = lane_sum<T>(segment, lane, lanes, per_sample, [&](int64_t quad) {
      return body(place_at(sample, quad, shape, aligned));
    });
  }
  T sum = fold(sums, std::min(lanes, kWarp));
  for (int first = kWarp; first < lanes; first += kWarp) sum += fold(sums + first, kWarp);
  return sum;
}

/// `partials` has room for samples * num_segments sums; unused when a row is one segment.
template <class Body>
void reduce(const Body& body, const Shape& shape, bool aligned, typename Body::Sum* partials) {
  using T = typename Body::Sum;
  const int64_t segments = num_segments(shape.quads_per_sample());
  const bool parallel = shape.quads() > kParallelQuads;
  if (segments == 1) {
#pragma omp parallel for schedule(static) if (parallel)
    for (int64_t sample = 0; sample < shape.samples; ++sample) {
      body.finish(sample, segment_sum(body, shape, sample, 0, aligned));
    }
    return;
  }
#pragma omp parallel for schedule(static) if (parallel)
  for (int64_t index = 0; index < shape.samples * segments; ++index) {
    partials[index] = segment_sum(body, shape, index / segments, index % segments, aligned);
  }
  for (int64_t sample = 0; sample < shape.samples; ++sample) {
    T sum = partials[sample * segments];
    for (int64_t i = 1; i < segments; ++i) sum += partials[sample * segments + i];
    body.finish(sample, sum);
  }
}

}  // namespace cpu
}  // namespace diffflow
