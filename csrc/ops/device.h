// The CUDA runtime under nvcc, or the host emulation with which the tests execute the same source
// without a GPU (tests/native/cuda_host.h).
#pragma once

#ifdef DIFFFLOW_CUDA_ON_HOST
#include "cuda_host.h"
#else
#include <cuda_runtime.h>

#define DF_UNPAREN(...) __VA_ARGS__
/// Launches a kernel; its name is in parentheses because templates contain commas.
#define DF_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  DF_UNPAREN kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)
/// A shared array of a block. The emulation poisons it at the start of every block.
#define DF_SHARED(type, name, count) __shared__ type name[count]
/// The block's dynamic shared memory, aligned for accesses of 16 bytes.
#define DF_DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
#endif
