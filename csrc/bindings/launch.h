// Calls typed kernels on a device, from addresses, sizes and codes of Python. It does not depend on
// torch: the caller, diffflow_ext/functional, checks tensors and keeps them alive.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <type_traits>

#include "../ops/launch_cuda.h"
#include "engines.h"

namespace diffflow {

/// An address as Python holds it; 0 is an absent tensor.
using Address = uintptr_t;

template <typename T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

/// Device, stream, types and sizes of a kernel's launch.
struct Target {
  int device;      ///< -1 for the CPU, else a CUDA device
  Address stream;  ///< a cudaStream_t
  int types;       ///< index into the pairs (state, network output) of with_types
  int64_t samples, elements;

  Shape rows() const { return {samples, elements}; }
  Shape flat() const { return {1, samples * elements}; }
};

/// Calls `run(T{}, N{})` for state type T and storage type N of the network outputs.
template <class Run>
void with_types(int types, const Run& run) {
  switch (types) {
    case 0:
      return run(float{}, float{});
    case 1:
      return run(float{}, BFloat16{});
    case 2:
      return run(float{}, Half{});
    case 3:
      return run(double{}, double{});
    default:
      throw std::invalid_argument("types: expected a code from 0 to 3");
  }
}

/// Calls `run(T{})` for the state type alone.
template <class Run>
void with_state(int types, const Run& run) {
  if (types == 3) return run(double{});
  if (types >= 0 && types < 3) return run(float{});
  throw std::invalid_argument("types: expected a code from 0 to 3");
}

template <typename S>
bool starts_aligned(std::initializer_list<const S*> tensors) {
  for (const S* tensor : tensors) {
    if (reinterpret_cast<uintptr_t>(tensor) % alignof(Packed<S>) != 0) return false;
  }
  return true;
}

inline bool rows_aligned(const Shape& shape) {
  return shape.samples == 1 || shape.elements % 4 == 0;
}

[[noreturn]] inline void no_cuda() {
  throw std::runtime_error(
      "this build of diffflow_ext has no CUDA kernels; reinstall it with DIFFFLOW_CUDA=ON where "
      "nvcc is found (diffflow_ext.build_info() says why it has none)");
}

template <class Body>
void run_each(const Target& target, const Shape& shape, const Body& body, bool aligned) {
  if (shape.quads() == 0) return;
  if (target.device < 0) return op_loops()->ForEach<Body>::for_each(body, shape);
  aligned = aligned && rows_aligned(shape);
#ifdef DIFFFLOW_WITH_CUDA
  cuda::for_each(body, shape, aligned, target.device, pointer<void>(target.stream));
#else
  no_cuda();
#endif
}

template <class Body>
void run_reduction(const Target& target, const Body& body, bool aligned, Address partials) {
  const Shape shape = target.rows();
  if (shape.samples == 0) return;
  auto* sums = pointer<typename Body::Sum>(partials);
  if (target.device < 0) return op_loops()->Reduce<Body>::reduce(body, shape, sums);
  aligned = aligned && rows_aligned(shape);
#ifdef DIFFFLOW_WITH_CUDA
  cuda::reduce(body, shape, aligned, sums, target.device, pointer<void>(target.stream));
#else
  no_cuda();
#endif
}

}  // namespace diffflow
