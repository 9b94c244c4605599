// Parts of the path kernels, each alone in a kernel, for paths_estimate.py to count the machine
// instructions of. Sizes of the loops around small numbers are constants: width 128, dim 2.
#define DF_NAMESPACE gpu
#define DF_LANES 1
#include "fused/gpu/layers.cuh"
#include "math/sde_step.h"
#include "ops/loop_cuda.cuh"

using namespace diffflow;
using namespace diffflow::gpu;

__device__ WarpSum read(const float* from) {
  WarpSum sum;
  for (int i = 0; i < 8; ++i) sum.half[i / 4].value[i % 4] = from[32 * i + threadIdx.x];
  return sum;
}
__device__ void write(float* to, const WarpSum& sum) {
  for (int i = 0; i < 8; ++i) to[32 * i + threadIdx.x] = sum.half[i / 4].value[i % 4];
}

/// What the others have besides their part.
__global__ void frame(Layers, TileTrace, const float* from, float* to, int) {
  write(to, read(from));
}

template <class Factors>
__global__ void product_part(Layers at, TileTrace, const float*, float* to, int l) {
  DF_DYNAMIC_SHARED(uint32_t, memory);
  write(to, product<Factors>(memory, memory + l, 128 / Factors::kPerWord + 4, at.units));
}

template <class Factors>
__global__ void forward_part(Layers at, TileTrace trace, const float* from, float* to, int l) {
  DF_DYNAMIC_SHARED(uint32_t, memory);
  const float* const bias = reinterpret_cast<const float*>(memory) + l;
  finish_forward<Factors>(at, read(from), bias, 128, Activation::kGelu, memory, trace, l);
}

template <class Factors>
__global__ void backward_part(Layers at, TileTrace trace, const float* from, float* to, int l) {
  DF_DYNAMIC_SHARED(uint32_t, memory);
  const auto slopes = slopes_of<Factors>(trace, l);
  finish_backward<Factors>(at, read(from), slopes, memory, trace, l);
}

template <class Factors>
__global__ void ends_part(Layers at, TileTrace, const float*, float* to, int l) {
  DF_DYNAMIC_SHARED(uint32_t, memory);
  at.dim = 2, at.units = 128;
  at.in = reinterpret_cast<float*>(memory), at.thin_in = at.in + l;
  at.out = at.in + 64 * l, at.thin_out = at.in + 512 * l;
  write(to, enter(at));
  __syncthreads();
  leave<Factors>(at, memory + 1024 * l, nullptr);
}

__global__ void noise_part(NoiseSource source, Shape shape, float* to) {
  const Place place = place_at(blockIdx.x, threadIdx.x, shape, false);
  const Quad<float> noise = normals<float>(at_step(source, threadIdx.y), place);
  for (int i = 0; i < 4; ++i) to[i] = noise.value[i];
}

#define INSTANTIATE(Factors)                                                                  \
  template __global__ void product_part<Factors>(Layers, TileTrace, const float*, float*, int);  \
  template __global__ void forward_part<Factors>(Layers, TileTrace, const float*, float*, int);  \
  template __global__ void backward_part<Factors>(Layers, TileTrace, const float*, float*, int); \
  template __global__ void ends_part<Factors>(Layers, TileTrace, const float*, float*, int);
INSTANTIATE(Float32Factors)
INSTANTIATE(Tf32Factors)
INSTANTIATE(Bfloat16Factors)
