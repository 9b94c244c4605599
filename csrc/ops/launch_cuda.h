// Entry points of the CUDA kernels for the bindings, without CUDA headers.
#pragma once

#include "bodies.h"

namespace diffflow {
namespace cuda {

/// Runs an elementwise body on `device` in `stream` (a cudaStream_t). Throws std::runtime_error
/// with CUDA's message if the launch fails.
template <class Body>
void for_each(const Body& body, const Shape& shape, bool aligned, int device, void* stream);

/// Runs a reduction. `partials` has room for samples * num_segments sums on the device.
template <class Body>
void reduce(const Body& body, const Shape& shape, bool aligned, typename Body::Sum* partials,
            int device, void* stream);

}  // namespace cuda
}  // namespace diffflow
