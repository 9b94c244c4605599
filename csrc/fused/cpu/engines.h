// All engines of the CPU in one table, for the set of instructions that a source names by
// DF_NAMESPACE and DF_LANES before it includes this file.
#pragma once

#define DF_TEXT(name) #name
#define DF_NAME(name) DF_TEXT(name)

#ifdef DIFFFLOW_LEFT_OUT

// csrc/cmake/compile_or_leave_out.py defines it where the compiler failed on what follows.
#include "../problem.h"

namespace diffflow {
namespace DF_NAMESPACE {

static const Instructions kInstructions = {DF_NAME(DF_NAMESPACE),
                                           DIFFFLOW_LEFT_OUT,
                                           nullptr,
                                           nullptr,
                                           nullptr,
                                           nullptr,
                                           nullptr,
                                           nullptr,
                                           nullptr,
                                           nullptr,
                                           nullptr};

}  // namespace DF_NAMESPACE
}  // namespace diffflow

#else

// No function of this source may be linked into code for another set of instructions.
#define DF_HD inline __attribute__((always_inline))

#include "embedding.h"
#include "ode.h"
#include "regression.h"
#include "reverse.h"

namespace diffflow {
namespace DF_NAMESPACE {

static const Instructions kInstructions = {DF_NAME(DF_NAMESPACE),
                                           nullptr,
                                           paths_scratch_bytes,
                                           run_paths,
                                           run_reverse_paths,
                                           regression_scratch_bytes,
                                           run_regression,
                                           ode_scratch_bytes,
                                           run_ode,
                                           embedding_scratch_bytes,
                                           run_embedding};

}  // namespace DF_NAMESPACE
}  // namespace diffflow

#endif  // DIFFFLOW_LEFT_OUT
