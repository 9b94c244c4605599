// Which compiled engines and ops this processor can run.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "../fused/problem.h"
#include "../ops/launch_cpu.h"

namespace diffflow {

/// Sets of instructions of this build that the processor has, the fastest first.
inline std::vector<const Instructions*> instructions() {
  std::vector<const Instructions*> out;
#ifdef DIFFFLOW_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
    out.push_back(&avx512_instructions());
    if (__builtin_cpu_supports("avx512bf16")) out.push_back(&avx512bf16_instructions());
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    out.push_back(&avx2_instructions());
  }
#endif
  out.push_back(&portable_instructions());
  return out;
}

inline const Instructions& instructions_named(const std::string& name) {
  for (const Instructions* one : instructions()) {
    if (one->name == name) return *one;
  }
  throw std::invalid_argument("instructions: this processor has no '" + name + "'");
}

/// The ops of a set of instructions that the processor has. avx512bf16 has engines alone.
inline const OpLoops* ops_named(const std::string& name) {
  instructions_named(name);
#ifdef DIFFFLOW_X86
  const std::vector<const OpLoops*> all = {&avx512_ops(), &avx2_ops(), &portable_ops()};
#else
  const std::vector<const OpLoops*> all = {&portable_ops()};
#endif
  for (const OpLoops* one : all) {
    if (one->name == name) return one;
  }
  throw std::invalid_argument("instructions: there are no ops for '" + name + "'");
}

/// The ops in use: the fastest, or in tests those of another set of instructions.
inline const OpLoops*& op_loops() {
  static const OpLoops* chosen = ops_named(instructions().front()->name);
  return chosen;
}

}  // namespace diffflow
