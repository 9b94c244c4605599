// Runs CUDA kernel source on the host: one fiber per CUDA thread.
//
// A .cu file built by `g++ -x c++ -std=c++17 -DDIFFFLOW_CUDA_ON_HOST -Itests/csrc` includes this
// header where nvcc's build includes <cuda_runtime.h>. Its kernels then run on the CPU, on host
// pointers, with the launch code unchanged. The source writes these macros, here with what they
// mean under nvcc:
//
//   DF_LAUNCH((kernel<T, 4>), grid, block, shared_bytes, stream, args...)
//       kernel<<<grid, block, shared_bytes, stream>>>(args...)
//   DF_SHARED(T, name, count);            __shared__ T name[count];          sizeof(name) holds
//   DF_DYNAMIC_SHARED(T, name);           extern __shared__ T name[];        a pointer here
//
// What is checked. A launch runs to its end before DF_LAUNCH returns and throws std::runtime_error,
// with the source line, the lanes and the block, when a kernel does what the programming guide
// calls undefined: threads of a block at different barriers, or at a barrier after others have
// exited; a warp operation that names an exited lane or one outside the block, that is called by a
// lane it does not name, that lanes of one mask enter at different lines, or that reads a lane
// outside the mask; lanes that wait for one another for ever. This is stricter than some hardware.
// The emulator may be used again after an error. Launches outside the device's limits set
// cudaGetLastError and run nothing, as the runtime does.
//
// Races. All shared memory holds 0xFF bytes (NaN, -1) when a block starts. A missing barrier shows
// as a wrong value in some schedules, seldom in all: run kernels under every one.
//
//   for (int s = 0; s < emu::kNumSchedules; ++s) { emu::set_schedule(s); launch(); compare(); }
//
// Memory. Add `-g -fsanitize=address,alignment -fno-sanitize-recover=all` for accesses outside
// global or shared arrays and for misaligned vector accesses; the program then runs with
// ASAN_OPTIONS=detect_leaks=0. Without them such accesses go unseen; with them those that jump far
// past an array into other memory still do.
//
// Not covered: memory ordering between threads, blocks that run at the same time (they run one
// after another: no grid barriers, no spinning on another thread), the bits of device maths
// functions and of tensor cores (cuda_host_mma.h: their fragments and roundings of factors, not
// their sums), __launch_bounds__, plain `__shared__` arrays (they work, but are neither poisoned
// nor bounded), warps whose lanes the block does not fill, cooperative groups, asynchronous copies,
// textures, streams and graphs. __CUDACC__ and __CUDA_ARCH__ are not defined.
// g++ needs -Wno-unknown-pragmas for `#pragma unroll`, and -ffp-contract=off as everywhere here.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cuda_host_device.h"
#include "cuda_host_machine.h"
#include "cuda_host_mma.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __constant__ static
#define __shared__ static

#define DF_LAUNCH(kernel, ...) emu::launch(kernel, __VA_ARGS__)
#define DF_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(emu::dynamic_shared())
// The static's address names the declaration, for each instantiation of a template anew.
#define DF_SHARED(T, name, count)       \
  static char df_declaration_of_##name; \
  T(&name)                              \
  [count] =                             \
      *static_cast<T(*)[count]>(emu::static_shared(&df_declaration_of_##name, sizeof(T[count])))

enum cudaError {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
};
using cudaError_t = cudaError;
using cudaStream_t = struct CUstream_st*;

enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock,
  cudaDevAttrMaxSharedMemoryPerBlock,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxThreadsPerMultiProcessor,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
};
struct cudaDeviceProp {
  char name[256];
  int major, minor, multiProcessorCount, maxThreadsPerBlock, maxThreadsPerMultiProcessor;
  size_t sharedMemPerBlock, sharedMemPerBlockOptin;
};

namespace emu {

constexpr size_t kDynamicSharedBytes = 48 * 1024;
constexpr size_t kOptInSharedBytes = 227 * 1024;

/// The order of threads and blocks in launches to come; a launch depends on nothing else.
///   0      in order, depth first: a warp runs to the block's barrier, then the next one
///   1      the same with lanes, warps and blocks reversed
///   2      in order, breadth first: every warp takes one step to its next wait in turn
///   3 ...  lanes, warps and blocks shuffled with this seed; odd depth first, even breadth first
inline void set_schedule(int schedule) { machine().schedule = schedule; }

struct Device {
  cudaError_t last_error = cudaSuccess;
  int multiprocessors = 2;  // few, so that grid-stride loops take several turns
  size_t opt_in_shared_bytes = kOptInSharedBytes;
  std::map<const void*, size_t> shared_limits;
};

inline Device& device() {
  static thread_local Device instance;
  return instance;
}

inline void set_multiprocessors(int count) { device().multiprocessors = count; }
inline void set_opt_in_shared_bytes(size_t bytes) { device().opt_in_shared_bytes = bytes; }

inline cudaError_t record(cudaError_t error) {
  if (error != cudaSuccess) device().last_error = error;
  return error;
}

inline void* static_shared(const void* declaration, size_t bytes) {
  if (!machine().running()) throw std::runtime_error("DF_SHARED: used outside of a kernel");
  return machine().shared.find_or_add(declaration, bytes);
}

inline void* dynamic_shared() {
  if (!machine().running()) throw std::runtime_error("DF_DYNAMIC_SHARED: used outside of a kernel");
  return machine().shared.dynamic();
}

/// What the runtime would say to a launch on compute capability 8.0 to 9.0.
inline cudaError_t check_launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const bool block_fits =
      threads >= 1 && block.x <= 1024 && block.y <= 1024 && block.z <= 64 && threads <= kMaxThreads;
  const bool grid_fits = grid.x >= 1 && grid.y >= 1 && grid.z >= 1 && grid.x <= 0x7fffffffu &&
                         grid.y <= 65535 && grid.z <= 65535;
  if (!block_fits || !grid_fits) return cudaErrorInvalidConfiguration;
  const auto raised = device().shared_limits.find(kernel);
  const size_t limit =
      raised == device().shared_limits.end() ? kDynamicSharedBytes : raised->second;
  return shared_bytes > limit ? cudaErrorInvalidValue : cudaSuccess;
}

template <typename... P, typename... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t /*stream*/, A&&... args) {
  static_assert((!std::is_reference_v<P> && ...), "kernels take their arguments by value");
  const void* address = reinterpret_cast<const void*>(kernel);
  if (record(check_launch(address, grid, block, shared_bytes)) != cudaSuccess) return;
  // Converted once, as by a launch; every thread gets a copy.
  const std::tuple<P...> values(std::forward<A>(args)...);
  machine().run(grid, block, shared_bytes, [&] { std::apply(kernel, values); });
}

}  // namespace emu

inline cudaError_t cudaPeekAtLastError() { return emu::device().last_error; }
inline cudaError_t cudaGetLastError() {
  return std::exchange(emu::device().last_error, cudaSuccess);
}

inline const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
  }
  return "unrecognized error code";
}

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
  }
  return "unrecognized error code";
}

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  return emu::record(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return emu::record(cudaErrorInvalidDevice);
  *properties = {"CUDA on the host",
                 9,
                 0,
                 emu::device().multiprocessors,
                 1024,
                 2048,
                 emu::kDynamicSharedBytes,
                 emu::device().opt_in_shared_bytes};
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p;
  if (cudaGetDeviceProperties(&p, device) != cudaSuccess) return cudaErrorInvalidDevice;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = p.maxThreadsPerBlock;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = int(p.sharedMemPerBlock);
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = int(p.sharedMemPerBlockOptin);
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = p.multiProcessorCount;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = p.maxThreadsPerMultiProcessor;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = p.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = p.minor;
      break;
  }
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  if (bytes < 0 || size_t(bytes) > emu::device().opt_in_shared_bytes) {
    return emu::record(cudaErrorInvalidValue);
  }
  emu::device().shared_limits[reinterpret_cast<const void*>(kernel)] = size_t(bytes);
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int block_size,
                                                          size_t) {
  *blocks = block_size > 0 ? 2048 / block_size : 0;
  return cudaSuccess;
}

template <typename T>
cudaError_t cudaMalloc(T** pointer, size_t bytes) {
  *pointer = static_cast<T*>(std::malloc(bytes));
  return emu::record(*pointer ? cudaSuccess : cudaErrorMemoryAllocation);
}
inline cudaError_t cudaFree(void* pointer) {
  std::free(pointer);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t = nullptr) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return cudaMemcpyAsync(to, from, bytes, kind);
}
inline cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t = nullptr) {
  std::memset(to, byte, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
