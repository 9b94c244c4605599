// The ops for the set of instructions that a source names by DF_NAMESPACE and DF_LANES before it
// includes this file.
#pragma once

// No function of this source may be linked into code for another set of instructions.
#define DF_HD inline __attribute__((always_inline))

#include "launch_cpu.h"
#ifndef DIFFFLOW_LEFT_OUT
#include "loop_cpu.h"
#endif

#define DF_TEXT(name) #name
#define DF_NAME(name) DF_TEXT(name)

namespace diffflow {
namespace DF_NAMESPACE {

#ifdef DIFFFLOW_LEFT_OUT  // compile_or_leave_out.py: the compiler failed on this source
static const OpLoops kOps = [] {
  OpLoops ops{};
  ops.name = DF_NAME(DF_NAMESPACE);
  ops.left_out = DIFFFLOW_LEFT_OUT;
  return ops;
}();
#else
#define DF_FOR_EACH(...) \
  , { for_each<__VA_ARGS__> }
#define DF_REDUCE(...) \
  , { reduce<__VA_ARGS__> }
static const OpLoops kOps = {{DF_NAME(DF_NAMESPACE)} DF_FOR_ELEMENTWISE(DF_FOR_EACH)
                                 DF_FOR_REDUCTIONS(DF_REDUCE)};
#endif

}  // namespace DF_NAMESPACE
}  // namespace diffflow
