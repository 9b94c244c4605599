// The CPU loops of all bodies as a table, one for each set of instructions.
#pragma once

#include "bodies.h"

namespace diffflow {

/// Runs an elementwise body.
template <class Body>
struct ForEach {
  void (*for_each)(const Body& body, const Shape& shape);
};

/// Runs a reduction. `partials` has room for samples * num_segments sums, and is not used where a
/// row is one segment.
template <class Body>
struct Reduce {
  void (*reduce)(const Body& body, const Shape& shape, typename Body::Sum* partials);
};

struct Named {
  const char* name;                ///< that of the engines for the same instructions
  const char* left_out = nullptr;  ///< the error of a compiler that failed on them
};

#define DF_FOR_EACH(...) , ForEach<__VA_ARGS__>
#define DF_REDUCE(...) , Reduce<__VA_ARGS__>
struct OpLoops : Named DF_FOR_ELEMENTWISE(DF_FOR_EACH) DF_FOR_REDUCTIONS(DF_REDUCE) {};
#undef DF_FOR_EACH
#undef DF_REDUCE

const OpLoops& portable_ops();
#ifdef DIFFFLOW_X86
const OpLoops& avx2_ops();
const OpLoops& avx512_ops();
#endif

}  // namespace diffflow
