// Allocation of parts of the scratch memory of a call.
#pragma once

#include <cstdint>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace diffflow {
namespace DF_NAMESPACE {

/// Allocates aligned parts of a block of memory; from address 0 it only counts bytes. Under
/// AddressSanitizer parts are separated by poisoned memory.
class Arena {
 public:
  explicit Arena(void* start)
      : next_(reinterpret_cast<uintptr_t>(start)), counts_(start == nullptr) {}

  template <typename T>
  T* take(int64_t count) {
    T* out = take_part<T>(count);
    wall();
    return out;
  }

  /// The same for parts that are used as one block with those after it.
  template <typename T>
  T* take_part(int64_t count) {
    next_ = (next_ + 63) / 64 * 64;
    T* out = reinterpret_cast<T*>(next_);
    next_ += static_cast<uintptr_t>(count) * sizeof(T);
    return out;
  }
  uintptr_t next() const { return next_; }

  void wall() {
#ifdef __SANITIZE_ADDRESS__
    if (!counts_) ASAN_POISON_MEMORY_REGION(reinterpret_cast<void*>(next_), 64);
    next_ += 64;
#endif
  }

 private:
  uintptr_t next_;
  bool counts_;
};

}  // namespace DF_NAMESPACE
}  // namespace diffflow
