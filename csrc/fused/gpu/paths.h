// Whole paths on a GPU: plain data that Python fills in (bindings/problems.h) and paths.cu reads.
// No CUDA headers.
//
// A loss is four launches, in which a block computes a tile of samples with one network's
// weights in its shared memory, or one layer's after the other if there is less:
//   forward   the drift through all steps: states, drifts, activations
//   residuals the score at every state: residuals, costs, activations
//   score     backward through the score: its gradients in x, and deltas, written over slopes
//   backward  backward through the drift from x_N to x_0, likewise
// Gradients of the weights are products of deltas and activations over all rows, by a library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "../problem.h"

namespace diffflow {
namespace gpu {

/// Samples of a tile, and of a tile of scores.
constexpr int kTileRows = 16;
constexpr int kScoreRows = 32;
constexpr int kMaxHidden = 8;
/// The widest network: one warp for every 16 units.
constexpr int kMaxUnits = 256;

/// Rounding of factors of products between layers; sums are float32. Float32 factors are split into
/// two of TF32, of whose four products three are computed: errors are near those of float32.
enum class Products : int { kFloat32 = 0, kTf32 = 1, kBfloat16 = 2 };

/// Rows of activations, (depth + 1, times, samples, padded width), in bfloat16 or float32.
/// Backward kernels write deltas over the slopes, and sums of deltas over kTileRows samples each,
/// (depth + 1, times, sums, padded width).
struct Trace {
  void *values, *slopes;
  float* sums;
};

/// Paths of a batch, at first without their gradients.
struct PathsProblem {
  int64_t samples;
  int dim, num_steps;
  Mlp drift, score;        ///< of kMaxHidden layers at most
  const float *dt, *g;     ///< (num_steps), (num_steps + 1)
  NoiseSource noise;       ///< of step 0
  const float* x0;         ///< (samples, dim)
  float *states, *drifts;  ///< (num_steps + 1, samples, dim); drifts may be null
  float* residuals;        ///< (num_steps, samples, dim)
  float* costs;            ///< (num_steps, samples)
  Trace drift_trace;       ///< at times 0 to num_steps
  Trace score_trace;       ///< at times 1 to num_steps
  const float* weight;     ///< (samples), of the gradients
  float* cotangents_f;     ///< (num_steps + 1, samples, dim)
  float* cotangents_s;     ///< (num_steps, samples, dim)
  float* grad_scores;      ///< (num_steps, samples, dim): J_s^T of those
  float* grad_x0;          ///< (samples, dim)
  float* grad_g;           ///< (num_steps + 1, samples), or null
};

enum class Phase : int { kForward = 0, kResiduals = 1, kScore = 2, kBackward = 3 };

/// Width in whole units of a warp.
inline int padded_width(int width) { return (width + 15) / 16 * 16; }

/// The least shared memory of a block for one network, with one hidden layer's weights at a time.
size_t shared_bytes(int width, int depth, int dim, Products products);

/// Shared memory that a block of a device may have.
size_t shared_limit(int device);

/// The name of a device and of its architecture, for messages.
std::string card(int device);

/// Queues one phase in `stream`, a cudaStream_t. Throws std::runtime_error with CUDA's message if
/// the launch fails.
void run(Phase phase, Products products, const PathsProblem& problem, int device, void* stream);

}  // namespace gpu
}  // namespace diffflow
