// The loss of models that predict noise: a perceptron with one time for each sample, against a
// target, with the same tiles as paths.
#pragma once

#include "mlp.h"
#include "tiles.h"

namespace diffflow {
namespace DF_NAMESPACE {

/// Weights and sums of one network; each tile copies the embeddings of its samples.
struct RegressionShared {
  PackedMlp mlp;
  MlpSums sums;
  float* sums_begin;
  int64_t num_sums;
};

struct RegressionScratch {
  Activations at;
  TileScratch inside;
  float* embedding;  ///< (tile, width)
  float *x, *value, *cotangent, *grad_x;
  MlpSums sums;
  float* sums_begin;
};

DF_INLINE RegressionShared carve_regression(Arena& arena, const RegressionProblem& p,
                                            bool gradients) {
  RegressionShared out;
  out.mlp = carve_weights(arena, p.mlp, p.dim, 0);
  if (gradients) {
    out.sums_begin = arena.take_part<float>(0);
    out.sums = carve_sums(arena, out.mlp, 0);
    out.num_sums = (arena.next() - reinterpret_cast<uintptr_t>(out.sums_begin)) / sizeof(float);
    arena.wall();
  }
  return out;
}

DF_INLINE RegressionScratch carve_regression_scratch(Arena& arena, const RegressionProblem& p,
                                                     const RegressionShared& shared,
                                                     bool gradients) {
  const int64_t width = shared.mlp.width, state = p.work.tile * p.dim;
  RegressionScratch out;
  out.at = carve_activations(arena, shared.mlp, p.work.tile, 1);
  out.inside = carve_tile_scratch(arena, p.work.tile, width, shared.mlp.outer);
  out.embedding = arena.take<float>(p.work.tile * width);
  float** const parts[] = {&out.x, &out.value, &out.cotangent, &out.grad_x};
  for (float** part : parts) *part = arena.take<float>(state);
  if (gradients) {
    out.sums_begin = arena.take_part<float>(0);
    out.sums = carve_sums(arena, shared.mlp, 0);
  }
  return out;
}

static int64_t regression_scratch_bytes(const RegressionProblem& p, bool gradients) {
  return bytes_of(
      p.work, [&](Arena& arena) { return carve_regression(arena, p, gradients); },
      [&](Arena& arena, const RegressionShared& shared) {
        carve_regression_scratch(arena, p, shared, gradients);
      });
}

static void regression_tile(const RegressionProblem& p, const RegressionShared& shared,
                            const RegressionScratch& scratch, const Rows& rows) {
  const PackedMlp& mlp = shared.mlp;
  const int64_t width = mlp.width, narrow = p.mlp.width;
  memset(scratch.cotangent, 0, p.work.tile * p.dim * sizeof(float));
  memcpy(scratch.x, p.x + rows.first * p.dim, rows.count * p.dim * sizeof(float));
  for (int64_t m = 0; m < rows.count; ++m) {
    const float* embedding = p.mlp.weights.embedding + p.time_of[rows.first + m] * narrow;
    copy_rows(scratch.embedding + m * width, width, embedding, narrow, 1);
    if (p.mlp.weights.condition == nullptr) continue;
    add_block(scratch.embedding + m * width, p.mlp.weights.condition + (rows.first + m) * narrow,
              narrow);
  }
  repeat_first(scratch.x, p.dim, rows.count, p.work.tile);
  repeat_first(scratch.embedding, width, rows.count, p.work.tile);
  evaluate(mlp, scratch.embedding, width, p.work.tile, scratch.x, scratch.at, scratch.value,
           scratch.inside);
  for (int64_t m = 0; m < rows.count; ++m) {
    const int64_t sample = rows.first + m;
    float square = 0;
    const float scale = p.weight != nullptr ? 2.0f * p.weight[sample] / p.dim : 0.0f;
    for (int64_t j = 0; j < p.dim; ++j) {
      const float error = scratch.value[m * p.dim + j] - p.target[sample * p.dim + j];
      square += error * error;
      scratch.cotangent[m * p.dim + j] = scale * error;
    }
    p.cost[sample] = square / p.dim;
  }
  if (p.weight == nullptr) return;
  memset(scratch.sums_begin, 0, shared.num_sums * sizeof(float));
  pull_back(mlp, scratch.sums, nullptr, p.work.tile, scratch.x, scratch.at, scratch.cotangent,
            scratch.grad_x, scratch.inside);
  if (p.grad_x != nullptr) {
    memcpy(p.grad_x + rows.first * p.dim, scratch.grad_x, rows.count * p.dim * sizeof(float));
  }
}

/// Adds a tile's gradients; scratch.delta holds those of its embeddings, and of its conditions.
static void add_regression(const RegressionProblem& p, const RegressionShared& shared,
                           const RegressionScratch& scratch, const Rows& rows) {
  add_block(shared.sums_begin, scratch.sums_begin, shared.num_sums);
  for (int64_t m = 0; m < rows.count; ++m) {
    const float* delta = scratch.inside.delta + m * shared.mlp.width;
    add_block(p.grads.embedding + p.time_of[rows.first + m] * p.mlp.width, delta, p.mlp.width);
    if (p.grads.condition == nullptr) continue;
    memcpy(p.grads.condition + (rows.first + m) * p.mlp.width, delta, p.mlp.width * sizeof(float));
  }
}

static void run_regression(const RegressionProblem& p) {
  const bool gradients = p.weight != nullptr;
  Arena arena(p.work.scratch);
  const RegressionShared shared = carve_regression(arena, p, gradients);
  pack_weights(shared.mlp, p.mlp, 0);
  if (gradients) {
    memset(shared.sums_begin, 0, shared.num_sums * sizeof(float));
    memset(p.grads.embedding, 0, p.times * p.mlp.width * sizeof(float));
  }
  for_tiles(
      p, arena, [&](Arena& own) { return carve_regression_scratch(own, p, shared, gradients); },
      [&](const RegressionScratch& scratch, const Rows& rows) {
        regression_tile(p, shared, scratch, rows);
      },
      [&](const RegressionScratch& scratch, const Rows& rows) {
        if (gradients) add_regression(p, shared, scratch, rows);
      });
  if (gradients) unpack_sums(p.grads, shared.sums, shared.mlp, p.mlp, 0);
}

}  // namespace DF_NAMESPACE
}  // namespace diffflow
