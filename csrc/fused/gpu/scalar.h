// One float instead of a vector, for activations.h in a thread of a GPU.
#pragma once

#include "../../ops/device.h"
#ifdef DIFFFLOW_CUDA_ON_HOST
#include <cmath>
#endif

#ifdef DIFFFLOW_CUDA_ON_HOST
#define DF_INLINE static inline
#else
#define DF_INLINE static __device__ __forceinline__
#endif

namespace diffflow {
namespace DF_NAMESPACE {

typedef float Vec;

DF_INLINE float splat(float value) { return value; }
// The build switches contraction off for the noise; networks use explicit fused multiply-adds.
DF_INLINE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DF_INLINE float choose(bool mask, float yes, float no) { return mask ? yes : no; }
DF_INLINE float magnitude(float v) { return fabsf(v); }

#ifdef DIFFFLOW_CUDA_ON_HOST
/// 1 / v for v in [1, 2^100], within 1 ulp.
DF_INLINE float reciprocal(float v) { return 1.0f / v; }

/// e^v for v <= 0, within 2 ulp of the largest value, 1; below 2^-126 it is 0.
DF_INLINE float exponential(float v) { return std::exp(v); }
#else
// What __fdividef and __expf do, without their instructions for numbers below 2^-126.
DF_INLINE float reciprocal(float v) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}
DF_INLINE float exponential(float v) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v * 1.4426950408889634f));
  return out;
}
#endif

}  // namespace DF_NAMESPACE
}  // namespace diffflow
