// Whole paths on a GPU, or the error of a build without CUDA.
#pragma once

#include <stdexcept>
#include <string>

#include "../fused/gpu/paths.h"
#include "launch.h"

namespace diffflow {

inline int64_t gpu_paths_shared_bytes(int width, int depth, int dim, gpu::Products products) {
#ifdef DIFFFLOW_WITH_CUDA
  return static_cast<int64_t>(gpu::shared_bytes(width, depth, dim, products));
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

inline std::string gpu_paths_card(int device) {
#ifdef DIFFFLOW_WITH_CUDA
  return gpu::card(device);
#else
  (void)device;
  no_cuda();
#endif
}

inline void run_gpu_paths(gpu::Phase phase, gpu::Products products,
                          const gpu::PathsProblem& problem, int device, Address stream) {
  if (problem.drift.depth > gpu::kMaxHidden || problem.score.depth > gpu::kMaxHidden) {
    throw std::invalid_argument("run_gpu_paths: too many hidden layers");
  }
#ifdef DIFFFLOW_WITH_CUDA
  gpu::run(phase, products, problem, device, pointer<void>(stream));
#else
  (void)phase, (void)products, (void)device, (void)stream;
  no_cuda();
#endif
}

}  // namespace diffflow
