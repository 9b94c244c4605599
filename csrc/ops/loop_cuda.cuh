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
/// Fewer threads leave much of a GPU idle: about 1,000 for each of 132 multiprocessors. Not
/// measured.
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
  uint32_t ragged;               ///< quad of each row that is not whole, or a number above all
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

/// How threads share the rows of a reduction.
struct Team {
  int lanes, lane_bits;  ///< of a row, and their logarithm
  /// A block has one segment of one row. All its threads find parts, `lanes` of them add these.
  bool whole_block;
};

/// The most threads of such a block: with more, some kernels would spill registers.
template <typename T>
constexpr int kMostThreads = sizeof(T) == 8 ? 512 : 1024;

/// The sum of a lane's quads in the segment blockIdx.y of a row, in the order of lane_sum.
/// blockIdx.y is the segment: dividing would call a subroutine that makes ptxas spill registers.
template <class Body, typename T = typename Body::Sum>
__device__ __forceinline__ T sum_of_lane(const Body& body, const Shape& shape, bool aligned,
                                         const Team& team, int64_t sample, int lane, T* parts) {
  const int64_t segment = blockIdx.y, first = segment * kSegmentQuads;
  const int64_t left = sample < shape.samples ? shape.quads_per_sample() - first : 0;
  const int size = static_cast<int>(left < kSegmentQuads ? left : kSegmentQuads);
  const int step = team.whole_block ? static_cast<int>(blockDim.x) : team.lanes;
  T sum = T(0);
  for (int i = lane; i < size; i += step) {
    const auto terms = run_body(body, place_at(sample, first + i, shape, aligned));
    const T part = body.part(body.scalars(), sample, terms.value);
    if (team.whole_block) {
      parts[i] = part;
    } else {
      sum += part;
    }
  }
  if (!team.whole_block) return sum;
  __syncthreads();
  if (lane >= team.lanes) return T(0);
  return lane_sum<T>(segment, lane, team.lanes, first + size,
                     [&](int64_t quad) { return parts[quad - first]; });
}

template <class Body>
__global__ void __launch_bounds__(kMostThreads<typename Body::Sum>)
    reduce_kernel(Body body, Shape shape, bool aligned, Team team, typename Body::Sum* partials) {
  using T = typename Body::Sum;
  DF_SHARED(T, warp_sums, kBlock / kWarp);
  DF_DYNAMIC_SHARED(double, room);  // of one type in all kernels
  const int lanes = team.lanes, thread = static_cast<int>(threadIdx.x);
  const int lane = team.whole_block ? thread : thread & (lanes - 1);
  const int64_t threads_before = static_cast<int64_t>(blockIdx.x) * kBlock;
  const int64_t sample =
      team.whole_block ? blockIdx.x : (threads_before + thread) >> team.lane_bits;
  T sum = sum_of_lane(body, shape, aligned, team, sample, lane, reinterpret_cast<T*>(room));
  sum = fold_lanes(sum, lanes < kWarp ? lanes : kWarp);
  if (lanes == kBlock) {
    if (lane < kBlock && lane % kWarp == 0) warp_sums[lane / kWarp] = sum;
    __syncthreads();
    for (int warp = 1; lane == 0 && warp < kBlock / kWarp; ++warp) sum += warp_sums[warp];
  }
  if (sample >= shape.samples || lane != 0) return;
  const int64_t segments = num_segments(shape.quads_per_sample());
  if (segments == 1) {
    body.finish(sample, sum);
  } else {
    partials[sample * segments + blockIdx.y] = sum;
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

/// The launches of an elementwise body: one, but for more than kLaunchQuads.
template <class Launch>
void for_each_piece(const Shape& shape, bool aligned, const Launch& launch) {
  const int64_t per_sample = shape.quads_per_sample(), none = kLaunchQuads;
  const int64_t width = std::min(per_sample, kLaunchQuads), rows = kLaunchQuads / width;
  const int gap = static_cast<int>(4 * per_sample - shape.elements);
  const Divisor row(static_cast<uint32_t>(width));
  Piece piece = {0, 0, 0, 0, row, 0, 4 - gap, static_cast<uint32_t>(gap), aligned};
  for (; piece.sample < shape.samples; piece.sample += rows) {
    for (piece.quad = 0; piece.quad < per_sample; piece.quad += width) {
      const int64_t left = per_sample - piece.quad;
      const int64_t count = std::min(rows, shape.samples - piece.sample) * std::min(width, left);
      piece.offset = piece.sample * shape.elements + 4 * piece.quad;
      piece.count = static_cast<uint32_t>(count);
      piece.ragged = static_cast<uint32_t>(gap > 0 ? std::min(left - 1, none) : none);
      launch(piece);
    }
  }
}

template <class Body>
void for_each(const Body& body, const Shape& shape, bool aligned, int device, void* stream) {
  const DeviceGuard guard(device);
  for_each_piece(shape, aligned, [&](const Piece& piece) {
    DF_LAUNCH((for_each_kernel<Body>), blocks_for(piece.count, kBlock), kBlock, 0,
              static_cast<cudaStream_t>(stream), body, piece);
    check(cudaGetLastError(), "kernel launch");
  });
}

/// Where rows are so few that a GPU would be idle, each has a block of its own, with a thread for
/// each quad. To cut rows further would take a second kernel.
inline Team team_for(const Shape& shape) {
  const int64_t quads = shape.quads_per_sample();
  Team team = {num_lanes(quads), 0, false};
  while (1 << team.lane_bits < team.lanes) ++team.lane_bits;
  const int64_t threads = shape.samples * num_segments(quads) * team.lanes;
  team.whole_block = quads > team.lanes && threads < kFewThreads;
  return team;
}

template <class Body>
void reduce(const Body& body, const Shape& shape, bool aligned, typename Body::Sum* partials,
            int device, void* stream) {
  using T = typename Body::Sum;
  const DeviceGuard guard(device);
  const int64_t per_sample = shape.quads_per_sample(), segments = num_segments(per_sample);
  if (segments > kMaxSegments) {
    throw std::runtime_error("reduce: expected at most 536,862,720 elements a sample");
  }
  const Team team = team_for(shape);
  const int64_t quads = std::min(per_sample, kSegmentQuads);
  const int64_t warps = std::min<int64_t>((quads + kWarp - 1) / kWarp, kMostThreads<T> / kWarp);
  const unsigned threads = team.whole_block ? static_cast<unsigned>(warps * kWarp) : kBlock;
  const dim3 grid(blocks_for(shape.samples, team.whole_block ? 1 : kBlock / team.lanes),
                  static_cast<unsigned>(segments));
  DF_LAUNCH((reduce_kernel<Body>), grid, threads, team.whole_block ? quads * sizeof(T) : 0,
            static_cast<cudaStream_t>(stream), body, shape, aligned, team, partials);
  check(cudaGetLastError(), "kernel launch");
  if (segments == 1) return;
  DF_LAUNCH((finish_kernel<Body>), blocks_for(shape.samples, kBlock), kBlock, 0,
            static_cast<cudaStream_t>(stream), body, shape.samples, segments,
            static_cast<const T*>(partials));
  check(cudaGetLastError(), "kernel launch");
}

}  // namespace cuda
}  // namespace diffflow
