// Products of pairs of bfloat16 by the matrix tiles of a processor (AMX): 16 rows of 64 bytes each.
#pragma once

#include "matmul.h"

namespace diffflow {
namespace DF_NAMESPACE {

#ifdef DF_AMX

/// Rows of a tile, and pairs in each of its rows.
constexpr int64_t kSide = 16;
/// Tiles side by side of a left factor that are transposed at a time.
constexpr int64_t kAlong = 16;

/// Makes the compiler store what intrinsics will read: GCC's do not tell it, or of 8 bytes alone.
DF_INLINE void will_read(const void* memory) { asm volatile("" : : "r"(memory) : "memory"); }

/// Sets the shapes of this thread's tiles until its end; other libraries set their own.
class TileShapes {
 public:
  TileShapes() {
    struct alignas(64) {
      uint8_t palette, start_row, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } shapes = {};
    shapes.palette = 1;
    for (int i = 0; i < 8; ++i) shapes.row_bytes[i] = 64, shapes.rows[i] = kSide;
    will_read(&shapes);
    _tile_loadconfig(&shapes);
  }
  ~TileShapes() { _tile_release(); }
  TileShapes(const TileShapes&) = delete;
  TileShapes& operator=(const TileShapes&) = delete;
};

/// A left factor of one or two rows of tiles: distances of its rows, and of tiles to the right and
/// down.
struct LeftTiles {
  const Pair* first;
  int64_t row, right, down;
};

/// C (16 * down x kPanel) (+)= A B, with `along` tiles side by side in A.
template <int down>
static void tile_block(float* c, int64_t c_row, const LeftTiles& a, const Pair* b, int64_t b_row,
                       int64_t along, bool add) {
  static_assert(kPanel == 2 * kSide, "a panel has two tiles side by side");
  float* const below = c + kSide * c_row;
  const int64_t c_bytes = 4 * c_row, a_bytes = 4 * a.row, b_bytes = 4 * b_row;
  will_read(a.first);
  if (add) {
    _tile_loadd(0, c, c_bytes);
    _tile_loadd(1, c + kSide, c_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
  }
  if (down == 2 && add) {
    _tile_loadd(2, below, c_bytes);
    _tile_loadd(3, below + kSide, c_bytes);
  } else if (down == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < along; ++k) {
    const Pair* const left = a.first + k * a.right;
    const Pair* const right = b + k * kSide * b_row;
    _tile_loadd(6, right, b_bytes);
    _tile_loadd(7, right + kSide, b_bytes);
    _tile_loadd(4, left, a_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (down == 1) continue;
    _tile_loadd(5, left + a.down, a_bytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + kSide, c_bytes);
  if (down == 1) return;
  _tile_stored(2, below, c_bytes);
  _tile_stored(3, below + kSide, c_bytes);
}

/// to (16 x 16) = transpose of from, whose rows are `row` apart.
static void transpose(Pair* to, const Pair* from, int64_t row) {
  Vec rows[kSide], mixed[kSide];
  for (int i = 0; i < kSide; ++i) rows[i] = (Vec)load_units(from + i * row);
  // Each time the rows of both halves are interleaved, an index moves by one bit.
  for (int step = 0; step < 4; ++step) {
    for (int i = 0; i < kSide / 2; ++i) {
      const VecPair both = interleave(rows[i], rows[i + kSide / 2]);
      mixed[2 * i] = both.low, mixed[2 * i + 1] = both.high;
    }
    memcpy(rows, mixed, sizeof(rows));
  }
  memcpy(to, rows, sizeof(rows));
}

/// The left factor as tiles. One that lies in columns is transposed into `scratch`.
DF_INLINE LeftTiles left_tiles(Left<Pair> a, int64_t down, int64_t along, Pair* scratch) {
  if (a.column == 1) return {a.first, a.row, kSide, kSide * a.row};
  for (int64_t i = 0; i < down; ++i) {
    for (int64_t k = 0; k < along; ++k) {
      transpose(scratch + (i * along + k) * kSide * kSide,
                a.first + i * kSide + k * kSide * a.column, a.column);
    }
  }
  return {scratch, kSide, kSide * kSide, along * kSide * kSide};
}

/// The product of matmul.h for whole tiles; that one computes what is left.
template <bool add>
static void product(int64_t rows, int64_t columns, int64_t inner, float* c, int64_t c_row,
                    Left<Pair> a, const Pair* b, int64_t b_row, int64_t b_panel) {
  const int64_t tiled_rows = rows / kSide * kSide, tiled_inner = inner / kSide * kSide;
  const auto at = [&](int64_t m, int64_t k) {
    return Left<Pair>{a.first + m * a.row + k * a.column, a.row, a.column};
  };
  alignas(64) Pair scratch[2 * kAlong * kSide * kSide];
  for (int64_t k = 0; k < tiled_inner; k += kAlong * kSide) {
    const int64_t left = (tiled_inner - k) / kSide, along = left < kAlong ? left : kAlong;
    for (int64_t m = 0; m < tiled_rows; m += 2 * kSide) {
      const int64_t down = m + kSide < tiled_rows ? 2 : 1;
      const LeftTiles tiles = left_tiles(at(m, k), down, along, scratch);
      for (int64_t n = 0; n < columns; n += kPanel) {
        float* const to = c + m * c_row + n;
        const Pair* const panel = b + n / kPanel * b_panel + k * b_row;
        (down == 2 ? tile_block<2> : tile_block<1>)(to, c_row, tiles, panel, b_row, along,
                                                    add || k > 0);
      }
    }
  }
  if (tiled_inner == 0) {
    product<add, Pair>(tiled_rows, columns, inner, c, c_row, a, b, b_row, b_panel);
  } else if (tiled_inner < inner) {
    product<true, Pair>(tiled_rows, columns, inner - tiled_inner, c, c_row, at(0, tiled_inner),
                        b + tiled_inner * b_row, b_row, b_panel);
  }
  product<add, Pair>(rows - tiled_rows, columns, inner, c + tiled_rows * c_row, c_row,
                     at(tiled_rows, 0), b, b_row, b_panel);
}

#else

struct TileShapes {
  TileShapes() {}  // not trivial, so that no compiler calls it unused
};

#endif

}  // namespace DF_NAMESPACE
}  // namespace diffflow
