// What kernels call, for cuda_host.h: vector types, synchronisation, warp operations, atomics and
// intrinsics, with the names and meanings of the CUDA programming guide.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "cuda_host_machine.h"

#define DF_EMU_VECTORS(T, name, bytes)                                       \
  struct alignas(bytes) name##2 { T x, y; };                                 \
  struct alignas(2 * bytes > 16 ? 16 : 2 * bytes) name##4 { T x, y, z, w; }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                 \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

DF_EMU_VECTORS(int, int, 8)
DF_EMU_VECTORS(unsigned, uint, 8)
DF_EMU_VECTORS(unsigned short, ushort, 4)
DF_EMU_VECTORS(float, float, 8)
DF_EMU_VECTORS(double, double, 16)
DF_EMU_VECTORS(long long, longlong, 16)
DF_EMU_VECTORS(unsigned long long, ulonglong, 16)
#undef DF_EMU_VECTORS

struct float3 {
  float x, y, z;
};
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }

// CUDA has these in the global namespace.
using std::max;
using std::min;

namespace emu {

template <typename To, typename From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast: sizes differ");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <typename T>
struct Identity {
  using type = T;
};
template <typename T>
using NoDeduce = typename Identity<T>::type;

template <typename T>
WarpCall warp_call(const char* name, Site site, uint32_t mask, T value, unsigned source) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "shuffles carry 8 bytes");
  WarpCall call;
  call.name = name;
  call.site = site;
  call.mask = mask;
  call.source = source;
  std::memcpy(&call.value, &value, sizeof value);
  return call;
}

/// Shuffles within segments of `width` lanes, of which the caller's begins at `start`. A lane whose
/// `source(lane, start)` lies behind its segment gets its own value.
template <typename T, typename Source>
T shuffle(const char* name, Site site, uint32_t mask, T value, int width, Source source) {
  if (width < 1 || width > 32 || (width & (width - 1))) {
    throw std::runtime_error(std::string(name) + " at " + site.text() +
                             ": expected a width of 1, 2, 4, 8, 16 or 32, got " +
                             std::to_string(width));
  }
  const int lane = static_cast<int>(machine().lane());
  const int start = lane & ~(width - 1);
  const int wanted = source(lane, start);
  const int from = wanted >= start + width ? lane : wanted;
  const WarpCall& call =
      machine().meet_lanes(warp_call(name, site, mask, value, static_cast<unsigned>(from)));
  T result;
  std::memcpy(&result, &call.result, sizeof result);
  return result;
}

inline uint32_t ballot(const char* name, Site site, uint32_t mask, bool vote) {
  const unsigned lane = machine().lane();
  return machine().meet_lanes(warp_call(name, site, mask, vote, lane)).ballot;
}

}  // namespace emu

// Default arguments take the caller's position, which macros would give at the price of the names.
#define DF_EMU_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(DF_EMU_SITE) { emu::machine().wait_at_barrier({file, line}); }
inline void __syncwarp(unsigned mask = 0xffffffffu, DF_EMU_SITE) {
  emu::ballot("__syncwarp", {file, line}, mask, false);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, DF_EMU_SITE) {
  return emu::shuffle("__shfl_sync", {file, line}, mask, value, width,
                      [=](int, int start) { return start + (lane & (width - 1)); });
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, DF_EMU_SITE) {
  const int step = static_cast<int>(delta);
  return emu::shuffle("__shfl_up_sync", {file, line}, mask, value, width, [=](int lane, int start) {
    return lane - step < start ? lane : lane - step;
  });
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, DF_EMU_SITE) {
  return emu::shuffle("__shfl_down_sync", {file, line}, mask, value, width,
                      [=](int lane, int) { return lane + static_cast<int>(delta); });
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, DF_EMU_SITE) {
  return emu::shuffle("__shfl_xor_sync", {file, line}, mask, value, width,
                      [=](int lane, int) { return lane ^ lane_mask; });
}
inline unsigned __ballot_sync(unsigned mask, int vote, DF_EMU_SITE) {
  return emu::ballot("__ballot_sync", {file, line}, mask, vote != 0);
}
inline int __any_sync(unsigned mask, int vote, DF_EMU_SITE) {
  return emu::ballot("__any_sync", {file, line}, mask, vote != 0) != 0;
}
inline int __all_sync(unsigned mask, int vote, DF_EMU_SITE) {
  return emu::ballot("__all_sync", {file, line}, mask, vote != 0) == mask;
}
#undef DF_EMU_SITE

// Fibers change only where they wait, so plain reads and writes are atomic here.
template <typename T>
T atomicExch(T* address, emu::NoDeduce<T> value) {
  const T old = *address;
  *address = value;
  return old;
}
template <typename T>
T atomicAdd(T* address, emu::NoDeduce<T> value) {
  return atomicExch(address, *address + value);
}
template <typename T>
T atomicMax(T* address, emu::NoDeduce<T> value) {
  return atomicExch(address, std::max<T>(*address, value));
}
template <typename T>
T atomicMin(T* address, emu::NoDeduce<T> value) {
  return atomicExch(address, std::min<T>(*address, value));
}
template <typename T>
T atomicCAS(T* address, emu::NoDeduce<T> compare, emu::NoDeduce<T> value) {
  return atomicExch(address, *address == compare ? value : *address);
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcs(const T* address) {
  return *address;
}
template <typename T>
T __ldcg(const T* address) {
  return *address;
}
template <typename T>
void __stcs(T* address, emu::NoDeduce<T> value) {
  *address = value;
}
template <typename T>
void __stwb(T* address, emu::NoDeduce<T> value) {
  *address = value;
}
template <typename T>
void __stcg(T* address, emu::NoDeduce<T> value) {
  *address = value;
}

inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(uint64_t{a} * b >> 32);
}
inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __ffs(int a) { return __builtin_ffs(a); }
inline int __clz(int a) { return a ? __builtin_clz(static_cast<unsigned>(a)) : 32; }

inline unsigned __float_as_uint(float a) { return emu::bit_cast<unsigned>(a); }
inline int __float_as_int(float a) { return emu::bit_cast<int>(a); }
inline float __uint_as_float(unsigned a) { return emu::bit_cast<float>(a); }
inline float __int_as_float(int a) { return emu::bit_cast<float>(a); }
inline long long __double_as_longlong(double a) { return emu::bit_cast<long long>(a); }
inline double __longlong_as_double(long long a) { return emu::bit_cast<double>(a); }

// The barrier of an opaque register keeps -ffp-contract=fast from fusing what CUDA promises not to.
namespace emu {
template <typename T>
T rounded(T a) {
#if defined(__x86_64__)
  asm("" : "+x"(a));
#elif defined(__aarch64__)
  asm("" : "+w"(a));
#endif
  return a;
}
}  // namespace emu

inline float __fmul_rn(float a, float b) { return emu::rounded(a * b); }
inline float __fadd_rn(float a, float b) { return emu::rounded(a + b); }
inline float __fsub_rn(float a, float b) { return emu::rounded(a - b); }
inline float __fdiv_rn(float a, float b) { return emu::rounded(a / b); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float a) { return std::exp(a); }
inline float __frcp_rn(float a) { return emu::rounded(1.0f / a); }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dmul_rn(double a, double b) { return emu::rounded(a * b); }
inline double __dadd_rn(double a, double b) { return emu::rounded(a + b); }
inline double __dsub_rn(double a, double b) { return emu::rounded(a - b); }
inline double __ddiv_rn(double a, double b) { return emu::rounded(a / b); }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float rsqrtf(float a) { return 1.0f / std::sqrt(a); }
