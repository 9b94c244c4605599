// Which compiled engines and ops this processor can run.
#pragma once

#ifdef DIFFFLOW_X86
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include <stdexcept>
#include <string>
#include <vector>

#include "../fused/problem.h"
#include "../ops/launch_cpu.h"

namespace diffflow {

/// A set of instructions: its engines, its ops (null if it has none of its own), whether the
/// processor has it, and what else a process must do to use it (null: nothing).
struct Candidate {
  const Instructions* engines;
  const OpLoops* ops;
  bool has;
  bool (*permitted)() = nullptr;

  bool may_run() const { return has && (permitted == nullptr || permitted()); }

  /// Null, or the error of a compiler that failed on it.
  const char* left_out() const {
    if (engines->left_out != nullptr || ops == nullptr) return engines->left_out;
    return ops->left_out;
  }
};

#ifdef DIFFFLOW_X86
/// Whether the processor multiplies tiles of bfloat16.
inline bool has_matrix_tiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24;  // in edx of leaf 7
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (~d & (kBf16 | kTiles)) == 0;
}

/// Asks the system for the registers of tiles: they are large, and Linux stores them only for
/// processes that have asked, and for their children.
inline bool ask_for_matrix_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  static const bool given = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return given;
#else
  return false;
#endif
}
#endif

/// All sets of instructions, the fastest first; some may have been left out of the build.
inline std::vector<Candidate> candidates() {
  std::vector<Candidate> out;
#ifdef DIFFFLOW_X86
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  out.push_back({&avx512_instructions(), &avx512_ops(), avx512});
  out.push_back(
      {&amxbf16_instructions(), nullptr, bf16 && has_matrix_tiles(), ask_for_matrix_tiles});
  out.push_back({&avx512bf16_instructions(), nullptr, bf16});
  out.push_back({&avx2_instructions(), &avx2_ops(),
                 __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")});
#endif
  out.push_back({&portable_instructions(), &portable_ops(), true});
  return out;
}

/// Sets of instructions of this build that the processor has, the fastest first.
inline std::vector<const Instructions*> instructions() {
  std::vector<const Instructions*> out;
  for (const Candidate& one : candidates()) {
    if (one.engines->left_out == nullptr && one.may_run()) out.push_back(one.engines);
  }
  return out;
}

inline const Instructions& instructions_named(const std::string& name) {
  for (const Candidate& one : candidates()) {
    if (one.engines->name != name) continue;
    if (one.engines->left_out != nullptr) {
      throw std::invalid_argument("instructions: this build has no '" + name +
                                  "': " + one.engines->left_out);
    }
    if (one.may_run()) return *one.engines;
  }
  throw std::invalid_argument("instructions: this processor has no '" + name + "'");
}

/// The ops of this build that the processor can run, the fastest first. Those for bfloat16 have
/// engines alone.
inline std::vector<const OpLoops*> op_sets() {
  std::vector<const OpLoops*> out;
  for (const Candidate& one : candidates()) {
    if (one.has && one.ops != nullptr && one.ops->left_out == nullptr) out.push_back(one.ops);
  }
  return out;
}

inline const OpLoops* ops_named(const std::string& name) {
  for (const OpLoops* one : op_sets()) {
    if (one->name == name) return one;
  }
  throw std::invalid_argument(
      "instructions: expected a set that this build and processor have, got '" + name + "'");
}

/// The ops in use: the fastest, or in tests those of another set of instructions.
inline const OpLoops*& op_loops() {
  static const OpLoops* chosen = op_sets().front();
  return chosen;
}

}  // namespace diffflow
