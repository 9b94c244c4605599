// Tiles of samples: their rows, the memory that threads work in, and the loop over all tiles.
//
// Samples are independent, so a tile needs only the weights, which stay in the cache. Sums over
// tiles are taken in the order of the tiles: results depend on the size of a tile, but not on the
// number of threads.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include "../../ops/noise_cpu.h"
#include "../problem.h"
#include "arena.h"
#include "matrix_tiles.h"

namespace diffflow {
namespace DF_NAMESPACE {

DF_INLINE int this_thread() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

DF_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/// Samples [first, first + count) of the batch; further rows of the tile are padding.
struct Rows {
  int64_t first, count;
};

template <typename Problem>
DF_INLINE Rows rows_of(const Problem& p, int64_t tile) {
  const int64_t first = tile * p.work.tile, left = p.samples - first;
  return {first, left < p.work.tile ? left : p.work.tile};
}

/// Rows after the last sample repeat the first, so that they overflow only if it does.
DF_INLINE void repeat_first(float* rows, int64_t row, int64_t count, int64_t tile) {
  for (int64_t m = count; m < tile; ++m) memcpy(rows + m * row, rows, row * sizeof(float));
}

template <typename Problem>
DF_INLINE void copy_in(float* to, const float* from, const Problem& p, const Rows& rows) {
  memcpy(to, from + rows.first * p.dim, rows.count * p.dim * sizeof(float));
  repeat_first(to, p.dim, rows.count, p.work.tile);
}

template <typename Problem>
DF_INLINE void copy_out(float* to, const float* from, const Problem& p, const Rows& rows) {
  if (to == nullptr) return;
  memcpy(to + rows.first * p.dim, from, rows.count * p.dim * sizeof(float));
}

DF_INLINE void add_block(float* to, const float* from, int64_t count) {
  const int64_t whole = count / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) store(to + i, load(to + i) + load(from + i));
  for (int64_t i = whole; i < count; ++i) to[i] += from[i];
}

/// The normals of a step for a tile, (tile, dim).
template <typename Problem>
static void draw(const Problem& p, int64_t step, const Rows& rows, float* out) {
  const Shape shape = {p.samples, p.dim};
  const int64_t per_sample = shape.quads_per_sample();
  draw(at_step(p.noise, step), shape, rows.first * per_sample, rows.count * per_sample, out);
  repeat_first(out, p.dim, rows.count, p.work.tile);
}

// --- memory and threads --------------------------------------------------------------------------

/// Bytes of scratch memory: the shared part, and the scratch of each thread.
template <class CarveShared, class CarveScratch>
static int64_t bytes_of(const Work& work, const CarveShared& carve_shared,
                        const CarveScratch& carve_scratch) {
  Arena arena(nullptr);
  const auto shared = carve_shared(arena);
  for (int i = 0; i < work.threads; ++i) carve_scratch(arena, shared);
  return static_cast<int64_t>(arena.next()) + 64;
}

/// The scratch of this thread; those of the threads follow one another.
template <class CarveScratch>
static auto own_scratch(Arena arena, const CarveScratch& carve_scratch) {
  auto scratch = carve_scratch(arena);
  for (int i = this_thread(); i > 0; --i) scratch = carve_scratch(arena);
  return scratch;
}

/// Calls `run(scratch, rows)` for all tiles. `arena` is positioned at the first of them.
template <class Problem, class CarveScratch, class Run>
static void for_tiles(const Problem& p, const Arena& arena, const CarveScratch& carve_scratch,
                      const Run& run) {
  const int64_t tiles = (p.samples + p.work.tile - 1) / p.work.tile;
#pragma omp parallel num_threads(p.work.threads)
  {
    const TileShapes shapes;
    const auto scratch = own_scratch(arena, carve_scratch);
#pragma omp for schedule(static, 1)
    for (int64_t i = 0; i < tiles; ++i) run(scratch, rows_of(p, i));
  }
}

/// The same, and calls `add(scratch, rows)` for one tile after the other, in their order.
template <class Problem, class CarveScratch, class Run, class Add>
static void for_tiles(const Problem& p, const Arena& arena, const CarveScratch& carve_scratch,
                      const Run& run, const Add& add) {
  const int64_t tiles = (p.samples + p.work.tile - 1) / p.work.tile;
#pragma omp parallel num_threads(p.work.threads)
  {
    const TileShapes shapes;
    const auto scratch = own_scratch(arena, carve_scratch);
#pragma omp for ordered schedule(static, 1)
    for (int64_t i = 0; i < tiles; ++i) {
      run(scratch, rows_of(p, i));
#pragma omp ordered
      add(scratch, rows_of(p, i));
    }
  }
}

}  // namespace DF_NAMESPACE
}  // namespace diffflow
