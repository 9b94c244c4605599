// Instructions that compute on each lane by itself: arithmetic, comparisons, conversions.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "ptx_reader.h"

namespace ptx {

// --- instructions of registers -------------------------------------------------------------------

/// d = f(a, ...) on each lane, with the registers' bits; f has one to four arguments.
template <class F>
Operation of_bits(Kernel& kernel, const Words& operands, const F& f) {
  std::array<int, 5> row{};
  if (operands.size() > row.size()) unsupported("so many operands");
  for (size_t i = 0; i < operands.size(); ++i) row[i] = row_of(kernel, operands[i]);
  return [=](Warp& warp, Lanes lanes) {
    uint64_t* const d = warp.rows[row[0]].data();
    const uint64_t *a = warp.rows[row[1]].data(), *b = warp.rows[row[2]].data(),
                   *c = warp.rows[row[3]].data(), *e = warp.rows[row[4]].data();
    each(lanes, [&](int i) {
      if constexpr (std::is_invocable_v<F, uint64_t>) {
        d[i] = f(a[i]);
      } else if constexpr (std::is_invocable_v<F, uint64_t, uint64_t>) {
        d[i] = f(a[i], b[i]);
      } else if constexpr (std::is_invocable_v<F, uint64_t, uint64_t, uint64_t>) {
        d[i] = f(a[i], b[i], c[i]);
      } else {
        d[i] = f(a[i], b[i], c[i], e[i]);
      }
    });
  };
}

/// The same with values of type T.
template <class T, class F>
Operation of(Kernel& kernel, const Words& operands, const F& f) {
  if constexpr (std::is_invocable_v<F, T>) {
    return of_bits(kernel, operands, [f](uint64_t a) { return put(f(get<T>(a))); });
  } else if constexpr (std::is_invocable_v<F, T, T>) {
    return of_bits(kernel, operands,
                   [f](uint64_t a, uint64_t b) { return put(f(get<T>(a), get<T>(b))); });
  } else {
    return of_bits(kernel, operands, [f](uint64_t a, uint64_t b, uint64_t c) {
      return put(f(get<T>(a), get<T>(b), get<T>(c)));
    });
  }
}

// --- floating point ------------------------------------------------------------------------------

/// A value whose subnormal numbers count as 0, if `flush`.
inline double flushed(float value, bool flush) {
  return flush && std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value;
}

/// An approximation, which may be off by so many units of the last place and by so much relative to
/// the exact value (PTX ISA 9.7.3).
inline float near(double exact, bool flush, int ulps, double relative = 1) {
  const float value = static_cast<float>(flushed(static_cast<float>(exact), flush));
  if (settings.inexact == 0 || !std::isfinite(value) || value == 0.0f) return value;
  const uint32_t bits = static_cast<uint32_t>(put(value));
  const float off = get<float>(bits + (bits * 2654435761u >> 16) % (2 * ulps + 1) - ulps);
  return std::fabs(off - exact) <= relative * std::fabs(exact) ? off : value;
}

inline Operation approximate(Kernel& kernel, const Words& op, const Words& o) {
  const bool ftz = has(op, "ftz");
  const auto in = [=](float value) { return flushed(value, ftz); };
  const double of_rsqrt = std::exp2(-22.9);
  using F = float;
  if (op[0] == "ex2") return of<F>(kernel, o, [=](F a) { return near(std::exp2(in(a)), ftz, 2); });
  if (op[0] == "rcp") return of<F>(kernel, o, [=](F a) { return near(1 / in(a), ftz, 1); });
  if (op[0] == "div") {
    return of<F>(kernel, o, [=](F a, F b) { return near(in(a) / in(b), ftz, 2); });
  }
  if (op[0] == "rsqrt") {
    return of<F>(kernel, o, [=](F a) { return near(1 / std::sqrt(in(a)), ftz, 2, of_rsqrt); });
  }
  return nullptr;
}

/// Null where there is no such instruction; so for the others below.
template <class T>
Operation floating(Kernel& kernel, const Words& op, const Words& o) {
  const std::string& name = op[0];
  if (name == "neg") return of<T>(kernel, o, [](T a) { return -a; });
  if (name == "abs") return of<T>(kernel, o, [](T a) { return std::fabs(a); });
  if (has(op, "rn")) {
    if (name == "add") return of<T>(kernel, o, [](T a, T b) { return a + b; });
    if (name == "sub") return of<T>(kernel, o, [](T a, T b) { return a - b; });
    if (name == "mul") return of<T>(kernel, o, [](T a, T b) { return a * b; });
    if (name == "div") return of<T>(kernel, o, [](T a, T b) { return a / b; });
    if (name == "sqrt") return of<T>(kernel, o, [](T a) { return std::sqrt(a); });
    if (name == "fma") return of<T>(kernel, o, [](T a, T b, T c) { return std::fma(a, b, c); });
  }
  if constexpr (std::is_same_v<T, float>) {
    if (has(op, "approx")) return approximate(kernel, op, o);
  }
  return nullptr;
}

// --- integers ------------------------------------------------------------------------------------

/// Sums, products and left shifts: their low bits depend on no type.
inline Operation modular(Kernel& kernel, const Words& op, const Words& o) {
  const std::string& name = op[0];
  using U = uint64_t;
  if (name == "add") return of_bits(kernel, o, [](U a, U b) { return a + b; });
  if (name == "sub") return of_bits(kernel, o, [](U a, U b) { return a - b; });
  if (name == "neg") return of_bits(kernel, o, [](U a) { return -a; });
  if (name == "shl") {
    return of_bits(kernel, o, [](U a, U b) { return get<uint32_t>(b) < 64 ? a << (b & 63) : 0; });
  }
  if (!has(op, "lo")) return nullptr;
  if (name == "mul") return of_bits(kernel, o, [](U a, U b) { return a * b; });
  if (name == "mad") return of_bits(kernel, o, [](U a, U b, U c) { return a * b + c; });
  return nullptr;
}

template <class T>
Operation wide_product(Kernel& kernel, const Words& op, const Words& o) {
  using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  const auto product = [](uint64_t a, uint64_t b) { return Wide{get<T>(a)} * Wide{get<T>(b)}; };
  if (op[0] == "mul" && has(op, "wide")) {
    return of_bits(kernel, o,
                   [=](uint64_t a, uint64_t b) { return static_cast<uint64_t>(product(a, b)); });
  }
  if (op[0] == "mul" && has(op, "hi")) {
    return of_bits(kernel, o, [=](uint64_t a, uint64_t b) {
      return static_cast<uint64_t>(product(a, b) >> (8 * sizeof(T)));
    });
  }
  return nullptr;
}

template <class T>
Operation integer(Kernel& kernel, const Words& op, const Words& o) {
  const std::string& name = op[0];
  if (name == "min") return of<T>(kernel, o, [](T a, T b) { return std::min(a, b); });
  if (name == "max") return of<T>(kernel, o, [](T a, T b) { return std::max(a, b); });
  if (name == "div") return of<T>(kernel, o, [](T a, T b) { return b == 0 ? T(-1) : T(a / b); });
  if (name == "rem") return of<T>(kernel, o, [](T a, T b) { return b == 0 ? a : T(a % b); });
  if (name == "shr") {
    return of_bits(kernel, o, [](uint64_t a, uint64_t b) {
      constexpr uint32_t bits = 8 * sizeof(T);
      const uint32_t by = get<uint32_t>(b);
      const T value = get<T>(a), none = value < T(0) ? T(-1) : T(0);
      return put(by < bits ? T(value >> by) : none);
    });
  }
  if (Operation run = wide_product<T>(kernel, op, o)) return run;
  return modular(kernel, op, o);
}

/// Bit by bit, and what only moves bits.
inline Operation logical(Kernel& kernel, const Words& op, const Words& o) {
  const std::string& name = op[0];
  using U = uint64_t;
  if (name == "and") return of_bits(kernel, o, [](U a, U b) { return a & b; });
  if (name == "or") return of_bits(kernel, o, [](U a, U b) { return a | b; });
  if (name == "xor") return of_bits(kernel, o, [](U a, U b) { return a ^ b; });
  if (name == "not") return of_bits(kernel, o, [](U a) { return ~a; });
  if (name == "cvta") return of_bits(kernel, o, [](U a) { return a; });
  if (name == "selp") return of_bits(kernel, o, [](U a, U b, U c) { return c & 1 ? a : b; });
  if (name == "bfi") {
    return of_bits(kernel, o, [](U a, U b, U start, U length) {
      const U mask = ((U{1} << (length & 63)) - 1) << (start & 63);
      return (b & ~mask) | (a << (start & 63) & mask);
    });
  }
  if (name == "prmt" && op.size() == 2) {
    const auto select = [](U a, U b, U selectors) {
      const U bytes = (a & 0xffffffff) | b << 32;
      U out = 0;
      for (int i = 0; i < 4; ++i) {
        const U selector = selectors >> (4 * i), byte = bytes >> (8 * (selector & 7)) & 0xff;
        out |= (selector & 8 ? (byte >> 7) * 0xff : byte) << (8 * i);  // 8: its sign, repeated
      }
      return out;
    };
    return of_bits(kernel, o, select);
  }
  return nullptr;
}

// --- comparisons and conversions -----------------------------------------------------------------

template <class T>
Operation comparison(Kernel& kernel, const std::string& how, const Words& o) {
  // Unordered comparisons are true of NaN, `ne` is not.
  if (how == "eq") return of<T>(kernel, o, [](T a, T b) { return a == b; });
  if (how == "ne") return of<T>(kernel, o, [](T a, T b) { return a < b || a > b; });
  if (how == "lt") return of<T>(kernel, o, [](T a, T b) { return a < b; });
  if (how == "le") return of<T>(kernel, o, [](T a, T b) { return a <= b; });
  if (how == "gt") return of<T>(kernel, o, [](T a, T b) { return a > b; });
  if (how == "ge") return of<T>(kernel, o, [](T a, T b) { return a >= b; });
  if (!std::is_floating_point_v<T>) return nullptr;
  if (how == "equ") return of<T>(kernel, o, [](T a, T b) { return !(a < b || a > b); });
  if (how == "neu") return of<T>(kernel, o, [](T a, T b) { return a != b; });
  if (how == "ltu") return of<T>(kernel, o, [](T a, T b) { return !(a >= b); });
  if (how == "leu") return of<T>(kernel, o, [](T a, T b) { return !(a > b); });
  if (how == "gtu") return of<T>(kernel, o, [](T a, T b) { return !(a <= b); });
  if (how == "geu") return of<T>(kernel, o, [](T a, T b) { return !(a < b); });
  return nullptr;
}

inline uint32_t to_bfloat16(float value) {
  if (value != value) return 0x7fff;
  const uint32_t bits = static_cast<uint32_t>(put(value));
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // ties to even
}

inline uint32_t to_tf32(float value) {
  const uint32_t bits = static_cast<uint32_t>(put(value));
  if (!std::isfinite(value)) return bits;
  const uint32_t junk = settings.junk ? bits * 2654435761u >> 19 : 0;
  return ((bits + 0x1000) & ~0x1fffu) | junk;  // ties away from zero
}

/// A float as an integer: cut off, and held within the type's bounds.
template <class To, class From>
To cut(From value) {
  using Limits = std::numeric_limits<To>;
  if (value != value) return 0;
  if (value <= static_cast<From>(Limits::min())) return Limits::min();
  if (value >= static_cast<From>(Limits::max())) return Limits::max();
  return static_cast<To>(value);
}

template <class To, class From>
Operation conversion(Kernel& kernel, const Words& op, const Words& o) {
  constexpr bool to_float = std::is_floating_point_v<To>;
  constexpr bool from_float = std::is_floating_point_v<From>;
  if (!to_float && from_float) {
    if (!has(op, "rzi")) return nullptr;
    return of<From>(kernel, o, [](From a) { return cut<To>(a); });
  }
  if (to_float && sizeof(To) <= sizeof(From) && !has(op, "rn")) return nullptr;
  return of<From>(kernel, o, [](From a) { return static_cast<To>(a); });
}

inline Operation convert(Kernel& kernel, const Words& op, const Words& o) {
  const std::string &to = op[op.size() - 2], &from = op.back();
  if (from == "f32" && to == "bf16x2" && has(op, "rn")) {  // the first source is the upper half
    return of<float>(kernel, o,
                     [](float a, float b) { return to_bfloat16(a) << 16 | to_bfloat16(b); });
  }
  if (from == "f32" && to == "tf32" && has(op, "rna")) return of<float>(kernel, o, to_tf32);
  return with_type(to, [&](auto to_value) {
    return with_type(from, [&](auto from_value) {
      return conversion<decltype(to_value), decltype(from_value)>(kernel, op, o);
    });
  });
}

inline Operation arithmetic(Kernel& kernel, const Words& op, const Words& o) {
  if (has(op, "sat") || has(op, "cc") || (has(op, "ftz") && !has(op, "approx"))) return nullptr;
  if (op[0] == "cvt") return convert(kernel, op, o);
  if (Operation run = logical(kernel, op, o)) return run;
  return with_type(op.back(), [&](auto value) -> Operation {
    using T = decltype(value);
    if (op[0] == "setp") return op.size() == 3 ? comparison<T>(kernel, op[1], o) : nullptr;
    if constexpr (std::is_floating_point_v<T>) {
      return floating<T>(kernel, op, o);
    } else {
      return integer<T>(kernel, op, o);
    }
  });
}

}  // namespace ptx
