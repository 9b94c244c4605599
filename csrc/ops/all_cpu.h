// The ops for the set of instructions that a source names by DF_NAMESPACE and DF_LANES before it
// includes this file.
#pragma once

// No function of this source may be linked into code for another set of instructions.
#define DF_HD inline __attribute__((always_inline))

#include "launch_cpu.h"
#include "loop_cpu.h"

#define DF_TEXT(name) #name
#define DF_NAME(name) DF_TEXT(name)

namespace diffflow {
namespace DF_NAMESPACE {

#define DF_FOR_EACH(...) \
  , { for_each<__VA_ARGS__> }
#define DF_REDUCE(...) \
  , { reduce<__VA_ARGS__> }
static const OpLoops kOps = {{DF_NAME(DF_NAMESPACE)} DF_FOR_ELEMENTWISE(DF_FOR_EACH)
                                 DF_FOR_REDUCTIONS(DF_REDUCE)};

}  // namespace DF_NAMESPACE
}  // namespace diffflow
