// Runs kernels: their code from text, then blocks one after the other, warps until each barrier.
#pragma once

#include <climits>
#include <random>
#include <set>

#include "ptx_warp.h"

namespace ptx {

// --- code ----------------------------------------------------------------------------------------

/// One instruction; empty text does nothing.
inline Instruction instruction_of(Kernel& kernel, const std::string& text) {
  Instruction out;
  out.text = text;
  if (text.empty()) {
    out.run = [](Warp&, Lanes) {};
    return out;
  }
  const Statement at = statement_of(text);
  const std::string& name = at.opcode[0];
  if (!at.guard.empty()) out.guard = row_of(kernel, at.guard), out.negated = at.negated;
  if (name == "ret") {
    out.kind = Kind::kReturn;
  } else if (name == "bra") {
    out.kind = Kind::kBranch, out.label = at.operands[0];
  } else if (name == "bar" && has(at.opcode, "sync") && at.operands == Words{"0"}) {
    out.kind = Kind::kBarrier;
  } else if (name == "ld" || name == "st") {
    out.run = access(kernel, at.opcode, at.operands);
  } else if (name == "mov") {
    out.run = move(kernel, at.opcode, at.operands);
  } else if (name == "shfl" && at.opcode.back() == "b32") {
    out.run = shuffle(kernel, at.opcode, at.operands, out);
  } else if (name == "ldmatrix") {
    out.run = load_matrices(kernel, at.opcode, at.operands, out);
  } else if (name == "mma") {
    out.run = multiply(kernel, at.opcode, at.operands, out);
  } else {
    out.run = arithmetic(kernel, at.opcode, at.operands);
  }
  if (out.run == nullptr && (out.kind == Kind::kLaneWise || out.kind == Kind::kWarpWide)) {
    unsupported(text);
  }
  return out;
}

/// Reads a kernel's body, once.
inline void read_code(Kernel& kernel) {
  if (!kernel.code.empty()) return;
  kernel.shared_bytes = kernel.local_bytes = 0;
  Words statements;
  for (const std::string& text : statements_of(kernel.source)) {
    if (text.rfind(".shared", 0) == 0) {
      place(kernel, variable_of(text), kernel.shared_bytes);
    } else if (text.rfind(".local", 0) == 0) {
      place(kernel, variable_of(text), kernel.local_bytes);
    } else if (!text.empty() && text[0] != '.') {  // .reg and .pragma say nothing that is needed
      statements.push_back(text);
    }
  }
  kernel.symbols[kernel.dynamic_name] = kernel.dynamic_start();
  std::vector<Instruction> code;
  std::map<std::string, int> labels;
  for (const std::string& text : statements) {
    if (text.back() == ':') {
      labels[text.substr(0, text.size() - 1)] = static_cast<int>(code.size());
    } else {
      code.push_back(instruction_of(kernel, text));
    }
  }
  for (Instruction& one : code) {
    if (one.kind == Kind::kBranch) one.target = labels.at(one.label);
  }
  kernel.code = std::move(code);
}

// --- a warp --------------------------------------------------------------------------------------

inline void go_to(Warp& warp, Lanes lanes, int at) {
  each(lanes, [&](int lane) { warp.at[lane] = at; });
}

inline void set_state(Warp& warp, Lanes lanes, State state) {
  each(lanes, [&](int lane) { warp.state[lane] = state; });
}

template <class Test>
Lanes lanes_where(const Test& test) {
  Lanes out = 0;
  for (int i = 0; i < kWarp; ++i) out |= static_cast<Lanes>(test(i)) << i;
  return out;
}

/// Lanes have come to a warp-wide instruction: it runs when all that take part are there.
inline void meet(Warp& warp, Instruction& now, int at) {
  const Lanes here =
      lanes_where([&](int i) { return warp.state[i] == State::kAtWarp && warp.at[i] == at; });
  each(here, [&](int lane) {
    const Lanes group =
        now.members < 0 ? kAllLanes : static_cast<Lanes>(warp.rows[now.members][lane]);
    if (warp.state[lane] != State::kAtWarp || (here & group) != group) return;
    now.run(warp, group);
    set_state(warp, group, State::kRunning), go_to(warp, group, at + 1);
  });
}

/// Lanes branch away from others, wait or end; the others are behind the instruction.
inline void leave(Warp& warp, Instruction& now, Lanes lanes, int at) {
  if (now.kind == Kind::kBranch) {
    go_to(warp, lanes, now.target);
  } else if (now.kind == Kind::kReturn) {
    set_state(warp, lanes, State::kExited);
  } else if (now.kind == Kind::kBarrier) {
    set_state(warp, lanes, State::kAtBarrier);
  } else {
    go_to(warp, lanes, at), set_state(warp, lanes, State::kAtWarp);
    meet(warp, now, at);
  }
}

/// Runs lanes from `at` until they part, stop or come to `other`; they are left where they are.
inline void run_lanes(Warp& warp, Lanes lanes, int at, int other) {
  std::vector<Instruction>& code = warp.block->kernel->code;
  while (at < other) {
    Instruction& now = code.at(at);
    Lanes active = lanes;
    if (now.guard >= 0) {
      const Row& guard = warp.rows[now.guard];
      active &= lanes_where([&](int i) { return (guard[i] & 1) != now.negated; });
    }
    if (active != 0) ++now.runs, warp.now = &now;
    if (active == 0 || now.kind == Kind::kLaneWise) {
      if (active != 0) now.run(warp, active);
      ++at;
    } else if (now.kind == Kind::kBranch && active == lanes) {
      at = now.target;
    } else {
      go_to(warp, lanes, at + 1);
      leave(warp, now, active, at);
      return;
    }
  }
  go_to(warp, lanes, at);
}

/// Runs a warp until all its lanes wait at barriers or have left.
inline void run_warp(Warp& warp) {
  for (;;) {
    int first = INT_MAX, other = INT_MAX;
    for (int i = 0; i < kWarp; ++i) {
      if (warp.state[i] == State::kRunning) first = std::min(first, warp.at[i]);
    }
    for (int i = 0; i < kWarp; ++i) {
      if (warp.state[i] == State::kRunning && warp.at[i] > first) {
        other = std::min(other, warp.at[i]);
      }
    }
    const auto is_first = [&](int i) {
      return warp.state[i] == State::kRunning && warp.at[i] == first;
    };
    const Lanes lanes = lanes_where(is_first);
    if (lanes == 0) break;
    run_lanes(warp, lanes, first, other);
  }
  const Lanes stuck = lanes_where([&](int i) { return warp.state[i] == State::kAtWarp; });
  if (stuck != 0) {
    report("a warp-wide instruction waits for lanes that never come");
    set_state(warp, stuck, State::kExited);
  }
}

// --- a launch ------------------------------------------------------------------------------------

struct Size {
  unsigned x, y, z;

  uint64_t count() const { return uint64_t{x} * y * z; }
  Size at(uint32_t index) const { return {index % x, index / x % y, index / x / y}; }
  unsigned along(char axis) const { return axis == 'x' ? x : axis == 'y' ? y : z; }
};

struct Launch {
  std::shared_ptr<Kernel> kernel;
  Size grid, threads;
  std::vector<uint8_t> parameters;
  uint32_t dynamic_bytes;
};

inline uint32_t launch_number = 0;

class Grid {
 public:
  explicit Grid(const Launch& launch) : launch_(launch), kernel_(*launch.kernel) {
    block_.kernel = &kernel_, block_.parameters = launch.parameters;
    block_.threads = static_cast<uint32_t>(launch.threads.count());
    block_.launch = ++launch_number;
    warps_.resize((block_.threads + kWarp - 1) / kWarp);
    random_.seed(static_cast<uint32_t>(settings.order));
  }

  void run() {
    for (uint32_t index : order_of(launch_.grid.count())) run_block(index);
  }

 private:
  std::vector<uint32_t> order_of(uint64_t count) {
    std::vector<uint32_t> order(count);
    for (uint32_t i = 0; i < count; ++i) order[i] = i;
    if (settings.order != 0) std::shuffle(order.begin(), order.end(), random_);
    return order;
  }

  void run_block(uint32_t index) {
    const size_t bytes = kernel_.dynamic_start() + launch_.dynamic_bytes;
    block_.index = index, ++block_.epoch;
    block_.shared.assign(bytes, 0xff);  // NaN
    block_.written.assign(bytes, 0);
    block_.marks.assign(bytes / 2 + 1, Mark{});
    for (uint32_t i = 0; i < warps_.size(); ++i) start(warps_[i], kWarp * i);
    do {
      for (uint32_t i : order_of(warps_.size())) run_warp(warps_[i]);
    } while (pass_barrier());
  }

  void start(Warp& warp, uint32_t first) {
    constexpr uint64_t nothing = 0x7ff4dead7fa4deadull;  // NaN in both halves
    warp.block = &block_, warp.first = first;
    Row poison;
    poison.fill(nothing);
    warp.rows.assign(kernel_.rows.size(), poison);
    warp.local.assign(size_t{kWarp} * kernel_.local_bytes, 0xff);
    for (const auto& [row, value] : kernel_.constants) warp.rows[row].fill(value);
    for (const auto& [name, row] : kernel_.specials) {
      for (int i = 0; i < kWarp; ++i) warp.rows[row][i] = special(name, first + i);
    }
    for (int i = 0; i < kWarp; ++i) {
      warp.at[i] = 0;
      warp.state[i] = first + i < block_.threads ? State::kRunning : State::kExited;
    }
  }

  /// The value of "%tid.x" and its like.
  uint64_t special(const std::string& name, uint32_t thread) const {
    const std::string kind = name.substr(0, name.size() - 1);
    const char axis = name.back();
    if (kind == "%tid.") return launch_.threads.at(thread).along(axis);
    if (kind == "%ntid.") return launch_.threads.along(axis);
    if (kind == "%ctaid.") return launch_.grid.at(block_.index).along(axis);
    if (kind == "%nctaid.") return launch_.grid.along(axis);
    unsupported("the register " + name);
  }

  /// Lets all threads pass a barrier together; returns false if none is left.
  bool pass_barrier() {
    std::set<int> places;
    uint32_t waiting = 0;
    for (Warp& warp : warps_) {
      for (int i = 0; i < kWarp; ++i) {
        if (warp.state[i] != State::kAtBarrier) continue;
        ++waiting, places.insert(warp.at[i]);
        warp.state[i] = State::kRunning;
      }
    }
    if (waiting == 0) return false;
    if (waiting < block_.threads) report("a barrier that some threads never reach");
    if (places.size() > 1) report("threads of one block wait at different barriers");
    ++block_.epoch;
    return true;
  }

  const Launch& launch_;
  Kernel& kernel_;
  Block block_{};
  std::vector<Warp> warps_;
  std::mt19937 random_;
};

}  // namespace ptx
