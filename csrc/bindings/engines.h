// Which compiled engines this processor can run.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "../fused/problem.h"

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

}  // namespace diffflow
