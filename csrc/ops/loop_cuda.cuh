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

/// Quads of one launch of an elementwise body: indices within it are below 2^31.
constexpr int64_t kLaunchQuads = int64_t{1} << 30;
/// Fewer threads than this leave a GPU idle.
constexpr int64_t kFewThreads = int64_t{1} << 17;

/// Division of numbers below 2^31 by one that the host knows. Granlund, Montgomery, "Division by
/// invariant integers using multiplication", 1994, doi:10.1145/178243.178249.
class Divisor {
 public:
  explicit Divisor(uint32_t by) : by_(by) {
    while ((uint64_t{1} << shift_) < by) ++shift_;
    multiplier_ = static_cast<uint32_t>((((uint64_t{1} << shift_) - by) << 32) / by + 1);
  }
  __device__ __forceinline__ uint32_t quotient(uint32_t value) const {
    return (WideProduct<uint32_t>(multiplier_, value).high + value) >> shift_;
  }
  __device__ __forceinline__ uint32_t by() const { return by_; }

 private:
  uint32_t by_, multiplier_ = 0, shift_ = 0;
};

/// The quads of one launch: whole rows, or a part of one.
struct Piece {
  int64_t sample, quad, offset;  ///< of the first quad
  uint32_t count;                ///< of quads
  Divisor row;                   ///< quads of a row within the launch
  uint32_t ragged;               ///< quad of each row that is not whole, or none that there is
  int32_t size;                  ///< its elements
  uint32_t gap;                  ///< what it lacks
  bool aligned;

  __device__ __forceinline__ Place at(uint32_t index) const {
    const uint32_t nth = row.quotient(index), in_row = index - nth * row.by();
    const bool whole = in_row != ragged;
    const int64_t elements = 4 * static_cast<int64_t>(index) - static_cast<int64_t>(gap) * nth;
    return {sample + nth, quad + in_row, offset + elements, whole ? 4 : size, aligned && whole};
  }
};

template <class Body>
__global__ void __launch_bounds__(kBlock) for_each_kernel(Body body, Piece piece) {
  const uint32_t index = blockIdx.x * kBlock + threadIdx.x;
  if (index < piece.count) run_body(body, piece.at(index));
}

/// Butterfly over groups of `lanes` threads of a warp; the group's first lane holds the sum.
template <typename T>
__device__ __forceinline__ T fold_lanes(T sum, int lanes) {
  for (int half = lanes / 2; half > 0; half /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, half);
  }
  return sum;
}

/// Threads of a reduction's blocks: kBlock for rows side by side, or as many as a segment has quads
/// where there are so few rows that a GPU would be idle otherwise. More than these spill registers.
template <typename T>
constexpr int kMostThreads = sizeof(T) == 8 ? 512 : 1024;

/// How the sums of a reduction are shared out.
struct Team {
  int lanes, lane_bits;
  bool whole_block;  ///< a block has one segment of a row: all its threads find the quads' parts
};

/// One row segment for every group of `lanes` threads, or for a block.
/// blockIdx.y is the segment: dividing would call a subroutine that makes ptxas spill registers.
template <class Body>
__global__ void __launch_bounds__(kMostThreads<typename Body::Sum>)
    reduce_kernel(Body body, Shape shape, bool aligned, Team team, typename Body::Sum* partials) {
  using T = typename Body::Sum;
  DF_SHARED(T, warp_sums, kBlock / kWarp);
  DF_DYNAMIC_SHARED(double, room);
  T* const parts = reinterpret_cast<T*>(room);
  const int64_t per_sample = shape.quads_per_sample(), segments = num_segments(per_sample);
  const int lanes = team.lanes, thread = static_cast<int>(threadIdx.x);
  const int group = team.whole_block ? 0 : thread >> team.lane_bits;
  const int lane = team.whole_block ? thread : thread & (lanes - 1);
  const int groups = team.whole_block ? 1 : kBlock >> team.lane_bits;
  const int64_t sample = static_cast<int64_t>(blockIdx.x) * groups + group;
  const int64_t segment = blockIdx.y, first = segment * kSegmentQuads;
  const auto part_of = [&](int64_t quad) {
    const auto terms = run_body(body, place_at(sample, quad, shape, aligned));
    return body.part(body.scalars(), sample, terms.value);
  };
  const bool inside = sample < shape.samples && lane < lanes;
  T sum = T(0);
  if (team.whole_block) {
    const int64_t end = first + kSegmentQuads < per_sample ? first + kSegmentQuads : per_sample;
    for (int64_t quad = first + thread; quad < end; quad += blockDim.x) {
      parts[quad - first] = part_of(quad);
    }
    __syncthreads();
    if (inside) {
      sum = lane_sum<T>(segment, lane, lanes, per_sample,
                        [&](int64_t quad) { return parts[quad - first]; });
    }
  } else if (inside) {
    sum = lane_sum<T>(segment, lane, lanes, per_sample, part_of);
  }
  sum = fold_lanes(sum, lanes < kWarp ? lanes : kWarp);
  if (lanes == kBlock) {
    if (inside && thread % kWarp == 0) warp_sums[thread / kWarp] = sum;
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
  const int64_t per_sample = shape.quads_per_sample();
  const int64_t width = std::min(per_sample, kLaunchQuads), rows = kLaunchQuads / width;
  const Divisor row(static_cast<uint32_t>(width));
  const int64_t none = kLaunchQuads;
  const int gap = static_cast<int>(4 * per_sample - shape.elements);
  for (int64_t sample = 0; sample < shape.samples; sample += rows) {
    for (int64_t quad = 0; quad < per_sample; quad += width) {
      const int64_t part = std::min(width, per_sample - quad);
      const int64_t count = std::min(rows, shape.samples - sample) * part;
      const Piece piece = {sample, quad, sample * shape.elements + 4 * quad,
                           static_cast<uint32_t>(count), row,
                           static_cast<uint32_t>(gap > 0 ? std::min(per_sample - quad - 1, none) : none),
                           4 - gap, static_cast<uint32_t>(gap), aligned};
      DF_LAUNCH((for_each_kernel<Body>), blocks_for(count, kBlock), kBlock, 0,
                static_cast<cudaStream_t>(stream), body, piece);
      check(cudaGetLastError(), "kernel launch");
    }
  }
}

/// Few rows take a block each, with a thread for each quad as far as there are so many.
inline Team team_for(int64_t samples, int64_t per_sample) {
  Team team = {num_lanes(per_sample), 0, false};
  while (1 << team.lane_bits < team.lanes) ++team.lane_bits;
  team.whole_block = team.lanes >= kWarp && per_sample > team.lanes &&
                     samples * num_segments(per_sample) * team.lanes <= kFewThreads;
  return team;
}

template <class Body>
void reduce(const Body& body, const Shape& shape, bool aligned, typename Body::Sum* partials,
            int device, void* stream) {
  const DeviceGuard guard(device);
  const int64_t per_sample = shape.quads_per_sample(), segments = num_segments(per_sample);
  if (segments > kMaxSegments) {
    throw std::runtime_error("reduce: expected at most 536,862,720 elements a sample");
  }
  using T = typename Body::Sum;
  const Team team = team_for(shape.samples, per_sample);
  const int64_t quads = std::min(per_sample, kSegmentQuads);
  const int64_t threads =
      team.whole_block ? std::min<int64_t>((quads + kWarp - 1) / kWarp * kWarp, kMostThreads<T>)
                       : kBlock;
  const int64_t rows = team.whole_block ? 1 : kBlock / team.lanes;
  const dim3 grid(blocks_for(shape.samples, rows), static_cast<unsigned>(segments));
  DF_LAUNCH((reduce_kernel<Body>), grid, static_cast<unsigned>(threads),
            team.whole_block ? quads * sizeof(T) : 0, static_cast<cudaStream_t>(stream), body,
            shape, aligned, team, partials);
  check(cudaGetLastError(), "kernel launch");
  if (segments == 1) return;
  DF_LAUNCH((finish_kernel<Body>), blocks_for(shape.samples, kBlock), kBlock, 0,
            static_cast<cudaStream_t>(stream), body, shape.samples, segments,
            static_cast<const typename Body::Sum*>(partials));
  check(cudaGetLastError(), "kernel launch");
}

}  // namespace cuda
}  // namespace diffflow
