// Memory of the machine behind cuda_host.h: stacks that it switches between, and shared memory.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emu {

constexpr unsigned kMaxThreads = 1024;
constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kStaticSharedBytes = 48 * 1024;

/// Where a suspended stack goes on.
struct Context {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t registers;
#endif
  void* fake_stack = nullptr;  // AddressSanitizer's
  const void* bottom = nullptr;
  size_t bytes = 0;
};

#if defined(__x86_64__)
// swapcontext enters the kernel twice a switch, and AddressSanitizer forgets the stack's redzones
// in it and in longjmp; `noipa`, because the compiler must not reason about the body.
[[gnu::naked, gnu::noinline, gnu::noipa]] inline void switch_stack(void** /*save*/, void* /*to*/) {
  asm("pushq %rbp\n\tpushq %rbx\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\t"
      "movq %rsp, (%rdi)\n\tmovq %rsi, %rsp\n\t"
      "popq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbx\n\tpopq %rbp\n\tret");
}

inline void make_context(Context& context, void (*entry)()) {
  auto* top =
      reinterpret_cast<uintptr_t*>(reinterpret_cast<uintptr_t>(context.bottom) + context.bytes);
  // From the top: a null return address (which also aligns the entry's frame), the entry, and the
  // six registers that switch_stack pops.
  std::fill(top - 8, top, uintptr_t{0});
  top[-2] = reinterpret_cast<uintptr_t>(entry);
  context.stack_pointer = top - 8;
}

inline void jump(Context& from, Context& to) {
  switch_stack(&from.stack_pointer, to.stack_pointer);
}
#else
inline void make_context(Context& context, void (*entry)()) {
  getcontext(&context.registers);
  context.registers.uc_stack.ss_sp = const_cast<void*>(context.bottom);
  context.registers.uc_stack.ss_size = context.bytes;
  context.registers.uc_link = nullptr;
  makecontext(&context.registers, entry, 0);
}

inline void jump(Context& from, Context& to) { swapcontext(&from.registers, &to.registers); }
#endif

inline void switch_context(Context& from, Context& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.bytes);
#endif
  jump(from, to);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

/// The first thing on a new stack: learns the bounds of the one it was switched from.
inline void enter_stack(Context& from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &from.bottom, &from.bytes);
#else
  (void)from;
#endif
}

/// Makes a stack that was left half way fit for use from its top again.
inline void forget_stack(Context& context) {
  context.fake_stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(context.bottom, context.bytes);
#endif
}

/// Stacks of all fibers, each above an inaccessible page: an overflow stops the program.
class Stacks {
 public:
  Stacks() : guard_(static_cast<size_t>(sysconf(_SC_PAGESIZE))) {
    void* memory = mmap(nullptr, bytes(), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
    for (unsigned i = 0; i < kMaxThreads; ++i) mprotect(bottom(i) - guard_, guard_, PROT_NONE);
  }
  ~Stacks() { munmap(memory_, bytes()); }
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  char* bottom(unsigned i) const { return memory_ + i * (guard_ + kStackBytes) + guard_; }

 private:
  size_t bytes() const { return kMaxThreads * (guard_ + kStackBytes); }
  size_t guard_;
  char* memory_ = nullptr;
};

/// Shared memory of the running block. One heap allocation for each declaration, so that
/// AddressSanitizer sees where every array ends; all bytes 0xFF (NaN, -1) when a block starts.
class SharedMemory {
 public:
  void start_launch(size_t dynamic_bytes) {
    static_.clear();
    dynamic_.reset(new unsigned char[dynamic_bytes]);
    dynamic_bytes_ = dynamic_bytes;
  }
  void start_block() {
    for (Array& array : static_) std::memset(array.data.get(), 0xFF, array.bytes);
    std::memset(dynamic_.get(), 0xFF, dynamic_bytes_);
  }
  void end_launch() {
    static_.clear();
    dynamic_.reset();
  }
  void* dynamic() const { return dynamic_.get(); }
  void* find_or_add(const void* declaration, size_t bytes);

 private:
  struct Array {
    const void* declaration;
    size_t bytes;
    std::unique_ptr<unsigned char[]> data;
  };
  std::vector<Array> static_;
  std::unique_ptr<unsigned char[]> dynamic_;
  size_t dynamic_bytes_ = 0;
};

inline void* SharedMemory::find_or_add(const void* declaration, size_t bytes) {
  size_t total = bytes;
  for (Array& array : static_) {
    if (array.declaration == declaration) return array.data.get();
    total += array.bytes;
  }
  if (total > kStaticSharedBytes) {
    throw std::runtime_error(
        "DF_SHARED: a block may declare 49152 bytes of static shared memory, "
        "got " +
        std::to_string(total));
  }
  static_.push_back(
      {declaration, bytes, std::unique_ptr<unsigned char[]>(new unsigned char[bytes])});
  std::memset(static_.back().data.get(), 0xFF, bytes);
  return static_.back().data.get();
}

}  // namespace emu
