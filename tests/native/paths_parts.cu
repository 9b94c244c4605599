// Parts of the path kernels, each alone in a kernel, for paths_estimate.py to count the machine
// instructions of. Sizes of the loops around small numbers are constants: width 128, dim 2.
#define DF_NAMESPACE gpu
#define DF_LANES 1
#include "fused/gpu/layers.cuh"
#include "math/sde_step.h"
#include "ops/loop_cuda.cuh"

using namespace diffflow;
using namespace diffflow::gpu;

template <class Factors>
__device__ TileSum<Factors> read(const float* from) {
  TileSum<Factors> sum;
  for (int i = 0; i < 8 * Factors::kParts; ++i) {
    sum.part[i / 8].half[i / 4 % 2].value[i % 4] = from[32 * i + threadIdx.x];
  }
  return sum;
}
template <class Factors>
__device__ void write(float* to, const TileSum<Factors>& sum) {
  for (int i = 0; i < 8 * Factors::kParts; ++i) {
    to[32 * i + threadIdx.x] = sum.part[i / 8].half[i / 4 % 2].value[i % 4];
  }
}

/// What the others have besides their part.
template <class Factors>
__global__ void frame_part(Layers, TileTrace, const float* from, float* to, int) {
  write(to, read<Factors>(from));
}

template <class Factors>
__global__ void product_part(Layers at, TileTrace, const float*, float* to, int l) {
  DF_DYNAMIC_SHARED(uint32_t, memory);
  write(to, product<Factors>(memory, memory + l, 128 / Factors::kPerWord + 4, at.units));
}

template <class Factors>
__global__ void forward_part(Layers at, TileTrace trace, const float* from, float*, int l) {
  DF_DYNAMIC_SHARED(uint32_t, memory);
  const float* const bias = reinterpret_cast<const float*>(memory) + l;
  const auto sum = read<Factors>(from);
  finish_forward<Factors>(at, sum, bias, 128, Activation::kGelu, memory, trace, l);
}

template <class Factors>
__global__ void backward_part(Layers at, TileTrace trace, const float* from, float*, int l) {
  DF_DYNAMIC_SHARED(uint32_t, memory);
  const auto slopes = Slopes<Factors>::of(trace, l);
  finish_backward<Factors>(at, read<Factors>(from), slopes, memory, trace, l);
}

template <class Factors>
__global__ void ends_part(Layers at, TileTrace, const float*, float* to, int l) {
  DF_DYNAMIC_SHARED(uint32_t, memory);
  at.dim = 2, at.units = 128;
  at.in = reinterpret_cast<float*>(memory), at.thin_in = at.in + l;
  at.out = at.in + 64 * l, at.thin_out = at.in + 512 * l;
  write(to, enter<Factors>(at));
  __syncthreads();
  leave<Factors>(at, memory + 1024 * l, nullptr);
}

__global__ void noise_part(NoiseSource source, Shape shape, float* to) {
  const Place place = place_at(blockIdx.x, threadIdx.x, shape, false);
  const Quad<float> noise = normals<float>(at_step(source, threadIdx.y), place);
  for (int i = 0; i < 4; ++i) to[i] = noise.value[i];
}

#define INSTANTIATE(part, ...) \
  template __global__ void part<__VA_ARGS__>(Layers, TileTrace, const float*, float*, int);
#define ALL_PARTS(...)                    \
  INSTANTIATE(frame_part, __VA_ARGS__)    \
  INSTANTIATE(product_part, __VA_ARGS__)  \
  INSTANTIATE(forward_part, __VA_ARGS__)  \
  INSTANTIATE(backward_part, __VA_ARGS__) \
  INSTANTIATE(ends_part, __VA_ARGS__)
ALL_PARTS(Tiled<Float32Factors, 1>)
ALL_PARTS(Tiled<Float32Factors, 2>)
ALL_PARTS(Tiled<Tf32Factors, 1>)
ALL_PARTS(Tiled<Tf32Factors, 2>)
ALL_PARTS(Tiled<Bfloat16Factors, 1>)
ALL_PARTS(Tiled<Bfloat16Factors, 2>)
