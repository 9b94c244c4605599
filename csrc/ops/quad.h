// The unit of work of every kernel: up to four neighbouring elements of one sample. Four, because
// one Philox call makes four normals and four floats are one 16-byte access.
#pragma once

#include <type_traits>

#include "../math/half_types.h"

namespace diffflow {

/// A batch of `samples` rows of `elements` values, row-major and contiguous. Bodies without noise
/// do not depend on rows and are run on {1, samples * elements}.
struct Shape {
  int64_t samples, elements;

  DF_HD int64_t quads_per_sample() const { return (elements + 3) / 4; }
  DF_HD int64_t quads() const { return samples * quads_per_sample(); }
};

template <typename T>
struct Quad {
  T value[4];
};

#define DF_QUAD_OPERATOR(op)                                                               \
  template <typename T>                                                                    \
  DF_HD Quad<T> operator op(const Quad<T>& a, const Quad<T>& b) {                          \
    return {{a.value[0] op b.value[0], a.value[1] op b.value[1], a.value[2] op b.value[2], \
             a.value[3] op b.value[3]}};                                                   \
  }                                                                                        \
  template <typename T>                                                                    \
  DF_HD Quad<T> operator op(const Quad<T>& a, T b) {                                       \
    return {{a.value[0] op b, a.value[1] op b, a.value[2] op b, a.value[3] op b}};         \
  }                                                                                        \
  template <typename T>                                                                    \
  DF_HD Quad<T> operator op(T a, const Quad<T>& b) {                                       \
    return {{a op b.value[0], a op b.value[1], a op b.value[2], a op b.value[3]}};         \
  }
DF_QUAD_OPERATOR(+)
DF_QUAD_OPERATOR(-)
DF_QUAD_OPERATOR(*)
DF_QUAD_OPERATOR(/)
#undef DF_QUAD_OPERATOR

template <typename T>
DF_HD Quad<T> operator-(const Quad<T>& a) {
  return {{-a.value[0], -a.value[1], -a.value[2], -a.value[3]}};
}

/// Position of a quad, where a GPU's thread works. `wide`: four elements whose addresses allow one
/// access (see Packed). A CPU works on the elements of a Block, see block.h, which has the same
/// functions load, store, splat and of_samples.
struct Place {
  template <typename T>
  using Values = Quad<T>;

  int64_t sample, quad;  ///< row, and number of the quad within the row
  int64_t offset;        ///< of the first element in the tensor
  int count;             ///< 1 to 4 elements
  bool wide;
};

/// `aligned` says that every row of every tensor starts on a Packed boundary.
DF_HD Place place_at(int64_t sample, int64_t quad, const Shape& shape, bool aligned) {
  const int64_t left = shape.elements - 4 * quad;
  const bool full = left >= 4;
  return {sample, quad, sample * shape.elements + 4 * quad, full ? 4 : static_cast<int>(left),
          aligned && full};
}

/// Four stored values that move as one access of 16 bytes (two for float64, 8 bytes for half
/// types).
template <typename S>
struct alignas(4 * sizeof(S) < 16 ? 4 * sizeof(S) : 16) Packed {
  S value[4];
};

/// Loads a quad of storage type S as arithmetic type T. Elements past `count` are 0.
template <typename T, typename S>
DF_HD Quad<T> load(const S* pointer, const Place& at) {
  Quad<T> out;
  if (at.wide) {
    const Packed<S> packed = *reinterpret_cast<const Packed<S>*>(pointer + at.offset);
    for (int i = 0; i < 4; ++i) out.value[i] = static_cast<T>(packed.value[i]);
    return out;
  }
  for (int i = 0; i < 4; ++i) {
    out.value[i] = i < at.count ? static_cast<T>(pointer[at.offset + i]) : T(0);
  }
  return out;
}

/// Four times the same.
template <typename T>
DF_HD Quad<T> splat(T value, const Place&) {
  return {{value, value, value, value}};
}

/// Values that each sample has one of, for the elements of the quad.
template <typename T>
DF_HD Quad<T> of_samples(const T* pointer, const Place& at) {
  return splat(pointer[at.sample], at);
}

/// Writes a pack as accesses of 16 (or 8) bytes. nvcc splits a plain assignment into scalar stores
/// when several follow one another; through the intrinsic they stay whole.
template <typename S>
DF_HD void write_packed(S* to, const Packed<S>& packed) {
#ifdef __CUDA_ARCH__
  using Word = std::conditional_t<sizeof(packed) == 8, uint2, uint4>;
  for (unsigned i = 0; i < sizeof(packed) / sizeof(Word); ++i) {
    Word word;
    memcpy(&word, reinterpret_cast<const char*>(&packed) + i * sizeof(Word), sizeof(Word));
    __stwb(reinterpret_cast<Word*>(to) + i, word);
  }
#else
  *reinterpret_cast<Packed<S>*>(to) = packed;
#endif
}

template <typename T, typename S>
DF_HD void store(S* pointer, const Place& at, const Quad<T>& in) {
  if (at.wide) {
    Packed<S> packed;
    for (int i = 0; i < 4; ++i) packed.value[i] = to_storage<S>(in.value[i]);
    write_packed(pointer + at.offset, packed);
    return;
  }
  for (int i = 0; i < 4; ++i) {
    if (i < at.count) pointer[at.offset + i] = to_storage<S>(in.value[i]);
  }
}

/// Loads values, or zeros if the tensor is absent.
template <typename T, typename S, class At>
DF_HD auto load_or_zero(const S* pointer, const At& at) {
  return pointer != nullptr ? load<T>(pointer, at) : typename At::template Values<T>{};
}

/// Stores values unless the tensor is absent.
template <class Values, typename S, class At>
DF_HD void store_if(S* pointer, const At& at, const Values& in) {
  if (pointer != nullptr) store(pointer, at, in);
}

}  // namespace diffflow
