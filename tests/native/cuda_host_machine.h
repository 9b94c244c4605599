// The machine behind cuda_host.h: schedules, barriers and meetings of a warp's lanes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda_host_memory.h"

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Variables rather than macros, so that kernels may name members and locals as they like.
inline thread_local uint3 threadIdx{0, 0, 0};
inline thread_local uint3 blockIdx{0, 0, 0};
inline thread_local dim3 blockDim;
inline thread_local dim3 gridDim;
constexpr int warpSize = 32;

namespace emu {

constexpr unsigned kLanes = 32;

/// The first schedules, one of each kind and four random ones: what a test should run through.
constexpr int kNumSchedules = 8;

/// Source position of a barrier or warp operation, for error texts.
struct Site {
  const char* file = "";
  int line = 0;
  bool operator==(const Site& o) const { return line == o.line && !std::strcmp(file, o.file); }
  std::string text() const { return std::string(file) + ":" + std::to_string(line); }
};

enum class State { kReady, kAtBarrier, kAtWarpOp, kDone };

/// What a lane brings to a warp operation, and what it takes away.
struct WarpCall {
  const char* name = "";
  Site site;
  uint32_t mask = 0;
  unsigned source = 0;  // lane whose value this one reads
  uint64_t value = 0;
  uint64_t result = 0;  // the source's value
  uint32_t ballot = 0;  // bit k: lane k's value is not zero
};

struct Fiber {
  Context context;
  State state = State::kDone;
  bool made = false;
  unsigned index = 0;
  uint3 thread{0, 0, 0};
  Site barrier;
  WarpCall call;
};

/// Order in which blocks, warps and lanes run; see set_schedule in cuda_host.h.
class Schedule {
 public:
  explicit Schedule(int number) : number_(number), random_(static_cast<unsigned>(number)) {}
  bool breadth_first() const { return number_ == 2 || (random() && number_ % 2 == 0); }

  /// Position of the i-th block to run among n; random ones step by a number coprime to n, which
  /// needs no table.
  uint64_t block(uint64_t i, uint64_t n) const {
    if (number_ == 1) return n - 1 - i;
    if (!random()) return i;
    const uint64_t hash = static_cast<uint64_t>(number_) * 0x9E3779B97F4A7C15u;
    uint64_t stride = 1 + (hash >> 32) % n;
    while (std::gcd(stride, n) != 1) ++stride;
    return (i * (stride % n) + hash % n) % n;
  }

  void arrange(std::vector<unsigned>& order, unsigned n) {
    order.resize(n);
    std::iota(order.begin(), order.end(), 0u);
    if (number_ == 1) std::reverse(order.begin(), order.end());
    if (random()) std::shuffle(order.begin(), order.end(), random_);
  }

 private:
  bool random() const { return number_ >= 3; }
  int number_;
  std::mt19937 random_;
};

inline std::string text(uint3 p) {
  return "(" + std::to_string(p.x) + ", " + std::to_string(p.y) + ", " + std::to_string(p.z) + ")";
}

inline std::string hex(uint32_t mask) {
  char buffer[16];
  std::snprintf(buffer, sizeof buffer, "0x%08x", mask);
  return buffer;
}

/// Runs one launch at a time, all of it on the OS thread that called it.
class Machine {
 public:
  int schedule = 0;
  SharedMemory shared;

  void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);
  bool running() const { return current_ != nullptr; }

  // Called by kernel code.
  void wait_at_barrier(Site site);
  const WarpCall& meet_lanes(WarpCall call);
  unsigned lane() const { return current_->index % kLanes; }

  // The life of a fiber: runs the body once for each block that it is woken for.
  void fiber_main();

 private:
  void prepare_fibers();
  void run_block();
  void run_warps_to_barrier(Schedule& schedule);
  bool advance(unsigned warp, Schedule& schedule);
  bool complete_warp_ops(unsigned warp);
  bool all_named_lanes_wait(const Fiber& fiber) const;
  void deliver(unsigned warp, uint32_t mask);
  void release_barrier();
  void resume(Fiber& fiber);
  void suspend() { switch_context(current_->context, scheduler_); }
  void abandon_fibers();
  unsigned count(State state) const;
  const Fiber& first(State state) const;
  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(what + " [block " + text(blockIdx) + "]");
  }
  [[noreturn]] void fail(const WarpCall& call, const std::string& what) const {
    fail(std::string(call.name) + " at " + call.site.text() + ", mask " + hex(call.mask) + ": " +
         what);
  }

  unsigned num_threads_ = 0;
  unsigned num_warps_ = 0;
  std::vector<Fiber> fibers_{kMaxThreads};
  std::unique_ptr<Stacks> stacks_;
  Context scheduler_;
  Fiber* current_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  std::exception_ptr error_;
  Schedule order_{0};
  std::vector<unsigned> warp_order_, lane_order_;
};

inline Machine& machine() {
  static thread_local Machine instance;
  return instance;
}

inline void fiber_entry() { machine().fiber_main(); }

inline void Machine::fiber_main() {
  enter_stack(scheduler_);
  for (;;) {
    try {
      (*body_)();
    } catch (...) {
      error_ = std::current_exception();
    }
    current_->state = State::kDone;
    suspend();
  }
}

inline void Machine::resume(Fiber& fiber) {
  current_ = &fiber;
  threadIdx = fiber.thread;
  switch_context(scheduler_, fiber.context);
  current_ = nullptr;
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

inline void Machine::run(dim3 grid, dim3 block, size_t shared_bytes,
                         const std::function<void()>& body) {
  if (running()) throw std::runtime_error("DF_LAUNCH: called by a kernel");
  body_ = &body;
  gridDim = grid;
  blockDim = block;
  num_threads_ = block.x * block.y * block.z;
  num_warps_ = (num_threads_ + kLanes - 1) / kLanes;
  order_ = Schedule(schedule);
  shared.start_launch(shared_bytes);
  const uint64_t num_blocks = uint64_t{grid.x} * grid.y * grid.z;
  try {
    for (uint64_t i = 0; i < num_blocks; ++i) {
      const uint64_t b = order_.block(i, num_blocks);
      blockIdx = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y),
                  unsigned(b / grid.x / grid.y)};
      run_block();
    }
  } catch (...) {
    abandon_fibers();
    shared.end_launch();
    throw;
  }
  shared.end_launch();
}

inline void Machine::prepare_fibers() {
  if (!stacks_) stacks_ = std::make_unique<Stacks>();
  for (unsigned i = 0; i < num_threads_; ++i) {
    Fiber& fiber = fibers_[i];
    fiber.index = i;
    fiber.thread = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
    fiber.state = State::kReady;
    if (fiber.made) continue;
    fiber.context.bottom = stacks_->bottom(i);
    fiber.context.bytes = kStackBytes;
    make_context(fiber.context, fiber_entry);
    fiber.made = true;
  }
}

inline void Machine::abandon_fibers() {
  for (Fiber& fiber : fibers_) {
    if (fiber.state == State::kDone) continue;
    fiber.state = State::kDone;
    fiber.made = false;
    forget_stack(fiber.context);
  }
}

inline void Machine::run_block() {
  prepare_fibers();
  shared.start_block();
  while (count(State::kDone) != num_threads_) {
    run_warps_to_barrier(order_);
    if (count(State::kDone) != num_threads_) release_barrier();
  }
}

inline void Machine::run_warps_to_barrier(Schedule& schedule) {
  schedule.arrange(warp_order_, num_warps_);
  if (!schedule.breadth_first()) {
    for (unsigned warp : warp_order_) {
      while (advance(warp, schedule)) continue;
    }
    return;
  }
  for (bool moved = true; moved;) {
    moved = false;
    for (unsigned warp : warp_order_) moved |= advance(warp, schedule);
  }
}

/// Runs every ready lane of a warp to its next wait. Returns whether the warp may go on.
inline bool Machine::advance(unsigned warp, Schedule& schedule) {
  bool moved = false;
  schedule.arrange(lane_order_, std::min(kLanes, num_threads_ - warp * kLanes));
  for (unsigned lane : lane_order_) {
    Fiber& fiber = fibers_[warp * kLanes + lane];
    if (fiber.state != State::kReady) continue;
    resume(fiber);
    moved = true;
  }
  return complete_warp_ops(warp) || moved;
}

inline bool Machine::complete_warp_ops(unsigned warp) {
  bool moved = false;
  const unsigned end = std::min((warp + 1) * kLanes, num_threads_);
  for (unsigned i = warp * kLanes; i < end; ++i) {
    if (fibers_[i].state != State::kAtWarpOp || !all_named_lanes_wait(fibers_[i])) continue;
    deliver(warp, fibers_[i].call.mask);
    moved = true;
  }
  return moved;
}

inline bool Machine::all_named_lanes_wait(const Fiber& fiber) const {
  const WarpCall& call = fiber.call;
  const unsigned start = fiber.index - fiber.index % kLanes;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if (!(call.mask >> lane & 1)) continue;
    const std::string who = "lane " + std::to_string(lane) + " is named in the mask but ";
    if (start + lane >= num_threads_) fail(call, who + "lies outside the block");
    const Fiber& peer = fibers_[start + lane];
    if (peer.state == State::kDone) fail(call, who + "has exited");
    if (peer.state == State::kAtBarrier) {
      fail(call, who + "waits at __syncthreads at " + peer.barrier.text());
    }
    if (peer.state != State::kAtWarpOp || peer.call.mask != call.mask) return false;
    if (!(peer.call.site == call.site) || std::strcmp(peer.call.name, call.name) != 0) {
      fail(call, who + "waits in another call: " + peer.call.name + " at " + peer.call.site.text());
    }
  }
  return true;
}

inline void Machine::deliver(unsigned warp, uint32_t mask) {
  Fiber* lanes = &fibers_[warp * kLanes];
  uint32_t ballot = 0;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1) && lanes[lane].call.value) ballot |= 1u << lane;
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if (!(mask >> lane & 1)) continue;
    WarpCall& call = lanes[lane].call;
    if (!(mask >> call.source & 1)) {
      fail(call, "lane " + std::to_string(lane) + " reads lane " + std::to_string(call.source) +
                     ", which the mask does not name");
    }
    call.result = lanes[call.source].call.value;
    call.ballot = ballot;
    lanes[lane].state = State::kReady;
  }
}

/// Nothing can move: either all threads stand at one barrier, or the kernel is wrong.
inline void Machine::release_barrier() {
  if (count(State::kAtWarpOp)) {
    const Fiber& stuck = first(State::kAtWarpOp);
    fail(stuck.call,
         "deadlock: thread " + text(stuck.thread) + " waits for lanes that wait with other masks");
  }
  const Fiber& waiting = first(State::kAtBarrier);
  const std::string where = "divergent __syncthreads at " + waiting.barrier.text() + ": ";
  if (const unsigned exited = count(State::kDone)) {
    fail(where + std::to_string(count(State::kAtBarrier)) + " threads wait, " +
         std::to_string(exited) + " have exited, thread " + text(first(State::kDone).thread) +
         " among them");
  }
  for (unsigned i = 0; i < num_threads_; ++i) {
    Fiber& fiber = fibers_[i];
    if (!(fiber.barrier == waiting.barrier)) {
      fail(where + "thread " + text(fiber.thread) + " waits at " + fiber.barrier.text());
    }
    fiber.state = State::kReady;
  }
}

inline unsigned Machine::count(State state) const {
  return static_cast<unsigned>(
      std::count_if(fibers_.begin(), fibers_.begin() + num_threads_,
                    [=](const Fiber& fiber) { return fiber.state == state; }));
}

inline const Fiber& Machine::first(State state) const {
  return *std::find_if(fibers_.begin(), fibers_.begin() + num_threads_,
                       [=](const Fiber& fiber) { return fiber.state == state; });
}

inline void Machine::wait_at_barrier(Site site) {
  current_->barrier = site;
  current_->state = State::kAtBarrier;
  suspend();
}

inline const WarpCall& Machine::meet_lanes(WarpCall call) {
  if (!(call.mask >> lane() & 1)) {
    fail(call, "called by lane " + std::to_string(lane()) + ", which the mask does not name");
  }
  current_->call = call;
  current_->state = State::kAtWarpOp;
  suspend();
  return current_->call;
}

}  // namespace emu
