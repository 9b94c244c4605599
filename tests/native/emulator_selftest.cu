// Kernels that show what cuda_host.h runs and what it refuses: right ones, and one for each planted
// bug. `selftest CASE SCHEDULE` prints "values ..." or "error ..." for
// tests/native/test_cuda_host.py.
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cuda_host.h"

namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kBlock = 128;
constexpr int kWarps = kBlock / 32;

using Values = std::vector<double>;

/// Inputs whose sum depends on the order of addition in its last bits.
std::vector<float> inputs(int n) {
  std::vector<float> values(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) values[i] = 1.0f / static_cast<float>(i + 1);
  return values;
}

// Right kernels

__device__ float sum_of_warp(float value) {
  for (int half = 16; half > 0; half /= 2) value += __shfl_xor_sync(kAll, value, half);
  return value;
}

template <bool WithBarrier>
__device__ float sum_of_block(float value) {
  DF_SHARED(float, warp_sums, kWarps);
  value = sum_of_warp(value);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = value;
  if (WithBarrier) __syncthreads();
  float sum = 0.0f;
  for (int warp = 0; warp < kWarps; ++warp) sum += warp_sums[warp];
  return sum;
}

template <bool WithBarrier>
__global__ void __launch_bounds__(kBlock)
    reduce(const float* __restrict__ in, float* __restrict__ out) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const float sum = sum_of_block<WithBarrier>(__ldg(in + i));
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

template <bool WithBarrier>
Values run_reduce() {
  constexpr int blocks = 5;
  const std::vector<float> in = inputs(blocks * kBlock);
  std::vector<float> out(blocks, -1.0f);
  DF_LAUNCH((reduce<WithBarrier>), blocks, kBlock, 0, nullptr, in.data(), out.data());
  return Values(out.begin(), out.end());
}

__global__ void shuffles(int* out, int width) {
  const int lane = static_cast<int>(threadIdx.x);
  int* row = out + 4 * lane;
  row[0] = __shfl_sync(kAll, 100 + lane, 5, width);
  row[1] = __shfl_up_sync(kAll, 100 + lane, 3, width);
  row[2] = __shfl_down_sync(kAll, 100 + lane, 3, width);
  row[3] = __shfl_xor_sync(kAll, 100 + lane, 9, width);
}

Values run_shuffles() {
  Values values;
  for (int width : {32, 8}) {
    std::vector<int> out(4 * 32);
    DF_LAUNCH(shuffles, 1, 32, 0, nullptr, out.data(), width);
    values.insert(values.end(), out.begin(), out.end());
  }
  return values;
}

__global__ void votes(unsigned* out) {
  const unsigned lane = threadIdx.x;
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  const unsigned odd = __ballot_sync(half, lane % 2);
  const int any = __any_sync(half, lane == 3), all = __all_sync(half, lane < 16);
  if (lane % 16 == 0) {
    unsigned* row = out + 3 * (lane / 16);
    row[0] = odd, row[1] = static_cast<unsigned>(any), row[2] = static_cast<unsigned>(all);
  }
}

Values run_votes() {
  std::vector<unsigned> out(6);
  DF_LAUNCH(votes, 1, 32, 0, nullptr, out.data());
  return Values(out.begin(), out.end());
}

__constant__ const int kStep = 2;

__global__ void count_threads(unsigned long long* sum, int* order) {
  const uint3 t = threadIdx, b = blockIdx;
  const dim3 bd = blockDim, gd = gridDim;
  const unsigned block = (b.z * gd.y + b.y) * gd.x + b.x;
  const unsigned thread = (t.z * bd.y + t.y) * bd.x + t.x;
  const unsigned id = block * bd.x * bd.y * bd.z + thread;
  atomicAdd(sum, id);
  if (thread == 0) order[block] = atomicAdd(order + gd.x * gd.y * gd.z, kStep);
}

/// The sum of all thread numbers, then when each block ran.
Values run_indices() {
  unsigned long long sum = 0;
  std::vector<int> order(3 * 2 * 2 + 1, 0);
  DF_LAUNCH(count_threads, dim3(3, 2, 2), dim3(4, 3, 5), 0, nullptr, &sum, order.data());
  Values values{static_cast<double>(sum)};
  values.insert(values.end(), order.begin(), order.end() - 1);
  return values;
}

/// Every block sees fresh 0xFF bytes, whatever the one before it left.
__global__ void read_unwritten(unsigned* out) {
  DF_SHARED(unsigned, fixed, 2);
  DF_DYNAMIC_SHARED(unsigned, dynamic);
  unsigned* row = out + 3 * blockIdx.x;
  row[0] = fixed[1], row[1] = dynamic[1], row[2] = sizeof(fixed);
  fixed[1] = dynamic[1] = 7;
}

Values run_poison() {
  std::vector<unsigned> out(9);
  DF_LAUNCH(read_unwritten, 3, 1, 2 * sizeof(unsigned), nullptr, out.data());
  return Values(out.begin(), out.end());
}

template <typename T>
__global__ void store(T* out, T value) {
  out[threadIdx.x] = value;
}

/// An argument is evaluated and converted once, as by a launch.
Values run_arguments() {
  std::vector<float> out(32);
  int calls = 0;
  DF_LAUNCH((store<float>), 1, 32, 0, nullptr, out.data(), ++calls);
  return {out[0], out[31], static_cast<double>(calls)};
}

Values run_intrinsics() {
  return {static_cast<double>(__umulhi(0xD2511F53u, 0xCD9E8D57u)),
          __uint_as_float(__float_as_uint(1.5f) + 1) - 1.5f,
          // 1 - 2^-24 squared rounds to 1 - 2^-23, which a fused multiply-add would not.
          __fadd_rn(__fmul_rn(1.0f - 0x1p-24f, 1.0f - 0x1p-24f), -(1.0f - 0x1p-23f)),
          __fmaf_rn(1.0f - 0x1p-24f, 1.0f - 0x1p-24f, -(1.0f - 0x1p-23f)), __fsqrt_rn(2.25f),
          static_cast<double>(sizeof(float4) + alignof(float4) + alignof(double2))};
}

// Limits of a launch

/// The errors of launches outside the limits, whether one ran, and the state afterwards.
Values run_limits() {
  std::vector<float> out(1024, 0.0f);
  Values values;
  const auto attempt = [&](dim3 grid, dim3 block, size_t shared_bytes) {
    DF_LAUNCH((store<float>), grid, block, shared_bytes, nullptr, out.data(), 1.0f);
    values.push_back(cudaPeekAtLastError());
    if (cudaGetLastError() != values.back()) values.push_back(-1);
  };
  attempt(1, 1025, 0);
  attempt(1, dim3(1, 1, 65), 0);
  attempt(1, 0, 0);
  attempt(0, 1, 0);
  attempt(dim3(1, 65536), 1, 0);
  attempt(dim3(1, 1, 65536), 1, 0);
  attempt(0x80000000u, 1, 0);
  attempt(1, 1, 48 * 1024 + 1);
  values.push_back(out[0]);
  cudaFuncSetAttribute(store<float>, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 * 1024);
  attempt(1, 1024, 64 * 1024);
  values.push_back(out[1023]);
  return values;
}

Values run_device() {
  int device = -1, multiprocessors = 0;
  cudaDeviceProp properties;
  cudaGetDevice(&device);
  emu::set_multiprocessors(3);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaGetDeviceProperties(&properties, device);
  const double wrong = cudaSetDevice(1);
  cudaGetLastError();
  return {static_cast<double>(device), static_cast<double>(multiprocessors),
          static_cast<double>(properties.multiProcessorCount), wrong,
          static_cast<double>(cudaPeekAtLastError())};
}

// Planted bugs

/// Two reductions through one buffer without a barrier between reading and writing it again.
__global__ void reuse_buffer(float* out) {
  DF_SHARED(float, slot, kWarps);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane == 0) slot[warp] = 1.0f;
  __syncthreads();
  float first = 0.0f;
  for (int w = 0; w < kWarps; ++w) first += slot[w];
  if (lane == 0) slot[warp] = 10.0f;
  __syncthreads();
  if (threadIdx.x == 0) out[0] = first;
}

Values run_reuse_buffer() {
  float out = 0.0f;
  DF_LAUNCH(reuse_buffer, 1, kBlock, 0, nullptr, &out);
  return {out};
}

/// Lanes read what other lanes of their warp wrote, without __syncwarp.
__global__ void missing_syncwarp(float* out) {
  DF_SHARED(float, slot, 32);
  slot[threadIdx.x] = 1.0f;
  out[threadIdx.x] = slot[(threadIdx.x + 31) % 32] + slot[(threadIdx.x + 1) % 32];
}

__global__ void exit_before_shuffle(float* out) {
  if (threadIdx.x >= 40) return;
  out[threadIdx.x] = sum_of_warp(1.0f);
}

__global__ void shuffle_beside_barrier(float* out) {
  if (threadIdx.x == 7) __syncthreads();
  out[threadIdx.x] = sum_of_warp(1.0f);
}

__global__ void outside_of_mask(float* out) {
  out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, 0);
}

__global__ void read_outside_of_mask(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_down_sync(0x0000ffffu, 1.0f, 1);
}

__global__ void two_calls(float* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_sync(kAll, 1.0f, 0);
  } else {
    out[threadIdx.x] = __shfl_sync(kAll, 2.0f, 0);
  }
}

__global__ void different_masks(float* out) {
  if (threadIdx.x == 0) {
    __syncwarp(0x3u);
  } else if (threadIdx.x == 1) {
    __syncwarp(0x6u);
  } else if (threadIdx.x == 2) {
    __syncwarp(0x5u);
  }
  out[threadIdx.x] = 1.0f;
}

__global__ void bad_width(float* out) { out[threadIdx.x] = __shfl_sync(kAll, 1.0f, 0, 12); }

__global__ void exit_before_barrier(float* out) {
  if (threadIdx.x >= 33) return;
  __syncthreads();
  out[threadIdx.x] = 1.0f;
}

__global__ void two_barriers(float* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1.0f;
}

__global__ void too_much_shared(float* out) {
  DF_SHARED(float, half, 8192);
  DF_SHARED(float, more, 8192);
  half[0] = more[0] = 1.0f;
  out[threadIdx.x] = half[0];
}

Values run_in_one_block(void (*kernel)(float*), unsigned block) {
  std::vector<float> out(block);
  DF_LAUNCH(kernel, 1, block, 0, nullptr, out.data());
  return Values(out.begin(), out.end());
}

// Seen with the sanitizers only

__global__ void global_overflow(float* out) {
  out[threadIdx.x + 1] = 1.0f;  // planted: global_overflow
}

__global__ void shared_overflow(float* out) {
  DF_SHARED(float, slot, 32);
  slot[threadIdx.x] = 1.0f;
  __syncthreads();
  const volatile unsigned next = threadIdx.x + 1;
  out[threadIdx.x] = slot[next];  // planted: shared_overflow
}

__global__ void dynamic_overflow(float* out) {
  DF_DYNAMIC_SHARED(float, slot);
  slot[threadIdx.x] = 1.0f;  // planted: dynamic_overflow
  out[threadIdx.x] = slot[threadIdx.x];
}

__global__ void local_overflow(float* out) {
  float local[4] = {};
  const volatile unsigned index = threadIdx.x % 5;
  __syncthreads();
  local[index] = 1.0f;  // planted: local_overflow
  out[threadIdx.x] = local[0];
}

__global__ void misaligned(float* out) {
  auto* wide = reinterpret_cast<float4*>(out + 1);
  wide->x = 1.0f;  // planted: misaligned
}

Values run_dynamic_overflow() {
  std::vector<float> out(32);
  DF_LAUNCH(dynamic_overflow, 1, 32, 31 * sizeof(float), nullptr, out.data());
  return Values(out.begin(), out.end());
}

/// A launch that is abandoned half way leaves the emulator as it was.
Values run_recovery() {
  for (auto* wrong : {exit_before_shuffle, exit_before_barrier, shuffle_beside_barrier}) {
    try {
      run_in_one_block(wrong, 64);
      return {-1.0};
    } catch (const std::runtime_error&) {
    }
  }
  return run_reduce<true>();
}

const std::map<std::string, std::function<Values()>>& cases() {
  const auto in_one_block = [](void (*kernel)(float*), unsigned block) {
    return [=] { return run_in_one_block(kernel, block); };
  };
  static const std::map<std::string, std::function<Values()>> all{
      {"reduce", run_reduce<true>},
      {"shuffles", run_shuffles},
      {"votes", run_votes},
      {"indices", run_indices},
      {"poison", run_poison},
      {"arguments", run_arguments},
      {"intrinsics", run_intrinsics},
      {"limits", run_limits},
      {"device", run_device},
      {"recovery", run_recovery},
      {"missing_barrier", run_reduce<false>},
      {"reuse_buffer", run_reuse_buffer},
      {"missing_syncwarp", in_one_block(missing_syncwarp, 32)},
      {"exit_before_shuffle", in_one_block(exit_before_shuffle, 64)},
      {"shuffle_beside_barrier", in_one_block(shuffle_beside_barrier, 32)},
      {"outside_of_mask", in_one_block(outside_of_mask, 32)},
      {"read_outside_of_mask", in_one_block(read_outside_of_mask, 32)},
      {"partial_warp", in_one_block(exit_before_shuffle, 16)},
      {"two_calls", in_one_block(two_calls, 32)},
      {"different_masks", in_one_block(different_masks, 32)},
      {"bad_width", in_one_block(bad_width, 32)},
      {"exit_before_barrier", in_one_block(exit_before_barrier, 64)},
      {"two_barriers", in_one_block(two_barriers, 64)},
      {"too_much_shared", in_one_block(too_much_shared, 32)},
      {"global_overflow", in_one_block(global_overflow, 32)},
      {"shared_overflow", in_one_block(shared_overflow, 32)},
      {"dynamic_overflow", run_dynamic_overflow},
      {"local_overflow", in_one_block(local_overflow, 32)},
      {"misaligned", in_one_block(misaligned, 32)},
  };
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  const auto found = argc == 3 ? cases().find(argv[1]) : cases().end();
  if (found == cases().end()) {
    std::fprintf(stderr, "usage: selftest CASE SCHEDULE\n");
    return 2;
  }
  emu::set_schedule(std::atoi(argv[2]));
  try {
    const Values values = found->second();
    std::printf("values");
    for (double value : values) std::printf(" %a", value);
    std::printf("\n");
  } catch (const std::runtime_error& error) {
    std::printf("error %s\n", error.what());
  }
}
