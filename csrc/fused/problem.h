// What the engines are asked to do, as plain data: the one header that they share with the
// bindings.
#pragma once

#include <cstdint>

namespace diffflow {

/// Activations with an engine; the codes are those of diffflow_ext/trajectory.py.
enum class Activation : int { kGelu = 0, kSilu = 1, kTanh = 2 };

/// Parameters of one perceptron, or room for their gradients; row-major as torch has them.
///
///   h_0 = act(embedding_k + input x),  h_l = act(hidden_l h_{l-1} + hidden_bias_l),
///   value = output h_depth + output_bias
template <typename T>
struct MlpTensors {
  T* embedding;     ///< (times, width), the bias of the input layer included
  T* input;         ///< (width, dim)
  T* output;        ///< (dim, width)
  T* output_bias;   ///< (dim)
  T** hidden;       ///< depth of (width, width)
  T** hidden_bias;  ///< depth of (width)
};

struct Mlp {
  int64_t width, depth;
  Activation activation;
  MlpTensors<const float> weights;
};

/// Paths of a batch and what is wanted of them. Null pointers stand for what is not wanted.
struct TrajectoryProblem {
  int64_t samples, dim, num_steps;
  Mlp drift, score;
  const float* dt;  ///< (num_steps)
  const float* g;   ///< (num_steps + 1)
  uint64_t seed;
  uint32_t stream, purpose, sample_offset;
  int64_t tile;   ///< samples that go through all steps together
  bool keep;      ///< whether a tile keeps the drift's activations of all states
  int threads;    ///< at most
  void* scratch;  ///< of scratch_bytes
};

/// Forward paths: their states, their loss, and the gradients of its weighted sum.
struct LossOutputs {
  const float* weight;  ///< (samples) of the gradients, or null for none of them
  const float* x0;      ///< (samples, dim)
  float* cost;          ///< (samples): -log N(x_N; 0, I) + sum 1/2 |delta_b|^2
  float* states;        ///< (num_steps + 1, samples, dim)
  float* last;          ///< (samples, dim)
  MlpTensors<float> grad_drift, grad_score;  ///< null embeddings: no gradients of the weights
  float* grad_x0;                            ///< (samples, dim)
  double* grad_g;                            ///< (num_steps + 1)
};

/// The step into the data.
enum class LastStep : int { kNoisy = 0, kMean = 1, kTweedie = 2 };

/// Reverse paths from states at the noise end.
struct SampleOutputs {
  const float* last;  ///< (samples, dim)
  float stochasticity;
  LastStep last_step;
  float* first;   ///< (samples, dim)
  float* states;  ///< (num_steps + 1, samples, dim)
};

/// |target - net(t, x)|^2 / dim, each sample at one of `times` times: the mlp's embedding has as
/// many rows.
struct RegressionProblem {
  int64_t samples, dim, times;
  Mlp mlp;
  int64_t tile;
  int threads;
  void* scratch;
  const int64_t* time_of;   ///< (samples)
  const float *x, *target;  ///< (samples, dim)
  const float* weight;      ///< (samples) of the gradients, or null for none
  float* cost;              ///< (samples)
  MlpTensors<float> grads;
  float* grad_x;  ///< (samples, dim)
};

/// dx/dt = v = c_x x + sum_n c_n net_n(t, x) in explicit Runge-Kutta steps whose stages use only
/// the one before, and the integral of div v along the way. Embeddings have `times` rows.
struct FlowProblem {
  int64_t samples, dim, num_steps, num_stages, times;
  int num_nets;  ///< 1 or 2
  Mlp nets[2];
  const int64_t* time_of;      ///< (num_steps, num_stages)
  const double* lengths;       ///< (num_steps, num_stages, 2): the stage's part of the step, and
                               ///< from the step's start to the next stage
  const double* coefficients;  ///< (times, 3): c_x, c_1, c_2
  int64_t probes;              ///< of Hutchinson's estimate; 0 for the exact divergence
  uint64_t seed;
  uint32_t stream, purpose, sample_offset;
  int64_t tile;
  int threads;
  void* scratch;
  const float* start;  ///< (samples, dim)
  float* end;          ///< (samples, dim)
  float* states;       ///< of the start; the next one lies `states_row` floats on, or null
  int64_t states_row;
  double* change;  ///< (samples), or null where no divergence is wanted
};

/// Parameters of a time embedding, or room for their gradients.
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
  int64_t tile;
  int threads;
  void* scratch;
  float* kept;        ///< for the way back: (whole tiles, 4, tile, width padded), or null
  float* embeddings;  ///< (samples, width)
  const float* grad;  ///< of the embeddings, (samples, width): back with what was kept
  EmbeddingTensors<float> grads;
};

/// One engine a set of instructions.
struct Engine {
  const char* name;
  int64_t (*scratch_bytes)(const TrajectoryProblem& problem, bool gradients);
  void (*loss)(const TrajectoryProblem& problem, const LossOutputs& outputs);
  void (*sample)(const TrajectoryProblem& problem, const SampleOutputs& outputs);
  int64_t (*regression_scratch_bytes)(const RegressionProblem& problem, bool gradients);
  void (*regression)(const RegressionProblem& problem);
  int64_t (*flow_scratch_bytes)(const FlowProblem& problem);
  void (*flow)(const FlowProblem& problem);
  int64_t (*embedding_scratch_bytes)(const EmbeddingProblem& problem);
  void (*embedding)(const EmbeddingProblem& problem);
};

const Engine& engine_portable();
#ifdef DIFFFLOW_X86
const Engine& engine_avx2();
const Engine& engine_avx512();
const Engine& engine_avx512bf16();
#endif

}  // namespace diffflow
