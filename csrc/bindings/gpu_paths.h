// From what Python sends to the kernels that carry whole paths on a GPU.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "../fused/gpu/paths.h"
#include "launch.h"

namespace diffflow {

/// A network as Python describes it: width, activation, addresses as in TensorList.
using GpuNetTuple = std::tuple<int, int, std::vector<Address>>;

inline gpu::Net gpu_net(const GpuNetTuple& tuple) {
  const std::vector<Address>& at = std::get<2>(tuple);
  const int depth = static_cast<int>(at.size() - 4) / 2;
  if (depth > gpu::kMaxHidden) throw std::invalid_argument("depth: too many hidden layers");
  const auto floats = [&](size_t i) { return pointer<const float>(at[i]); };
  gpu::Net net{std::get<0>(tuple), depth,     std::get<1>(tuple),
               floats(0),          floats(1), floats(2),
               floats(3),          {},        {}};
  for (int l = 0; l < depth; ++l) {
    net.hidden[l] = floats(4 + 2 * l), net.hidden_bias[l] = floats(5 + 2 * l);
  }
  return net;
}

/// samples, dim, num_steps.
using GpuSizes = std::tuple<int64_t, int, int>;

/// Addresses in the order of gpu::Paths: dt, g, x0, states, drifts, residuals, costs, drift values
/// and slopes, score values and slopes, weight, cotangents of f and of s, grad_scores, grad_x0,
/// grad_g.
using GpuBuffers = std::array<Address, 17>;

inline gpu::Paths gpu_paths(const GpuSizes& sizes, const GpuNetTuple& drift,
                            const GpuNetTuple& score, const NoiseSource& noise,
                            const GpuBuffers& a) {
  gpu::Paths p{};
  p.samples = std::get<0>(sizes), p.dim = std::get<1>(sizes), p.num_steps = std::get<2>(sizes);
  p.drift = gpu_net(drift), p.score = gpu_net(score);
  p.seed = noise.seed, p.stream = noise.stream, p.sample_offset = noise.sample_offset;
  p.purpose = noise.step_and_purpose >> 24, p.key = noise.key_from_memory;
  p.dt = pointer<const float>(a[0]), p.g = pointer<const float>(a[1]);
  p.x0 = pointer<const float>(a[2]);
  p.states = pointer<float>(a[3]), p.drifts = pointer<float>(a[4]);
  p.residuals = pointer<float>(a[5]), p.costs = pointer<float>(a[6]);
  p.drift_trace = {pointer<void>(a[7]), pointer<void>(a[8])};
  p.score_trace = {pointer<void>(a[9]), pointer<void>(a[10])};
  p.weight = pointer<const float>(a[11]);
  p.cotangents_f = pointer<float>(a[12]), p.cotangents_s = pointer<float>(a[13]);
  p.grad_scores = pointer<float>(a[14]), p.grad_x0 = pointer<float>(a[15]);
  p.grad_g = pointer<float>(a[16]);
  return p;
}

inline int64_t gpu_paths_shared_bytes(int width, int depth, int dim, int products) {
#ifdef DIFFFLOW_WITH_CUDA
  return static_cast<int64_t>(
      gpu::shared_bytes(width, depth, dim, static_cast<gpu::Products>(products)));
#else
  (void)width, (void)depth, (void)dim, (void)products;
  no_cuda();
#endif
}

inline int64_t gpu_paths_shared_limit(int device) {
#ifdef DIFFFLOW_WITH_CUDA
  return static_cast<int64_t>(gpu::shared_limit(device));
#else
  (void)device;
  no_cuda();
#endif
}

inline void run_gpu_path(int phase, int products, const gpu::Paths& paths, int device,
                         Address stream) {
#ifdef DIFFFLOW_WITH_CUDA
  gpu::run(static_cast<gpu::Phase>(phase), static_cast<gpu::Products>(products), paths, device,
           pointer<void>(stream));
#else
  (void)phase, (void)products, (void)paths, (void)device, (void)stream;
  no_cuda();
#endif
}

}  // namespace diffflow
