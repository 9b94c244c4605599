// Input and output of the compiled engines: plain data that Python fills in (bindings/problems.h).
// Null pointers stand for results that are not wanted.
#pragma once

#include <cstdint>

#include "../ops/noise.h"

namespace diffflow {

enum class Activation : int { kGelu = 0, kSilu = 1, kTanh = 2 };

/// The most hidden layers of a perceptron after its first one.
constexpr int kMaxDepth = 16;

/// Parameters of one perceptron, or memory for their gradients; row-major as torch has them.
///
///   h_0 = act(embedding_k + condition_b + input x),  h_l = act(hidden_l h_{l-1} + hidden_bias_l),
///   value = output h_depth + output_bias
template <typename T>
struct MlpTensors {
  T* embedding;               ///< (times, width), the bias of the input layer included
  T* input;                   ///< (width, dim)
  T* output;                  ///< (dim, width)
  T* output_bias;             ///< (dim)
  T* hidden[kMaxDepth];       ///< depth of (width, width)
  T* hidden_bias[kMaxDepth];  ///< depth of (width)
  T* condition;               ///< (samples, width), what a context adds; null for none
};

struct Mlp {
  int width, depth;  ///< depth counts the hidden layers
  Activation activation;
  MlpTensors<const float> weights;
};

/// Tiles, threads and scratch memory of a call on the CPU.
struct Work {
  int64_t tile;   ///< samples that go through all steps together
  int threads;    ///< at most
  void* scratch;  ///< of as many bytes as the engine says that the problem takes
};

/// The step into the data.
enum class LastStep : int { kNoisy = 0, kMean = 1, kTweedie = 2 };

/// Paths of a batch. Forward: from x0 to x_last, with the loss, and with weights the gradients of
/// its weighted sum. Reverse: from x_last to x0.
struct PathsProblem {
  int64_t samples, dim, num_steps;
  Mlp drift, score;
  const float* dt;    ///< (num_steps)
  const float* g;     ///< (num_steps + 1)
  NoiseSource noise;  ///< of step 0
  Work work;
  float* x0;      ///< (samples, dim)
  float* x_last;  ///< (samples, dim)
  float* states;  ///< (num_steps + 1, samples, dim)

  float* cost;            ///< (samples): -log N(x_N; 0, I) + sum 1/2 |delta_b|^2
  const float* weight;    ///< (samples) of the gradients
  bool keep_activations;  ///< whether a tile keeps the drift's activations of all states
  MlpTensors<float> grad_drift, grad_score;  ///< null embeddings: no gradients of the weights
  float* grad_x0;                            ///< (samples, dim)
  double* grad_g;                            ///< (num_steps + 1)

  float stochasticity;
  LastStep last_step;
};

/// |target - net(t, x)|^2 / dim, each sample at one of `times` times: the mlp's embedding has as
/// many rows.
struct RegressionProblem {
  int64_t samples, dim, times;
  Mlp mlp;
  Work work;
  const int64_t* time_of;   ///< (samples)
  const float *x, *target;  ///< (samples, dim)
  float* cost;              ///< (samples)
  const float* weight;      ///< (samples) of the gradients
  MlpTensors<float> grads;
  float* grad_x;  ///< (samples, dim)
};

/// dx/dt = v = c_x x + sum_n c_n net_n(t, x) in explicit Runge-Kutta steps whose stages use only
/// the one before, and the integral of div v along the path. Embeddings have `times` rows.
struct OdeProblem {
  static constexpr int kMaxNets = 2;
  int64_t samples, dim, num_steps, num_stages, times;
  int num_nets;
  Mlp nets[kMaxNets];
  const int64_t* time_of;      ///< (num_steps, num_stages)
  const double* lengths;       ///< (num_steps, num_stages, 2): the stage's part of the step, and
                               ///< from the step's start to the next stage
  const double* coefficients;  ///< (times, 3): c_x, c_1, c_2
  int64_t probes;              ///< of Hutchinson's estimate; 0 for the exact divergence
  NoiseSource noise;           ///< of the first probe
  Work work;
  const float* start;     ///< (samples, dim)
  float* end;             ///< (samples, dim)
  float* states;          ///< of the start; the next one lies `states_stride` floats on
  int64_t states_stride;  ///< negative where the equation is solved back in time
  double* change;         ///< (samples): the integral of the divergence
};

/// Parameters of a time embedding, or memory for their gradients.
template <typename T>
struct EmbeddingTensors {
  T* phase;       ///< (width)
  T* first;       ///< (width, 2 width)
  T* first_bias;  ///< (width)
  T* second;      ///< (width, width)
  T* constant;    ///< (width)
};

/// second act(first [sin a, cos a] + first_bias) + constant, a = scale t frequencies + phase, at as
/// many times t as there are samples.
struct EmbeddingProblem {
  int64_t samples, width;
  Activation activation;
  float scale;
  const float *times, *frequencies;  ///< (samples), (width)
  EmbeddingTensors<const float> weights;
  Work work;
  float* activations;  ///< for the way back: (whole tiles, 4, tile, width padded)
  float* embeddings;   ///< (samples, width)
  const float* grad;   ///< of the embeddings, (samples, width): back with the activations
  EmbeddingTensors<float> grads;
};

/// The engines compiled for one set of instructions, or why the compiler failed.
struct Instructions {
  const char* name;
  const char* left_out;  ///< null, or the compiler's error: then there are no functions
  int64_t (*paths_scratch_bytes)(const PathsProblem& problem, bool gradients);
  void (*run_paths)(const PathsProblem& problem);
  void (*run_reverse_paths)(const PathsProblem& problem);
  int64_t (*regression_scratch_bytes)(const RegressionProblem& problem, bool gradients);
  void (*run_regression)(const RegressionProblem& problem);
  int64_t (*ode_scratch_bytes)(const OdeProblem& problem);
  void (*run_ode)(const OdeProblem& problem);
  int64_t (*embedding_scratch_bytes)(const EmbeddingProblem& problem);
  void (*run_embedding)(const EmbeddingProblem& problem);
};

const Instructions& portable_instructions();
#ifdef DIFFFLOW_X86
const Instructions& avx2_instructions();
const Instructions& avx512_instructions();
const Instructions& avx512bf16_instructions();
const Instructions& amxbf16_instructions();
#endif

}  // namespace diffflow
