// Products of small matrices whose right factor has columns in panels of kPanel.
#pragma once

#include "simd.h"

namespace diffflow {
namespace DF_NAMESPACE {

/// Columns of a panel: two vectors, whose products with kRows rows fill the registers.
constexpr int64_t kPanel = 2 * kLanes;
constexpr int kRows = kLanes == 16 ? 8 : 4;

DF_INLINE int64_t padded(int64_t n) { return (n + kPanel - 1) / kPanel * kPanel; }

/// A matrix of units by its first element and the distances of rows and of columns.
template <typename U>
struct Left {
  const U* first;
  int64_t row, column;
};

/// C (rows x kPanel) (+)= A (rows x inner) B (inner x kPanel), inner counted in units.
template <int rows, bool add, typename U>
DF_INLINE void block(float* c, int64_t c_row, Left<U> a, const U* b, int64_t b_row, int64_t inner) {
  Vec sums[rows][2];
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
    sums[i][0] = add ? load(c + i * c_row) : splat(0.0f);
    sums[i][1] = add ? load(c + i * c_row + kLanes) : splat(0.0f);
  }
  for (int64_t k = 0; k < inner; ++k) {
    const auto b0 = load_units(b + k * b_row), b1 = load_units(b + k * b_row + kLanes);
    const U* column = a.first + k * a.column;
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const auto value = splat_unit(column[i * a.row]);
      sums[i][0] = accumulate(value, b0, sums[i][0]);
      sums[i][1] = accumulate(value, b1, sums[i][1]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
    store(c + i * c_row, sums[i][0]);
    store(c + i * c_row + kLanes, sums[i][1]);
  }
}

/// C (rows x columns) (+)= A (rows x inner) B (inner x columns), columns a multiple of kPanel,
/// inner counted in units. `b_row` and `b_panel` are the distances of rows of B and of its panels.
template <bool add, typename U>
static void product(int64_t rows, int64_t columns, int64_t inner, float* c, int64_t c_row,
                    Left<U> a, const U* b, int64_t b_row, int64_t b_panel) {
  for (int64_t n = 0; n < columns; n += kPanel) {
    const U* panel = b + n / kPanel * b_panel;
    const auto at = [&](int64_t m) { return Left<U>{a.first + m * a.row, a.row, a.column}; };
    int64_t m = 0;
    for (; m + kRows <= rows; m += kRows) {
      block<kRows, add>(c + m * c_row + n, c_row, at(m), panel, b_row, inner);
    }
    // With few rows at a time, multiplications wait for the previous sums.
    if (m + 6 <= rows) {
      block<6, add>(c + m * c_row + n, c_row, at(m), panel, b_row, inner);
      m += 6;
    } else if (m + 4 <= rows) {
      block<4, add>(c + m * c_row + n, c_row, at(m), panel, b_row, inner);
      m += 4;
    }
    for (; m + 2 <= rows; m += 2) {
      block<2, add>(c + m * c_row + n, c_row, at(m), panel, b_row, inner);
    }
    if (m < rows) block<1, add>(c + m * c_row + n, c_row, at(m), panel, b_row, inner);
  }
}

/// C (rows x columns) = A (rows x inner) B^T (inner x columns) for few columns; rows of A and B lie
/// `inner` apart, a multiple of kPanel.
DF_INLINE void narrow_product(int64_t rows, int64_t columns, int64_t inner, float* c,
                              const float* a, const float* b, const float* bias) {
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < columns; ++n) {
      Vec total = splat(0.0f);
      for (int64_t k = 0; k < inner; k += kLanes) {
        total = fma(load(a + m * inner + k), load(b + n * inner + k), total);
      }
      c[m * columns + n] = sum(total) + (bias != nullptr ? bias[n] : 0.0f);
    }
  }
}

/// w (rows x columns), its rows `row_length` apart, or its transpose, as a right factor (inner x
/// outer), with zeros where it ends.
struct Right {
  const float* w;
  int64_t rows, columns, row_length;
  bool transpose;

  float at(int64_t k, int64_t n) const {
    const int64_t row = transpose ? n : k, column = transpose ? k : n;
    return row < rows && column < columns ? w[row * row_length + column] : 0.0f;
  }
};

DF_INLINE void pack_unit(float* to, const Right& from, int64_t k, int64_t n) {
  *to = from.at(k, n);
}

#ifdef DF_BF16
DF_INLINE void pack_unit(Pair* to, const Right& from, int64_t k, int64_t n) {
  const Vec two = {from.at(2 * k, n), from.at(2 * k + 1, n)};
  const __m256i rounded = bfloat16_of(two);
  to->bits = _mm256_extract_epi32(rounded, 0);
}
#endif

/// Writes panels of a right factor; `inner` is counted in units.
template <typename U>
static void pack(U* to, const Right& from, int64_t inner, int64_t outer) {
  for (int64_t first = 0; first < outer; first += kPanel) {
    for (int64_t k = 0; k < inner; ++k) {
      for (int64_t n = first; n < first + kPanel; ++n) pack_unit(to++, from, k, n);
    }
  }
}

}  // namespace DF_NAMESPACE
}  // namespace diffflow
