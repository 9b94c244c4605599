// Memory of the device: which of it a kernel may touch, and what is wrong with an access.
//
// A race: two threads touch the same bytes, one of them writes, and no barrier lies between.
// Threads of different blocks have no barriers in common.
#pragma once

#include <algorithm>
#include <cstdio>
#include <iterator>

#include "ptx_machine.h"

namespace ptx {

/// Global memory that kernels may touch; Python says which. Nothing else is theirs.
struct Range {
  uint64_t start, end;
  std::vector<Mark> marks;
};
inline std::map<uint64_t, Range> ranges;  // by start

inline void forget(uint64_t start, uint64_t end) {
  for (auto it = ranges.lower_bound(start); it != ranges.end() && it->first < end;) {
    it = ranges.erase(it);
  }
}

/// Ranges that overlap become one.
inline void allow(uint64_t start, uint64_t end) {
  auto it = ranges.upper_bound(start);
  if (it != ranges.begin() && std::prev(it)->second.end > start) --it;
  while (it != ranges.end() && it->second.start < end) {
    start = std::min(start, it->second.start), end = std::max(end, it->second.end);
    it = ranges.erase(it);
  }
  ranges[start] = {start, end, {}};
}

inline Range* range_of(uint64_t at, uint64_t bytes) {
  auto it = ranges.upper_bound(at);
  if (it == ranges.begin()) return nullptr;
  Range& range = std::prev(it)->second;
  return at + bytes <= range.end ? &range : nullptr;
}

/// Notes an access to two bytes; returns false if it races with an earlier one.
inline bool note(Mark& mark, const Access& now, bool writes, uint32_t launch) {
  if (mark.launch != launch) mark = {launch, {}, {}};
  const auto races_with = [&](const Access& before) {
    if (before.thread == 0) return false;
    return before.block != now.block || (before.epoch == now.epoch && before.thread != now.thread);
  };
  const bool races = races_with(mark.write) || (writes && races_with(mark.read));
  Access& last = writes ? mark.write : mark.read;
  const Access before = last;
  last = now;
  if (!writes && before.thread != 0 && before.block != now.block) {
    last.block = last.thread = kSeveral;
  } else if (!writes && races_with(before)) {
    last.thread = kSeveral;
  }
  return !races;
}

inline bool note_all(Mark* marks, int bytes, const Access& now, bool writes, uint32_t launch) {
  bool fine = true;
  for (int i = 0; i < bytes; i += 2) fine = note(marks[i / 2], now, writes, launch) && fine;
  return fine;
}

enum class Space { kGlobal, kShared, kLocal, kParameter };

inline Access access_of(const Warp& warp, int lane) {
  return {warp.block->index + 1, warp.first + lane + 1, warp.block->epoch};
}

inline void report_access(const char* kind, const Warp& warp, int lane, uint64_t at) {
  if (problems.count({kind, warp.now}) != 0) return;
  char place[96];
  std::snprintf(place, sizeof place, " (thread %u of block %u, address 0x%llx)", warp.first + lane,
                warp.block->index, static_cast<unsigned long long>(at));
  report(kind, warp.now, ": " + warp.now->text + place);
}

inline uint8_t* global_memory(Warp& warp, int lane, uint64_t at, int bytes, bool writes) {
  Range* range = range_of(at, bytes);
  if (range == nullptr) {
    report_access("out of bounds", warp, lane, at);
    return nullptr;
  }
  if (range->marks.empty()) range->marks.resize((range->end - range->start) / 2 + 2);
  Mark* marks = range->marks.data() + (at - range->start) / 2;
  if (!note_all(marks, bytes, access_of(warp, lane), writes, warp.block->launch)) {
    report_access("race in global memory", warp, lane, at);
  }
  return reinterpret_cast<uint8_t*>(at);
}

inline uint8_t* shared_memory(Warp& warp, int lane, uint64_t at, int bytes, bool writes) {
  Block& block = *warp.block;
  if (at + bytes > block.shared.size()) {
    report_access("out of bounds", warp, lane, at);
    return nullptr;
  }
  if (!note_all(block.marks.data() + at / 2, bytes, access_of(warp, lane), writes, block.launch)) {
    report_access("race in shared memory", warp, lane, at);
  }
  const auto written = block.written.begin() + at;
  if (writes) {
    std::fill_n(written, bytes, 1);
  } else if (std::find(written, written + bytes, 0) != written + bytes) {
    report_access("shared memory is read before it is written", warp, lane, at);
  }
  return block.shared.data() + at;
}

/// The place of one lane's access, or null if it has none; what is wrong is reported.
inline uint8_t* place_of(Warp& warp, int lane, Space space, uint64_t at, int bytes, bool writes) {
  if (space == Space::kShared) at &= 0xffffffffu;  // the upper half of a register may be unused
  if (at % bytes != 0) {
    report_access("misaligned", warp, lane, at);
    return nullptr;
  }
  if (space == Space::kGlobal) return global_memory(warp, lane, at, bytes, writes);
  if (space == Space::kShared) return shared_memory(warp, lane, at, bytes, writes);
  const bool local = space == Space::kLocal;
  const uint64_t end = local ? warp.block->kernel->local_bytes : warp.block->parameters.size();
  if (at + bytes > end || (writes && !local)) {
    report_access("out of bounds", warp, lane, at);
    return nullptr;
  }
  return local ? warp.local.data() + lane * end + at : warp.block->parameters.data() + at;
}

}  // namespace ptx
