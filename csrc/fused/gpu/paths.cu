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

DF_INLINE Tile tile_of(const PathsProblem& p, int64_t number) {
  const int64_t first = number * kTileRows, left = p.samples - first;
  return {first, left < kTileRows ? static_cast<int>(left) : kTileRows};
}

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
  const size_t start = (static_cast<size_t>(k) * p.samples + tile.first) * words;
  uint32_t* const values = static_cast<uint32_t*>(trace.values);
  uint32_t* const slopes = static_cast<uint32_t*>(trace.slopes);
  return {values == nullptr ? nullptr : values + start,
          slopes == nullptr ? nullptr : slopes + start,
          static_cast<size_t>(times) * p.samples * words, words, tile.rows};
}

/// Calls `run(i, row, component)` for the numbers of a tile's state, shared among the threads.
template <class Run>
DF_INLINE void for_state(const PathsProblem& p, const Run& run) {
  for (int i = threadIdx.x; i < kTileRows * p.dim; i += blockDim.x) run(i, i / p.dim, i % p.dim);
}

/// Calls `run(row, quad, normals)` for the noise of a step.
template <class Run>
DF_INLINE void for_noise(const PathsProblem& p, int step, const Tile& tile, const Run& run) {
  const NoiseSource source = at_step(p.noise, step);
  const Shape shape = {p.samples, p.dim};
  const int quads = (p.dim + 3) / 4;
  for (int i = threadIdx.x; i < kTileRows * quads; i += blockDim.x) {
    const Place at = place_at(tile.sample(i / quads), i % quads, shape, false);
    run(i / quads, at, normals<float>(source, at));
  }
}

template <class Factors>
DF_INLINE Layers layers(const Mlp& net, int dim, Way way) {
  DF_DYNAMIC_SHARED(uint32_t, memory);
  Layers at;
  carve(&at, memory, static_cast<int>(blockDim.x) / 2, net.depth, dim, Factors::kPerWord);
  load<Factors>(at, net, way);
  return at;
}

/// A tile through all steps: x_{k+1} from x_k and the drift there.
template <class Factors>
__global__ void __launch_bounds__(kMaxThreads, 1) forward_kernel(PathsProblem p) {
  const Layers at = layers<Factors>(p.drift, p.dim, Way::kForward);
  const Tile tile = tile_of(p, blockIdx.x);
  for_state(p, [&](int i, int row, int component) {
    at.in[i] = p.x0[state_at(p, 0, tile.sample(row)) + component];
  });
  __syncthreads();
  for (int k = 0;; ++k) {
    for_state(p, [&](int i, int row, int component) {
      if (row < tile.rows) p.states[state_at(p, k, tile.first + row) + component] = at.in[i];
    });
    // The last drift is needed only if drifts are stored.
    if (k == p.num_steps && p.drifts == nullptr) break;
    evaluate<Factors>(at, p.drift, p.drift.weights.embedding + k * p.drift.width,
                      trace_of<Factors>(p, p.drift_trace, at, p.num_steps + 1, k, tile));
    for_state(p, [&](int i, int row, int component) {
      if (p.drifts == nullptr || row >= tile.rows) return;
      p.drifts[state_at(p, k, tile.first + row) + component] = at.out[i];
    });
    if (k == p.num_steps) break;
    const StepScalars<float> step = scalars(p, k, k);
    for_noise(p, k, tile, [&](int row, const Place& place, const Quad<float>& noise) {
      for (int j = 0; j < place.count; ++j) {
        const int i = row * p.dim + 4 * static_cast<int>(place.quad) + j;
        at.in[i] = em_step(at.in[i], at.out[i], noise.value[j], step);
      }
    });
    __syncthreads();
  }
}

/// Scores at all states but the first, with residuals and costs.
template <class Factors>
__global__ void __launch_bounds__(kMaxThreads, 1) residuals_kernel(PathsProblem p, int64_t tiles) {
  const Layers at = layers<Factors>(p.score, p.dim, Way::kForward);
  for (int64_t number = blockIdx.x; number < tiles * p.num_steps; number += gridDim.x) {
    const int k = 1 + static_cast<int>(number / tiles);
    const Tile tile = tile_of(p, number % tiles);
    for_state(p, [&](int i, int row, int component) {
      at.in[i] = p.states[state_at(p, k, tile.sample(row)) + component];
    });
    __syncthreads();
    evaluate<Factors>(at, p.score, p.score.weights.embedding + k * p.score.width,
                      trace_of<Factors>(p, p.score_trace, at, p.num_steps, k - 1, tile));
    const StepScalars<float> step = scalars(p, k - 1, k);
    for_state(p, [&](int i, int row, int component) {
      const int64_t here = state_at(p, k, tile.sample(row)) + component;
      const int64_t before = state_at(p, k - 1, tile.sample(row)) + component;
      const float s = at.out[i];
      const float r = backward_residual(p.states[before], at.in[i], p.drifts[here], s, step);
      at.total[i] = 0.5f * r * r;
      at.carry[i] = residual_cost_grad_g(r, s, step);
      if (row < tile.rows) p.residuals[before] = r;
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
__global__ void __launch_bounds__(kMaxThreads, 1) score_kernel(PathsProblem p, int64_t tiles) {
  const Layers at = layers<Factors>(p.score, p.dim, Way::kBackward);
  for (int64_t number = blockIdx.x; number < tiles * p.num_steps; number += gridDim.x) {
    const int k = 1 + static_cast<int>(number / tiles);
    const Tile tile = tile_of(p, number % tiles);
    const StepScalars<float> step = scalars(p, k - 1, k);
    for_state(p, [&](int i, int row, int component) {
      const int64_t sample = tile.sample(row), place = state_at(p, k - 1, sample) + component;
      const float q = scaled_residual(p, step, place, sample);
      at.in[i] = adjoint_terms(q, 0.0f, 0.0f, step.dt, 0.0f, step.g).cotangent_s;
      if (row < tile.rows) p.cotangents_s[place] = at.in[i];
    });
    __syncthreads();
    pull_back<Factors>(at, trace_of<Factors>(p, p.score_trace, at, p.num_steps, k - 1, tile));
    for_state(p, [&](int i, int row, int component) {
      if (row >= tile.rows) return;
      p.grad_scores[state_at(p, k - 1, tile.first + row) + component] = at.out[i];
    });
    __syncthreads();
  }
}

/// g_k also scales the noise of the step k -> k + 1: adds sqrt(dt) total . noise to the part of the
/// residual, which is multiplied by the sample's weight. Uses `in` and ends with a barrier.
DF_INLINE void add_noise_part(const PathsProblem& p, const Layers& at, const Tile& tile, int k) {
  for_noise(p, k, tile, [&](int row, const Place& place, const Quad<float>& noise) {
    for (int j = 0; j < place.count; ++j) {
      const int i = row * p.dim + 4 * static_cast<int>(place.quad) + j;
      at.in[i] = at.total[i] * noise.value[j];
    }
  });
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < tile.rows) {
    const int row = threadIdx.x;
    float sum = 0.0f;
    for (int j = 0; j < p.dim; ++j) sum += at.in[row * p.dim + j];
    p.grad_g[k * p.samples + tile.first + row] += square_root(p.dt[k]) * sum;
  }
  __syncthreads();
}

/// A tile from x_N to x_0: dL/dx_k in `total` from dL/dx_{k+1}.
template <class Factors>
__global__ void __launch_bounds__(kMaxThreads, 1) backward_kernel(PathsProblem p) {
  const Layers at = layers<Factors>(p.drift, p.dim, Way::kBackward);
  const Tile tile = tile_of(p, blockIdx.x);
  for_state(p, [&](int i, int row, int component) {
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
    if (p.grad_g != nullptr && k < p.num_steps) add_noise_part(p, at, tile, k);
    const float dt_next = k < p.num_steps ? p.dt[k] : 0.0f;
    const StepScalars<float> step = k > 0 ? scalars(p, k - 1, k) : StepScalars<float>{};
    for_state(p, [&](int i, int row, int component) {
      const int64_t sample = tile.sample(row), before = state_at(p, k - 1, sample) + component;
      // State 0 has no residual.
      const float q = k > 0 ? scaled_residual(p, step, before, sample) : 0.0f;
      const AdjointTerms<float> terms =
          adjoint_terms(q, at.carry[i], at.total[i], step.dt, dt_next, step.g);
      at.in[i] = terms.cotangent_f, at.total[i] = terms.local, at.carry[i] = q;
      if (row < tile.rows) p.cotangents_f[state_at(p, k, sample) + component] = terms.cotangent_f;
    });
    __syncthreads();
    pull_back<Factors>(at, trace_of<Factors>(p, p.drift_trace, at, p.num_steps + 1, k, tile));
    for_state(p, [&](int i, int row, int component) {
      const int64_t before = state_at(p, k - 1, tile.sample(row)) + component;
      at.total[i] += at.out[i] + (k > 0 ? p.grad_scores[before] : 0.0f);
    });
    __syncthreads();
  }
  for_state(p, [&](int i, int row, int component) {
    if (row < tile.rows) p.grad_x0[state_at(p, 0, tile.first + row) + component] = at.total[i];
  });
}

// --- launches ------------------------------------------------------------------------------------

size_t shared_bytes(int width, int depth, int dim, Products products) {
  const int per_word = products == Products::kBfloat16 ? 2 : 1;
  return sizeof(uint32_t) * carve(nullptr, nullptr, padded_width(width), depth, dim, per_word);
}

size_t shared_limit(int device) {
  int bytes = 0;
  cuda::check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
              "cudaDeviceGetAttribute");
  return static_cast<size_t>(bytes);
}

struct Launch {
  const PathsProblem& problem;
  int device;
  cudaStream_t stream;
  Products products;
};

DF_HD int64_t tiles_of(const PathsProblem& p) { return (p.samples + kTileRows - 1) / kTileRows; }

/// Raises the kernel's limit of shared memory; returns what a block needs of it.
template <class Kernel>
size_t reserve_shared(const Launch& at, const Mlp& net, Kernel* kernel) {
  const size_t bytes = shared_bytes(net.width, net.depth, at.problem.dim, at.products);
  cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(bytes)),
              "cudaFuncSetAttribute");
  return bytes;
}

/// One block for each tile.
void launch_tiles(const Launch& at, void (*kernel)(PathsProblem)) {
  const size_t bytes = reserve_shared(at, at.problem.drift, kernel);
  const unsigned threads = 2 * padded_width(at.problem.drift.width);
  DF_LAUNCH((kernel), cuda::blocks_for(tiles_of(at.problem), 1), threads, bytes, at.stream,
            at.problem);
  cuda::check(cudaGetLastError(), "kernel launch");
}

/// As many blocks as run at a time, each for many tiles: weights are loaded once.
void launch_scores(const Launch& at, void (*kernel)(PathsProblem, int64_t)) {
  const size_t bytes = reserve_shared(at, at.problem.score, kernel);
  const unsigned threads = 2 * padded_width(at.problem.score.width);
  int multiprocessors = 0, blocks = 0;
  cuda::check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, at.device),
              "cudaDeviceGetAttribute");
  cuda::check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel,
                                                            static_cast<int>(threads), bytes),
              "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  const int64_t tiles = tiles_of(at.problem), most = int64_t{multiprocessors} * std::max(blocks, 1);
  const unsigned grid = cuda::blocks_for(std::min(tiles * at.problem.num_steps, most), 1);
  DF_LAUNCH((kernel), grid, threads, bytes, at.stream, at.problem, tiles);
  cuda::check(cudaGetLastError(), "kernel launch");
}

template <class Factors>
void run_phase(Phase phase, const Launch& at) {
  switch (phase) {
    case Phase::kForward:
      return launch_tiles(at, forward_kernel<Factors>);
    case Phase::kResiduals:
      return launch_scores(at, residuals_kernel<Factors>);
    case Phase::kScore:
      return launch_scores(at, score_kernel<Factors>);
    case Phase::kBackward:
      return launch_tiles(at, backward_kernel<Factors>);
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
