// One perceptron in the shared memory of a block, applied to a tile of kTileRows samples, forward
// or backward. Both directions have a thin input layer, hidden layers and a thin output layer.
#pragma once

#include "../activations.h"
#include "products.cuh"

namespace diffflow {
namespace gpu {

enum class Way { kForward, kBackward };

DF_INLINE int row_words(int units, int per_word) { return units / per_word + kRowPadding; }

/// Parts of shared memory, in the order of `carve`.
struct Layers {
  int units, depth, dim, row;
  uint32_t* hidden;      ///< (depth, units, row): row n holds what unit n multiplies
  uint32_t* tiles;       ///< (2, kTileRows, row): what goes from layer to layer
  float* thin_in;        ///< (dim, units): of the layer that the tile enters by
  float* thin_out;       ///< (dim, units): of the layer that it leaves by
  float* bias;           ///< (depth, units)
  float *in, *out;       ///< (kTileRows, dim)
  float *total, *carry;  ///< (kTileRows, dim)

  DF_HD uint32_t* tile(int layer) const { return tiles + layer % 2 * kTileRows * row; }
};

/// Divides shared memory into the parts; from null it only counts. Returns the number of words.
DF_HD size_t carve(Layers* to, uint32_t* start, int units, int depth, int dim, int per_word) {
  const int row = units / per_word + kRowPadding;
  size_t next = 0;
  const auto take = [&](size_t words) {
    const size_t at = next;
    next += (words + 3) / 4 * 4;
    return at;
  };
  const size_t hidden = take(static_cast<size_t>(depth) * units * row);
  const size_t tiles = take(2 * kTileRows * row);
  const size_t thin_in = take(dim * units), thin_out = take(dim * units);
  const size_t bias = take(depth * units), state = kTileRows * dim;
  const size_t in = take(state), out = take(state), total = take(state), carry = take(state);
  if (to != nullptr) {
    float* const floats = reinterpret_cast<float*>(start);
    *to = {units,
           depth,
           dim,
           row,
           start + hidden,
           start + tiles,
           floats + thin_in,
           floats + thin_out,
           floats + bias,
           floats + in,
           floats + out,
           floats + total,
           floats + carry};
  }
  return next;
}

/// An element of a matrix (rows, columns), or 0 outside of it.
DF_INLINE float element(const float* matrix, int rows, int columns, int row, int column) {
  return row < rows && column < columns ? matrix[row * columns + column] : 0.0f;
}

/// Copies one network, transposed for the backward direction. Units beyond its width have weights
/// 0, and stay 0.
template <class Factors>
DF_INLINE void load(const Layers& to, const Mlp& net, Way way) {
  const int threads = blockDim.x, width = net.width, pairs = to.units / Factors::kPerWord;
  for (int l = 0; l < to.depth; ++l) {
    for (int i = threadIdx.x; i < to.units * pairs; i += threads) {
      // Neighbouring threads read neighbouring columns of the source.
      const int n = way == Way::kForward ? i / pairs : i % to.units;
      const int k = (way == Way::kForward ? i % pairs : i / to.units) * Factors::kPerWord;
      float value[2];
      for (int j = 0; j < Factors::kPerWord; ++j) {
        value[j] = way == Way::kForward ? element(net.weights.hidden[l], width, width, n, k + j)
                                        : element(net.weights.hidden[l], width, width, k + j, n);
      }
      uint32_t* word = to.hidden + (l * to.units + n) * to.row + k / Factors::kPerWord;
      *word = Factors::kPerWord == 2 ? pair_of(value[0], value[1]) : float_to_bits(value[0]);
    }
    for (int n = threadIdx.x; n < to.units; n += threads) {
      to.bias[l * to.units + n] = n < width ? net.weights.hidden_bias[l][n] : 0.0f;
    }
  }
  float* const input = way == Way::kForward ? to.thin_in : to.thin_out;
  float* const output = way == Way::kForward ? to.thin_out : to.thin_in;
  for (int i = threadIdx.x; i < to.dim * to.units; i += threads) {
    input[i] = element(net.weights.input, width, to.dim, i % to.units, i / to.units);
    output[i] = element(net.weights.output, to.dim, width, i / to.units, i % to.units);
  }
}

/// The thin layer in: (kTileRows, dim) times (dim, units).
DF_INLINE WarpSum enter(const Layers& at) {
  WarpSum sum = {};
  for (int i = 0; i < at.dim; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        const Position to = position(half, pair);
        const float value = at.in[to.row * at.dim + i];
        const float* weight = at.thin_in + i * at.units + to.column;
        float* out = sum.half[half].value + 2 * pair;
        out[0] = fma(value, weight[0], out[0]);
        out[1] = fma(value, weight[1], out[1]);
      }
    }
  }
  return sum;
}

/// The thin layer out: (kTileRows, units) times (units, dim), eight lanes for each number.
template <class Factors>
DF_INLINE void leave(const Layers& at, const uint32_t* tile, const float* bias) {
  constexpr int kShare = 8;
  const int groups = blockDim.x / kShare, lane = threadIdx.x % kShare;
  const int numbers = kTileRows * at.dim;
  for (int first = 0; first < numbers; first += groups) {
    const int i = first + static_cast<int>(threadIdx.x) / kShare;
    const int row = i / at.dim, component = i % at.dim;
    float sum = 0.0f;
    for (int column = 2 * lane; i < numbers && column < at.units; column += 2 * kShare) {
      const Two two = Factors::get(tile + row * at.row, column);
      const float* weight = at.thin_out + component * at.units + column;
      sum = fma(two.first, weight[0], fma(two.second, weight[1], sum));
    }
    for (int apart = kShare / 2; apart > 0; apart /= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, apart);
    }
    if (i < numbers && lane == 0) at.out[i] = sum + (bias != nullptr ? bias[component] : 0.0f);
  }
}

DF_INLINE Activated activate_as(Activation kind, float h) {
  switch (kind) {
    case Activation::kGelu:
      return gelu(h);
    case Activation::kSilu:
      return silu(h);
    default:
      return hyperbolic_tangent(h);
  }
}

/// Address of a tile's activations: its first sample in layer 0, with layers `layer` words apart;
/// null if they are not stored.
struct TileTrace {
  uint32_t *values, *slopes;
  size_t layer;
  int row_words, rows;

  DF_HD size_t row(int l, int row) const {
    return l * layer + static_cast<size_t>(row) * row_words;
  }
};

/// One layer forward: bias and activation; writes values to `to`, values and slopes to the trace.
template <class Factors>
DF_INLINE void finish_forward(const Layers& at, const WarpSum& sum, const float* bias, int width,
                              Activation kind, uint32_t* to, const TileTrace& trace, int l) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const Position p = position(half, pair);
      const float* z = sum.half[half].value + 2 * pair;
      const float first_bias = p.column < width ? bias[p.column] : 0.0f;
      const float second_bias = p.column + 1 < width ? bias[p.column + 1] : 0.0f;
      const Activated first = activate_as(kind, z[0] + first_bias);
      const Activated second = activate_as(kind, z[1] + second_bias);
      Factors::put(to + p.row * at.row, p.column, {first.value, second.value});
      if (trace.values == nullptr || p.row >= trace.rows) continue;
      const size_t row = trace.row(l, p.row);
      Factors::put(trace.values + row, p.column, {first.value, second.value});
      Factors::put(trace.slopes + row, p.column, {first.slope, second.slope});
    }
  }
}

/// net(x) of the tile in `in`, into `out`. `embedding` is its row at the tile's time.
template <class Factors>
DF_INLINE void evaluate(const Layers& at, const Mlp& net, const float* embedding,
                        const TileTrace& trace) {
  finish_forward<Factors>(at, enter(at), embedding, net.width, net.activation, at.tile(0), trace,
                          0);
  __syncthreads();
  const int blocks = (at.row - kRowPadding) / kBlockWords;
  for (int l = 0; l < at.depth; ++l) {
    const WarpSum sum =
        product<Factors>(at.tile(l), at.hidden + l * at.units * at.row, at.row, blocks);
    finish_forward<Factors>(at, sum, at.bias + l * at.units, at.units, net.activation,
                            at.tile(l + 1), trace, l + 1);
    __syncthreads();
  }
  leave<Factors>(at, at.tile(at.depth), net.weights.output_bias);
  __syncthreads();
}

/// The slopes of one layer that a lane needs, read before the product.
struct Slopes {
  Two two[2][2];
};

template <class Factors>
DF_INLINE Slopes slopes_of(const TileTrace& trace, int l) {
  Slopes out;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const Position p = position(half, pair);
      out.two[half][pair] = Two{};
      if (p.row < trace.rows) {
        out.two[half][pair] = Factors::get(trace.slopes + trace.row(l, p.row), p.column);
      }
    }
  }
  return out;
}

/// One layer backward: times the slope; writes deltas to `to`, and over the slopes of the trace.
template <class Factors>
DF_INLINE void finish_backward(const Layers& at, const WarpSum& sum, const Slopes& slopes,
                               uint32_t* to, const TileTrace& trace, int l) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const Position p = position(half, pair);
      const float* value = sum.half[half].value + 2 * pair;
      const Two slope = slopes.two[half][pair];
      const Two delta = {value[0] * slope.first, value[1] * slope.second};
      Factors::put(to + p.row * at.row, p.column, delta);
      if (p.row < trace.rows) {
        Factors::put(trace.slopes + trace.row(l, p.row), p.column, delta);
      }
    }
  }
}

/// J^T times the cotangents in `in`, into `out`.
template <class Factors>
DF_INLINE void pull_back(const Layers& at, const TileTrace& trace) {
  Slopes slopes = slopes_of<Factors>(trace, at.depth);
  finish_backward<Factors>(at, enter(at), slopes, at.tile(0), trace, at.depth);
  __syncthreads();
  const int blocks = (at.row - kRowPadding) / kBlockWords;
  for (int l = at.depth - 1; l >= 0; --l) {
    const int from = (at.depth - 1 - l) % 2;
    slopes = slopes_of<Factors>(trace, l);
    const WarpSum sum =
        product<Factors>(at.tile(from), at.hidden + l * at.units * at.row, at.row, blocks);
    finish_backward<Factors>(at, sum, slopes, at.tile(1 - from), trace, l);
    __syncthreads();
  }
  leave<Factors>(at, at.tile(at.depth), nullptr);
  __syncthreads();
}

}  // namespace gpu
}  // namespace diffflow
