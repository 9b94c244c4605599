// The four kernels of paths.h.
#define DF_NAMESPACE gpu
#define DF_LANES 1
#include "../../math/sde_step.h"
#include "../../ops/loop_cuda.cuh"
#include "layers.cuh"

namespace diffflow {
namespace gpu {

constexpr int kMaxThreads = 2 * kMaxUnits;

/// Samples of a tile; rows after the last sample repeat the first and are not stored.
struct Tile {
  int64_t first;
  int rows;

  DF_HD int64_t sample(int row) const { return first + (row < rows ? row : 0); }
};

template <class Factors>
DF_INLINE Tile tile_of(const PathsProblem& p, int64_t number) {
  const int64_t first = number * Factors::kRows, left = p.samples - first;
  return {first, left < Factors::kRows ? static_cast<int>(left) : Factors::kRows};
}

DF_HD int64_t tiles_of(const PathsProblem& p, int rows) { return (p.samples + rows - 1) / rows; }

DF_INLINE StepScalars<float> scalars(const PathsProblem& p, int step, int g_at) {
  return {p.dt[step], square_root(p.dt[step]), p.g[g_at]};
}

/// Offset of state k of a sample in (times, samples, dim).
DF_INLINE int64_t state_at(const PathsProblem& p, int64_t k, int64_t sample) {
  return (k * p.samples + sample) * p.dim;
}

template <class Factors>
DF_INLINE TileTrace trace_of(const PathsProblem& p, const Trace& trace, const Layers& at, int times,
                             int k, const Tile& tile) {
  const int words = at.units / Factors::kPerWord;
  const bool stored = trace.values != nullptr;
  const size_t tiles = tiles_of(p, kTileRows),
               row = stored ? k * tiles + tile.first / kTileRows : 0;
  const size_t start = stored ? (static_cast<size_t>(k) * p.samples + tile.first) * words : 0;
  return {static_cast<uint32_t*>(trace.values) + start,
          static_cast<uint32_t*>(trace.slopes) + start,
          trace.sums + row * at.units,
          static_cast<size_t>(times) * p.samples * words,
          times * tiles * at.units,
          words,
          tile.rows,
          stored};
}

/// Calls `run(i, row, component)` for the numbers of a tile's state, shared among the threads.
template <class Factors, class Run>
DF_INLINE void for_state(const PathsProblem& p, const Run& run) {
  for (int i = threadIdx.x; i < Factors::kRows * p.dim; i += blockDim.x) {
    run(i, i / p.dim, i % p.dim);
  }
}

/// Draws the noise of `ahead` steps, a quad for each thread: that of step first + sign * j into
/// slot j. The caller's next barrier is before it is read.
template <class Factors>
DF_INLINE void draw_noise(const PathsProblem& p, const Layers& at, const Tile& tile, int first,
                          int sign) {
  const Shape shape = {p.samples, p.dim};
  const int quads = (p.dim + 3) / 4, rows = Factors::kRows;
  for (int i = threadIdx.x; i < at.size.ahead * rows * quads; i += blockDim.x) {
    const int slot = i / (rows * quads), row = i / quads % rows;
    const int step = first + sign * slot;
    if (step < 0 || step >= p.num_steps) continue;
    const Place place = place_at(tile.sample(row), i % quads, shape, false);
    const Quad<float> noise = normals<float>(at_step(p.noise, step), place);
    float* const to = at.noise + (slot * rows + row) * p.dim + 4 * static_cast<int>(place.quad);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j < place.count) to[j] = noise.value[j];
    }
  }
}

template <class Factors>
DF_INLINE Layers layers(const Mlp& net, const Sizes& sizes, Way way) {
  DF_DYNAMIC_SHARED(uint32_t, memory);
  Layers at;
  carve(&at, memory, sizes);
  load<Factors>(at, net, way);
  return at;
}

/// A tile through all steps: x_{k+1} from x_k and the drift there.
template <class Factors>
__global__ void __launch_bounds__(kMaxThreads, 1) forward_kernel(PathsProblem p, Sizes sizes) {
  const Layers at = layers<Factors>(p.drift, sizes, Way::kForward);
  const Tile tile = tile_of<Factors>(p, blockIdx.x);
  const int ahead = at.size.ahead;
  for_state<Factors>(p, [&](int i, int row, int component) {
    at.in[i] = p.x0[state_at(p, 0, tile.sample(row)) + component];
  });
  __syncthreads();
  for (int k = 0;; ++k) {
    for_state<Factors>(p, [&](int i, int row, int component) {
      if (row < tile.rows) p.states[state_at(p, k, tile.first + row) + component] = at.in[i];
    });
    // The last drift is needed only if drifts are stored.
    if (k == p.num_steps && p.drifts == nullptr) break;
    if (k % ahead == 0) draw_noise<Factors>(p, at, tile, k, 1);
    const StepScalars<float> step = k < p.num_steps ? scalars(p, k, k) : StepScalars<float>{};
    evaluate<Factors>(at, p.drift, p.drift.weights.embedding + k * p.drift.width,
                      trace_of<Factors>(p, p.drift_trace, at, p.num_steps + 1, k, tile));
    const float* const noise = at.noise + k % ahead * Factors::kRows * p.dim;
    for_state<Factors>(p, [&](int i, int row, int component) {
      if (p.drifts != nullptr && row < tile.rows) {
        p.drifts[state_at(p, k, tile.first + row) + component] = at.out[i];
      }
      if (k < p.num_steps) at.in[i] = em_step(at.in[i], at.out[i], noise[i], step);
    });
    if (k == p.num_steps) break;
    __syncthreads();
  }
}

/// Scores at all states but the first, with residuals and costs.
template <class Factors>
__global__ void __launch_bounds__(kMaxThreads, 1) residuals_kernel(PathsProblem p, Sizes sizes) {
  const Layers at = layers<Factors>(p.score, sizes, Way::kForward);
  const int64_t tiles = tiles_of(p, Factors::kRows);
  for (int64_t number = blockIdx.x; number < tiles * p.num_steps; number += gridDim.x) {
    const int k = 1 + static_cast<int>(number / tiles);
    const Tile tile = tile_of<Factors>(p, number % tiles);
    const StepScalars<float> step = scalars(p, k - 1, k);
    // All that is read from far away is read at once.
    for_state<Factors>(p, [&](int i, int row, int component) {
      const int64_t here = state_at(p, k, tile.sample(row)) + component;
      at.in[i] = p.states[here];
      at.total[i] = p.states[state_at(p, k - 1, tile.sample(row)) + component];
      at.carry[i] = p.drifts[here];
    });
    __syncthreads();
    evaluate<Factors>(at, p.score, p.score.weights.embedding + k * p.score.width,
                      trace_of<Factors>(p, p.score_trace, at, p.num_steps, k - 1, tile));
    for_state<Factors>(p, [&](int i, int row, int component) {
      const float s = at.out[i];
      const float r = backward_residual(at.total[i], at.in[i], at.carry[i], s, step);
      at.total[i] = 0.5f * r * r;
      at.carry[i] = residual_cost_grad_g(r, s, step);
      if (row < tile.rows) p.residuals[state_at(p, k - 1, tile.first + row) + component] = r;
    });
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < tile.rows) {
      const int row = threadIdx.x;
      float cost = 0.0f, by_g = 0.0f;
      for (int j = 0; j < p.dim; ++j) {
        cost += at.total[row * p.dim + j];
        by_g += at.carry[row * p.dim + j];
      }
      p.costs[(k - 1) * p.samples + tile.first + row] = cost;
      if (p.grad_g != nullptr) p.grad_g[k * p.samples + tile.first + row] = by_g;
    }
    __syncthreads();
  }
}

/// c r / (g sqrt(dt)), see adjoint_terms.
DF_INLINE float scaled_residual(const PathsProblem& p, const StepScalars<float>& step, int64_t at,
                                int64_t sample) {
  return p.weight[sample] / (step.g * step.sqrt_dt) * p.residuals[at];
}

/// Gradients of the scores, which depend only on states.
template <class Factors>
__global__ void __launch_bounds__(kMaxThreads, 1) score_kernel(PathsProblem p, Sizes sizes) {
  const Layers at = layers<Factors>(p.score, sizes, Way::kBackward);
  const int64_t tiles = tiles_of(p, Factors::kRows);
  for (int64_t number = blockIdx.x; number < tiles * p.num_steps; number += gridDim.x) {
    const int k = 1 + static_cast<int>(number / tiles);
    const Tile tile = tile_of<Factors>(p, number % tiles);
    const TileTrace trace = trace_of<Factors>(p, p.score_trace, at, p.num_steps, k - 1, tile);
    const auto slopes = Slopes<Factors>::of(trace, at.depth);
    const StepScalars<float> step = scalars(p, k - 1, k);
    for_state<Factors>(p, [&](int i, int row, int component) {
      const int64_t sample = tile.sample(row), place = state_at(p, k - 1, sample) + component;
      const float q = scaled_residual(p, step, place, sample);
      at.in[i] = adjoint_terms(q, 0.0f, 0.0f, step.dt, 0.0f, step.g).cotangent_s;
      if (row < tile.rows) p.cotangents_s[place] = at.in[i];
    });
    __syncthreads();
    pull_back<Factors>(at, p.score, slopes, trace);
    for_state<Factors>(p, [&](int i, int row, int component) {
      if (row >= tile.rows) return;
      p.grad_scores[state_at(p, k - 1, tile.first + row) + component] = at.out[i];
    });
    __syncthreads();
  }
}

/// g_k also scales the noise of the step k -> k + 1: adds sqrt(dt) total . noise to the part of the
/// residual, which is multiplied by the sample's weight. Ends with a barrier.
template <class Factors>
DF_INLINE void add_noise_part(const PathsProblem& p, const Layers& at, const Tile& tile, int k) {
  const int done = p.num_steps - 1 - k, ahead = at.size.ahead;
  if (done % ahead == 0) {
    draw_noise<Factors>(p, at, tile, k, -1);
    __syncthreads();
  }
  if (static_cast<int>(threadIdx.x) < tile.rows) {
    const int row = threadIdx.x;
    const float* const noise = at.noise + (done % ahead * Factors::kRows + row) * p.dim;
    float sum = 0.0f;
    for (int j = 0; j < p.dim; ++j) sum += at.total[row * p.dim + j] * noise[j];
    p.grad_g[k * p.samples + tile.first + row] += square_root(p.dt[k]) * sum;
  }
  __syncthreads();
}

/// A tile from x_N to x_0: dL/dx_k in `total` from dL/dx_{k+1}.
template <class Factors>
__global__ void __launch_bounds__(kMaxThreads, 1) backward_kernel(PathsProblem p, Sizes sizes) {
  const Layers at = layers<Factors>(p.drift, sizes, Way::kBackward);
  const Tile tile = tile_of<Factors>(p, blockIdx.x);
  for_state<Factors>(p, [&](int i, int row, int component) {
    const int64_t sample = tile.sample(row);
    at.total[i] = p.weight[sample] * p.states[state_at(p, p.num_steps, sample) + component];
    at.carry[i] = 0.0f;
  });
  if (p.grad_g != nullptr && static_cast<int>(threadIdx.x) < tile.rows) {
    const int64_t sample = tile.first + threadIdx.x;
    p.grad_g[sample] = 0.0f;
    for (int k = 1; k <= p.num_steps; ++k) p.grad_g[k * p.samples + sample] *= p.weight[sample];
  }
  __syncthreads();
  for (int k = p.num_steps; k >= 0; --k) {
    if (p.grad_g != nullptr && k < p.num_steps) add_noise_part<Factors>(p, at, tile, k);
    const TileTrace trace = trace_of<Factors>(p, p.drift_trace, at, p.num_steps + 1, k, tile);
    const auto slopes = Slopes<Factors>::of(trace, at.depth);
    const float dt_next = k < p.num_steps ? p.dt[k] : 0.0f;
    const StepScalars<float> step = k > 0 ? scalars(p, k - 1, k) : StepScalars<float>{};
    for_state<Factors>(p, [&](int i, int row, int component) {
      const int64_t sample = tile.sample(row), before = state_at(p, k - 1, sample) + component;
      // State 0 has no residual, and no score.
      const float q = k > 0 ? scaled_residual(p, step, before, sample) : 0.0f;
      const float grad_score = k > 0 ? p.grad_scores[before] : 0.0f;
      const AdjointTerms<float> terms =
          adjoint_terms(q, at.carry[i], at.total[i], step.dt, dt_next, step.g);
      at.in[i] = terms.cotangent_f, at.total[i] = terms.local + grad_score, at.carry[i] = q;
      if (row < tile.rows) p.cotangents_f[state_at(p, k, sample) + component] = terms.cotangent_f;
    });
    __syncthreads();
    pull_back<Factors>(at, p.drift, slopes, trace);
    for_state<Factors>(p, [&](int i, int, int) { at.total[i] += at.out[i]; });
    __syncthreads();
  }
  for_state<Factors>(p, [&](int i, int row, int component) {
    if (row < tile.rows) p.grad_x0[state_at(p, 0, tile.first + row) + component] = at.total[i];
  });
}

// --- launches ------------------------------------------------------------------------------------

/// Words of noise that a block draws ahead, unless a step needs more.
constexpr int kNoiseWords = 512;

/// What a block of a kernel has. Scores, which do not depend on one another, have large tiles; only
/// paths have noise, drawn `ahead` of it about a quad for each thread.
Sizes sizes_of(const Mlp& net, int dim, Products products, int rows, bool streamed, bool ahead) {
  const int units = padded_width(net.width), quads = rows * ((dim + 3) / 4);
  const int steps = ahead ? std::min(2 * units / quads, kNoiseWords / (rows * dim)) : 1;
  return {units,
          net.depth,
          dim,
          products == Products::kBfloat16 ? 2 : 1,
          rows,
          streamed ? std::min(net.depth, 1) : net.depth,
          rows == kTileRows ? std::max(steps, 1) : 0};
}

size_t bytes_of(const Sizes& sizes) { return sizeof(uint32_t) * carve(nullptr, nullptr, sizes); }

size_t shared_bytes(int width, int depth, int dim, Products products) {
  Mlp net = {};
  net.width = width, net.depth = depth;
  size_t most = 0;
  for (const int rows : {kTileRows, kScoreRows}) {
    most = std::max(most, bytes_of(sizes_of(net, dim, products, rows, true, false)));
  }
  return most;
}

/// The sizes for a device: weights are streamed where those of all layers do not fit a block.
Sizes sizes_on(int device, const Mlp& net, int dim, Products products, int rows) {
  const size_t limit = shared_limit(device);
  for (const bool streamed : {false, true}) {
    for (const bool ahead : {true, false}) {
      const Sizes sizes = sizes_of(net, dim, products, rows, streamed, ahead);
      if (bytes_of(sizes) <= limit) return sizes;
    }
  }
  return sizes_of(net, dim, products, rows, true, false);
}

size_t shared_limit(int device) {
  int bytes = 0;
  cuda::check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
              "cudaDeviceGetAttribute");
  return static_cast<size_t>(bytes);
}

std::string card(int device) {
  cudaDeviceProp properties;
  cuda::check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return std::string(properties.name) + " (sm_" + std::to_string(properties.major) +
         std::to_string(properties.minor) + ")";
}

struct Launch {
  const PathsProblem& problem;
  int device;
  cudaStream_t stream;
  Products products;
};

typedef void (*Kernel)(PathsProblem, Sizes);

/// As many blocks as run at a time: each is for many tiles, for which it loads weights once.
int64_t blocks_at_a_time(const Launch& at, Kernel kernel, unsigned threads, size_t bytes) {
  int multiprocessors = 0, blocks = 0;
  cuda::check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, at.device),
              "cudaDeviceGetAttribute");
  cuda::check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel,
                                                            static_cast<int>(threads), bytes),
              "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  return int64_t{multiprocessors} * std::max(blocks, 1);
}

/// Launches a kernel of one network: a block for each tile of paths, or in a loop for the tiles of
/// scores at all times.
void launch(const Launch& at, const Mlp& net, Kernel kernel, int rows) {
  const PathsProblem& p = at.problem;
  const Sizes sizes = sizes_on(at.device, net, p.dim, at.products, rows);
  const size_t bytes = bytes_of(sizes);
  cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(bytes)),
              "cudaFuncSetAttribute");
  const unsigned threads = 2 * sizes.units;
  int64_t blocks = tiles_of(p, rows);
  if (rows == kScoreRows) {
    blocks = std::min(blocks * p.num_steps, blocks_at_a_time(at, kernel, threads, bytes));
  }
  DF_LAUNCH((kernel), cuda::blocks_for(blocks, 1), threads, bytes, at.stream, p, sizes);
  cuda::check(cudaGetLastError(), "kernel launch");
}

template <class Factors>
void run_phase(Phase phase, const Launch& at) {
  typedef Tiled<Factors, 1> Path;
  typedef Tiled<Factors, kScoreRows / kTileRows> Score;
  const PathsProblem& p = at.problem;
  switch (phase) {
    case Phase::kForward:
      return launch(at, p.drift, forward_kernel<Path>, Path::kRows);
    case Phase::kResiduals:
      return launch(at, p.score, residuals_kernel<Score>, Score::kRows);
    case Phase::kScore:
      return launch(at, p.score, score_kernel<Score>, Score::kRows);
    case Phase::kBackward:
      return launch(at, p.drift, backward_kernel<Path>, Path::kRows);
  }
}

void run(Phase phase, Products products, const PathsProblem& problem, int device, void* stream) {
  const cuda::DeviceGuard guard(device);
  const Launch at = {problem, device, static_cast<cudaStream_t>(stream), products};
  switch (products) {
    case Products::kFloat32:
      return run_phase<Float32Factors>(phase, at);
    case Products::kTf32:
      return run_phase<Tf32Factors>(phase, at);
    case Products::kBfloat16:
      return run_phase<Bfloat16Factors>(phase, at);
  }
}

}  // namespace gpu
}  // namespace diffflow
