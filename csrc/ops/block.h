// The unit of work of a CPU: elements that follow one another, and fill a vector of 4 kLanes bytes.
#pragma once

#include "quad.h"
#include "simd.h"

namespace diffflow {
namespace DF_NAMESPACE {

/// `count` elements of a batch from `offset` on, at most `size`; the rest of a vector is 0.
template <int size>
struct Block {
  template <typename T>
  using Values = typename VectorOf<T, size>::Type;

  int64_t offset;
  int count;
  int64_t row;     ///< elements of a row
  int64_t sample;  ///< of the first element
  int64_t left;    ///< elements of its row from the first one on

  /// Moves on by `size` elements.
  DF_HD void advance() {
    offset += size, left -= size;
    // A division is slow: none where the row goes on.
    if (left <= 0) sample = offset / row, left = (sample + 1) * row - offset;
  }

  template <typename S>
  size_t bytes() const {
    return count == size ? size * sizeof(S) : count * sizeof(S);
  }
};

template <typename T, typename S, int size>
DF_INLINE auto load(const S* pointer, const Block<size>& at) {
  if constexpr (std::is_arithmetic_v<S>) {
    typename VectorOf<T, size>::Type out = {};
    memcpy(&out, pointer + at.offset, at.template bytes<S>());
    return out;
  } else {
    typename VectorOf<uint16_t, size>::Type bits = {};
    memcpy(&bits, pointer + at.offset, at.template bytes<S>());
    return S::template widened<Vec>(__builtin_convertvector(bits, WordVec));
  }
}

template <class Values, typename S, int size>
DF_INLINE void store(S* pointer, const Block<size>& at, const Values& in) {
  if constexpr (std::is_arithmetic_v<S>) {
    memcpy(pointer + at.offset, &in, at.template bytes<S>());
  } else {
    using Stored = typename VectorOf<uint16_t, size>::Type;
    const Stored bits = __builtin_convertvector(S::narrowed(in), Stored);
    memcpy(pointer + at.offset, &bits, at.template bytes<S>());
  }
}

template <typename T, int size>
DF_INLINE auto splat(T value, const Block<size>&) {
  return value - typename VectorOf<T, size>::Type{};  // keeps the sign of zero
}

/// Values that each sample has one of, for the elements of the block.
template <typename T, int size>
DF_INLINE auto of_samples(const T* pointer, const Block<size>& at) {
  int64_t sample = at.sample, left = at.left;
  if (left >= at.count) return splat(pointer[sample], at);
  typename VectorOf<T, size>::Type out = {};
  for (int i = 0; i < at.count; ++i) {
    out[i] = pointer[sample];
    if (--left == 0) left = at.row, ++sample;
  }
  return out;
}

template <class Values, int size>
DF_INLINE Values inside(const Block<size>&, const Values& terms) {
  return terms;
}

}  // namespace DF_NAMESPACE
}  // namespace diffflow
