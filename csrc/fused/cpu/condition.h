// A network at the times of a problem, for samples with a condition: a row for each of them, which
// is added to the embedding of every time.
#pragma once

#include "mlp.h"
#include "tiles.h"

namespace diffflow {
namespace DF_NAMESPACE {

/// The conditions of a tile, (tile, width) each; all null for a network without.
struct Condition {
  float *rows, *sum;  ///< the conditions, and their sums with the embedding of one time
  float* grad;        ///< the sum of gradients over all evaluations
};

DF_INLINE Condition carve_condition(Arena& arena, const Mlp& mlp, const PackedMlp& packed,
                                    int64_t tile, bool gradients) {
  Condition out{};
  if (mlp.weights.condition == nullptr) return out;
  out.rows = arena.take<float>(tile * packed.width);
  out.sum = arena.take<float>(tile * packed.width);
  if (gradients) out.grad = arena.take<float>(tile * packed.width);
  return out;
}

/// Copies the rows of a tile, and clears their gradients.
DF_INLINE void begin(const Condition& to, const Mlp& mlp, const PackedMlp& packed, const Rows& rows,
                     int64_t tile) {
  if (to.rows == nullptr) return;
  const float* from = mlp.weights.condition + rows.first * mlp.width;
  copy_rows(to.rows, packed.width, from, mlp.width, rows.count);
  repeat_first(to.rows, packed.width, rows.count, tile);
  if (to.grad != nullptr) memset(to.grad, 0, tile * packed.width * sizeof(float));
}

/// Writes the gradients of a tile's rows.
DF_INLINE void finish(const MlpTensors<float>& to, const Condition& from, const Mlp& mlp,
                      const PackedMlp& packed, const Rows& rows) {
  if (to.condition == nullptr) return;
  for (int64_t m = 0; m < rows.count; ++m) {
    memcpy(to.condition + (rows.first + m) * mlp.width, from.grad + m * packed.width,
           mlp.width * sizeof(float));
  }
}

/// out (rows, dim) = net(t_k, x); stores values and slopes of all layers.
DF_INLINE void evaluate_at(const PackedMlp& mlp, const Condition& condition, int64_t k,
                           int64_t rows, const float* x, const Activations& at, float* out,
                           const TileScratch& scratch) {
  const float* embedding = mlp.embedding + k * mlp.width;
  if (condition.rows == nullptr) return evaluate(mlp, embedding, 0, rows, x, at, out, scratch);
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t j = 0; j < mlp.width; j += kLanes) {
      const int64_t i = m * mlp.width + j;
      store(condition.sum + i, load(embedding + j) + load(condition.rows + i));
    }
  }
  evaluate(mlp, condition.sum, mlp.width, rows, x, at, out, scratch);
}

/// grad_x (rows, dim) = J^T cotangent for net(t_k, x); adds the gradients of the weights to `sums`.
DF_INLINE void pull_back_at(const PackedMlp& mlp, const Condition& condition, const MlpSums& sums,
                            int64_t k, int64_t rows, const float* x, const Activations& at,
                            const float* cotangent, float* grad_x, const TileScratch& scratch) {
  pull_back(mlp, sums, sums.embedding + k * mlp.width, rows, x, at, cotangent, grad_x, scratch);
  if (condition.grad != nullptr) add_block(condition.grad, scratch.delta, rows * mlp.width);
}

}  // namespace DF_NAMESPACE
}  // namespace diffflow
