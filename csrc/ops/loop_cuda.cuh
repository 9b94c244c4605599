// Runs bodies on a CUDA device: one thread a quad, or a group of lanes a row.
#pragma once

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "device.h"
#include "launch_cuda.h"
#include "sum_order.h"

namespace diffflow {
namespace cuda {

/// Largest second dimension of a grid.
constexpr int64_t kMaxSegments = 65535;

/// A 64-bit division costs dozens of instructions on a GPU; nearly all sizes fit 32 bits.
__device__ __forceinline__ int64_t divide(int64_t value, int64_t by) {
  if (((value | by) >> 32) == 0) {
    return static_cast<uint32_t>(value) / static_cast<uint32_t>(by);
  }
  return value / by;
}

template <class Body>
__global__ void __launch_bounds__(kBlock) for_each_kernel(Body body, Shape shape, bool aligned) {
  const int64_t per_sample = shape.quads_per_sample(), total = shape.quads();
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kBlock;
  for (int64_t index = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x; index < total;
       index += stride) {
    const int64_t sample = divide(index, per_sample);
    run_body(body, place_at(sample, index - sample * per_sample, shape, aligned));
  }
}

/// Butterfly over groups of `lanes` threads of a warp; the group's first lane holds the sum.
template <typename T>
__device__ __forceinline__ T fold_lanes(T sum, int lanes) {
  for (int half = lanes / 2; half > 0; half /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, half);
  }
  return sum;
}

/// One row segment for every group of `lanes` threads; the whole block when lanes == kBlock.
/// blockIdx.y is the segment: dividing would call a subroutine that makes ptxas spill registers.
template <class Body>
__global__ void __launch_bounds__(kBlock)
    reduce_kernel(Body body, Shape shape, bool aligned, int lanes, typename Body::Sum* partials) {
  using T = typename Body::Sum;
  DF_SHARED(T, warp_sums, kBlock / kWarp);
  const int64_t per_sample = shape.quads_per_sample(), segments = num_segments(per_sample);
  const int groups = kBlock / lanes;
  const int64_t sample = static_cast<int64_t>(blockIdx.x) * groups + threadIdx.x / lanes;
  const int64_t segment = blockIdx.y;
  const int lane = threadIdx.x % lanes;
  const bool inside = sample < shape.samples;
  T sum = T(0);
  if (inside) {
    sum = lane_sum<T>(segment, lane, lanes, per_sample, [&](int64_t quad) {
      const auto terms = run_body(body, place_at(sample, quad, shape, aligned));
      return body.part(body.scalars(), sample, terms.value);
    });
  }
  sum = fold_lanes(sum, lanes < kWarp ? lanes : kWarp);
  if (lanes == kBlock) {
    if (threadIdx.x % kWarp == 0) warp_sums[threadIdx.x / kWarp] = sum;
    __syncthreads();
    for (int warp = 1; lane == 0 && warp < kBlock / kWarp; ++warp) sum += warp_sums[warp];
  }
  if (!inside || lane != 0) return;
  if (segments == 1) {
    body.finish(sample, sum);
  } else {
    partials[sample * segments + segment] = sum;
  }
}

/// Adds the segments of long rows in order.
template <class Body>
__global__ void __launch_bounds__(kBlock)
    finish_kernel(Body body, int64_t samples, int64_t segments,
                  const typename Body::Sum* partials) {
  const int64_t sample = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (sample >= samples) return;
  typename Body::Sum sum = partials[sample * segments];
  for (int64_t i = 1; i < segments; ++i) sum += partials[sample * segments + i];
  body.finish(sample, sum);
}

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    cudaGetLastError();  // clears the error, which the next launch would report otherwise
    throw std::runtime_error(std::string("diffflow_ext: ") + what + ": " +
                             cudaGetErrorString(status));
  }
}

/// Makes a device current for one launch and restores the one before.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    changed_ = before_ != device;
    if (changed_) check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

inline unsigned blocks_for(int64_t items, int64_t per_block) {
  const int64_t blocks = (items + per_block - 1) / per_block;
  return static_cast<unsigned>(std::min<int64_t>(blocks, std::numeric_limits<int32_t>::max()));
}

template <class Body>
void for_each(const Body& body, const Shape& shape, bool aligned, int device, void* stream) {
  const DeviceGuard guard(device);
  DF_LAUNCH((for_each_kernel<Body>), blocks_for(shape.quads(), kBlock), kBlock, 0,
            static_cast<cudaStream_t>(stream), body, shape, aligned);
  check(cudaGetLastError(), "kernel launch");
}

template <class Body>
void reduce(const Body& body, const Shape& shape, bool aligned, typename Body::Sum* partials,
            int device, void* stream) {
  const DeviceGuard guard(device);
  const int64_t per_sample = shape.quads_per_sample(), segments = num_segments(per_sample);
  const int lanes = num_lanes(per_sample);
  if (segments > kMaxSegments) {
    throw std::runtime_error("reduce: expected at most 536,862,720 elements a sample");
  }
  const dim3 grid(blocks_for(shape.samples, kBlock / lanes), static_cast<unsigned>(segments));
  DF_LAUNCH((reduce_kernel<Body>), grid, kBlock, 0, static_cast<cudaStream_t>(stream), body, shape,
            aligned, lanes, partials);
  check(cudaGetLastError(), "kernel launch");
  if (segments == 1) return;
  DF_LAUNCH((finish_kernel<Body>), blocks_for(shape.samples, kBlock), kBlock, 0,
            static_cast<cudaStream_t>(stream), body, shape.samples, segments,
            static_cast<const typename Body::Sum*>(partials));
  check(cudaGetLastError(), "kernel launch");
}

}  // namespace cuda
}  // namespace diffflow
