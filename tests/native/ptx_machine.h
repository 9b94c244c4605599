// The parts of a device that runs PTX on the CPU: kernels, warps, blocks, settings, and values as
// registers hold them.
//
// The lanes of a warp run in lockstep. Each has a program counter of its own, and those furthest
// behind go first, so that lanes that have parted meet again.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace ptx {

constexpr int kWarp = 32;
/// One register of each lane. Types of fewer than 64 bits use the lowest; the others mean nothing.
using Row = std::array<uint64_t, kWarp>;
using Lanes = uint32_t;
constexpr Lanes kAllLanes = ~0u;

/// What PTX and the hardware leave open. Python sets them by name.
struct Settings {
  int64_t order = 0;    ///< 0: blocks and warps in order; else the seed of a shuffle
  int64_t inexact = 0;  ///< 1: as inaccurate as tensor cores and approximations may be
  int64_t junk = 1;     ///< the 13 low bits of TF32 values hold anything
  int64_t devices = 1;
  int64_t multiprocessors = 2;    ///< of the device
  int64_t shared_limit = 232448;  ///< bytes a block may ask for; here those of an H100
};
inline Settings settings;

[[noreturn]] inline void unsupported(const std::string& what) {
  throw std::runtime_error("the interpreter does not know " + what);
}

struct Warp;
using Operation = std::function<void(Warp&, Lanes)>;

/// kWarpWide instructions run when all their lanes have come to them.
enum class Kind { kLaneWise, kWarpWide, kBranch, kReturn, kBarrier };

struct Instruction {
  std::string text;
  Kind kind = Kind::kLaneWise;
  int guard = -1;  ///< the register of its predicate; -1: it always runs
  bool negated = false;
  std::string label;  ///< a branch's target, by name and by position
  int target = -1;
  int members = -1;  ///< the register of the lanes that take part; -1: the whole warp
  Operation run;
  int64_t runs = 0;
};

/// What has gone wrong since Python last asked, in words: one report of a kind and an instruction.
inline std::map<std::pair<std::string, const Instruction*>, std::string> problems;
inline std::string running_kernel;
inline void report(const std::string& kind, const Instruction* at = nullptr,
                   const std::string& details = "") {
  problems.try_emplace({kind, at}, running_kernel + ": " + kind + details);
}

struct Parameter {
  uint32_t offset, bytes;
};

struct Kernel {
  std::string name, source;
  std::string dynamic_name;  ///< of the block's dynamic shared memory, behind its other variables
  std::vector<Parameter> parameters;
  uint32_t parameter_bytes = 0, shared_bytes = 0, local_bytes = 0, max_threads = 1024;
  uint32_t dynamic_limit = 48 * 1024;
  /// Registers, addresses of variables and literals have a row each, by name.
  std::map<std::string, int> rows;
  std::map<std::string, uint64_t> symbols;
  std::vector<std::pair<int, uint64_t>> constants;
  std::vector<std::pair<std::string, int>> specials;  ///< "%tid.x" and its like
  std::vector<Instruction> code;
  int64_t launches = 0;

  int new_row() {
    const int row = static_cast<int>(rows.size());
    rows["#" + std::to_string(row)] = row;
    return row;
  }
  uint32_t dynamic_start() const { return (shared_bytes + 15) / 16 * 16; }
};

/// Who touched two bytes of memory last. Thread 0: nobody; kSeveral: more than one.
struct Access {
  uint32_t block = 0, thread = 0, epoch = 0;
};
constexpr uint32_t kSeveral = ~0u;
struct Mark {
  uint32_t launch = 0;
  Access write, read;
};

struct Block {
  Kernel* kernel;
  uint32_t index = 0, threads = 0, launch = 0;
  uint32_t epoch = 0;  ///< counts barriers
  std::vector<uint8_t> parameters, shared;
  std::vector<Mark> marks;       ///< of shared memory
  std::vector<uint8_t> written;  ///< of shared memory: whether it has a value
};

enum class State : uint8_t { kRunning, kAtBarrier, kAtWarp, kExited };
struct Warp {
  Block* block;
  uint32_t first;  ///< its first thread
  std::vector<Row> rows;
  std::vector<uint8_t> local;
  std::array<int, kWarp> at;  ///< program counters
  std::array<State, kWarp> state;
  Instruction* now = nullptr;
};

template <class Run>
void each(Lanes lanes, const Run& run) {
  if (lanes == kAllLanes) {
    for (int i = 0; i < kWarp; ++i) run(i);
  } else {
    for (; lanes != 0; lanes &= lanes - 1) run(__builtin_ctz(lanes));
  }
}

/// Reads a register as a T.
template <class T>
T get(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
template <>
inline bool get(uint64_t bits) {
  return bits & 1;
}

template <class T>
uint64_t put(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

/// Calls `run(T{})` for the type that a suffix such as "u32" names.
template <class Run>
auto with_type(const std::string& name, const Run& run) {
  if (name == "u8" || name == "b8") return run(uint8_t{});
  if (name == "s8") return run(int8_t{});
  if (name == "u16" || name == "b16") return run(uint16_t{});
  if (name == "s16") return run(int16_t{});
  if (name == "u32" || name == "b32") return run(uint32_t{});
  if (name == "s32") return run(int32_t{});
  if (name == "u64" || name == "b64") return run(uint64_t{});
  if (name == "s64") return run(int64_t{});
  if (name == "f32") return run(float{});
  if (name == "f64") return run(double{});
  unsupported("the type " + name);
}

inline int bytes_of(const std::string& type) {
  return with_type(type, [](auto value) { return static_cast<int>(sizeof value); });
}

}  // namespace ptx
