// Runs bodies on the CPU with OpenMP. Results depend neither on the number of threads nor on the
// set of instructions: a source names one by DF_NAMESPACE and DF_LANES before it
// includes this file.
#pragma once

#include "block.h"
#include "bodies.h"
#include "noise_cpu.h"
#include "sum_order.h"

namespace diffflow {
namespace DF_NAMESPACE {

/// With fewer quads a parallel region costs more than it saves.
constexpr int64_t kParallelQuads = 2048;
/// Quads that are worked on at a time: their noise and their terms stay in the nearest cache.
constexpr int64_t kChunk = kBlock;

DF_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/// Draws the noise of some quads if a body needs it.
template <class Body>
DF_INLINE void draw_for(const Body& body, const Shape& shape, int64_t first, int64_t count,
                        float* out) {
  if constexpr (HasNoise<Body>::value) {
    if (body.draws()) return draw(body.noise, shape, first, count, out);
    for (int64_t i = 0; i < 4 * count; ++i) out[i] = 0.0f;
  }
}

/// Runs a body on one block; `noise` holds the normals of its elements.
template <class Body, class Scalars, int size>
DF_INLINE auto run_block(const Body& body, const Scalars& scalars, const Block<size>& at,
                         const float* noise) {
  if constexpr (HasNoise<Body>::value) {
    using T = typename TypeOf<Body>::type;
    typename VectorOf<float, size>::Type drawn;
    memcpy(&drawn, noise, sizeof(drawn));
    return body.apply(at, scalars,
                      __builtin_convertvector(drawn, typename VectorOf<T, size>::Type));
  } else {
    return body.apply(at, scalars);
  }
}

/// Runs a body on `count` quads, kChunk at most, from quad `first` on. Calls `take(i, run)` for
/// each block, where i counts elements and run() returns what the body does.
template <class Body, class Take>
DF_INLINE void run_quads(const Body& body, const Shape& shape, int64_t first, int64_t count,
                         const Take& take) {
  constexpr int size = 4 * kLanes / sizeof(typename TypeOf<Body>::type);
  const int64_t begin = start_of(shape, first), total = start_of(shape, first + count) - begin;
  const auto scalars = body.scalars();
  alignas(64) float noise[4 * kChunk + kLanes];
  draw_for(body, shape, first, count, noise);
  const int64_t row = shape.elements, sample = begin / row;
  Block<size> at = {begin, size, row, sample, (sample + 1) * row - begin};
  int64_t i = 0;
  for (; i + size <= total; i += size, at.advance()) {
    const Block<size> whole = {at.offset, size, row, at.sample, at.left};
    take(i, [&] { return run_block(body, scalars, whole, noise + i); });
  }
  if (i == total) return;
  at.count = static_cast<int>(total - i);
  take(i, [&] { return run_block(body, scalars, at, noise + i); });
}

template <class Body>
static void for_each(const Body& body, const Shape& shape) {
  const int64_t total = shape.quads(), chunks = (total + kChunk - 1) / kChunk;
#pragma omp parallel for schedule(static) if (total > kParallelQuads)
  for (int64_t i = 0; i < chunks; ++i) {
    const int64_t first = i * kChunk, end = smaller(total, first + kChunk);
    if constexpr (std::is_same_v<Body, PhiloxBlocks>) {
      for (int64_t at = first; at < end; at += kLanes) body.template run<WordVec>(at, end - at);
    } else if constexpr (std::is_same_v<Body, Normal<float>>) {
      draw(body.noise, shape, first, end - first, body.out + start_of(shape, first));
    } else {
      run_quads(body, shape, first, end - first, [](int64_t, const auto& run) { run(); });
    }
  }
}

// --- sums ----------------------------------------------------------------------------------------

/// Folds lanes in halves, as a warp's butterfly does.
template <int lanes, typename T>
DF_INLINE T fold(T* sums) {
  for (int i = 0; i < lanes / 2; ++i) sums[i] += sums[i + lanes / 2];
  if constexpr (lanes > 2) {
    return fold<lanes / 2>(sums);
  } else {
    return sums[0];
  }
}

template <typename T>
DF_INLINE T fold(T* sums, int lanes) {
  switch (lanes) {
    case 32:
      return fold<32>(sums);
    case 16:
      return fold<16>(sums);
    case 8:
      return fold<8>(sums);
    case 4:
      return fold<4>(sums);
    case 2:
      return fold<2>(sums);
    default:
      return sums[0];
  }
}

/// The terms of all elements of up to kChunk quads, without gaps.
template <class Body>
struct ChunkTerms {
  alignas(64) typename Body::Sum value[Body::kTerms][4 * kChunk + kLanes];
};

template <class Body>
DF_INLINE void fill(const Body& body, const Shape& shape, int64_t first, int64_t count,
                    ChunkTerms<Body>* terms) {
  run_quads(body, shape, first, count, [&](int64_t i, const auto& run) {
    const auto found = run();
    for (int k = 0; k < Body::kTerms; ++k) {
      memcpy(terms->value[k] + i, &found.value[k], sizeof(found.value[k]));
    }
  });
}

/// The part of a quad of `count` elements.
template <class Body, class Scalars>
DF_INLINE auto part_of(const Body& body, const Scalars& scalars, int64_t sample,
                       const ChunkTerms<Body>& terms, int64_t start, int64_t count) {
  Quad<typename Body::Sum> quad[Body::kTerms] = {};
  for (int k = 0; k < Body::kTerms; ++k) {
    for (int64_t i = 0; i < count; ++i) quad[k].value[i] = terms.value[k][start + i];
  }
  return body.part(scalars, sample, quad);
}

/// Adds the parts of a row's quads, whose elements begin at `start`, to the sums of the lanes.
template <class Body, class Scalars, typename T>
DF_INLINE void add_parts(const Body& body, const Scalars& scalars, int64_t sample,
                         const ChunkTerms<Body>& terms, int64_t start, int64_t elements, int lanes,
                         T* sums) {
  T parts[kChunk];
  const int64_t whole = elements / 4, left = elements % 4;
  for (int64_t q = 0; q < whole; ++q) {
    parts[q] = part_of(body, scalars, sample, terms, start + 4 * q, 4);
  }
  if (left > 0) parts[whole] = part_of(body, scalars, sample, terms, start + 4 * whole, left);
  const int64_t count = whole + (left > 0);
  for (int64_t q = 0; q < count; q += lanes) {
    const int64_t turn = smaller(lanes, count - q);
    for (int64_t i = 0; i < turn; ++i) sums[i] += parts[q + i];
  }
}

/// Sums rows of up to kChunk quads, which together have no more.
template <class Body>
DF_INLINE void sum_rows(const Body& body, const Shape& shape, int64_t first, int64_t count) {
  using T = typename Body::Sum;
  const int64_t per_sample = shape.quads_per_sample();
  const int lanes = num_lanes(per_sample);
  const auto scalars = body.scalars();
  ChunkTerms<Body> terms;
  if (per_sample > 0) fill(body, shape, first * per_sample, count * per_sample, &terms);
  for (int64_t i = 0; i < count; ++i) {
    T sums[kWarp] = {};
    add_parts(body, scalars, first + i, terms, i * shape.elements, shape.elements, lanes, sums);
    body.finish(first + i, fold(sums, lanes));
  }
}

/// The sum of one segment of a longer row, which has kBlock lanes.
template <class Body>
DF_INLINE auto segment_sum(const Body& body, const Shape& shape, int64_t sample, int64_t segment) {
  using T = typename Body::Sum;
  const int64_t per_sample = shape.quads_per_sample();
  const auto scalars = body.scalars();
  ChunkTerms<Body> terms;
  T sums[kBlock] = {};
  const int64_t end = smaller((segment + 1) * kSegmentQuads, per_sample);
  for (int64_t quad = segment * kSegmentQuads; quad < end; quad += kChunk) {
    const int64_t count = smaller(kChunk, end - quad);
    fill(body, shape, sample * per_sample + quad, count, &terms);
    const int64_t elements = smaller(4 * count, shape.elements - 4 * quad);
    add_parts(body, scalars, sample, terms, 0, elements, kBlock, sums);
  }
  T sum = fold<kWarp>(sums);
  for (int first = kWarp; first < kBlock; first += kWarp) sum += fold<kWarp>(sums + first);
  return sum;
}

/// `partials` has room for samples * num_segments sums; unused when a row is one segment.
template <class Body>
static void reduce(const Body& body, const Shape& shape, typename Body::Sum* partials) {
  const int64_t per_sample = shape.quads_per_sample(), segments = num_segments(per_sample);
  if (per_sample <= kChunk) {
    const int64_t rows = per_sample > 0 ? kChunk / per_sample : kChunk;
    const int64_t groups = (shape.samples + rows - 1) / rows;
#pragma omp parallel for schedule(static) if (shape.quads() > kParallelQuads)
    for (int64_t i = 0; i < groups; ++i) {
      sum_rows(body, shape, i * rows, smaller(rows, shape.samples - i * rows));
    }
    return;
  }
#pragma omp parallel for schedule(static) if (shape.quads() > kParallelQuads)
  for (int64_t i = 0; i < shape.samples * segments; ++i) {
    const auto sum = segment_sum(body, shape, i / segments, i % segments);
    if (segments == 1) {
      body.finish(i, sum);
    } else {
      partials[i] = sum;
    }
  }
  for (int64_t sample = 0; segments > 1 && sample < shape.samples; ++sample) {
    auto sum = partials[sample * segments];
    for (int64_t i = 1; i < segments; ++i) sum += partials[sample * segments + i];
    body.finish(sample, sum);
  }
}

}  // namespace DF_NAMESPACE
}  // namespace diffflow
