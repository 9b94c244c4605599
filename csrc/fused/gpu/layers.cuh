// One perceptron in the shared memory of a block, applied to a tile of samples, forward or
// backward. Both directions have a thin input layer, hidden layers and a thin output layer.
#pragma once

#include "../activations.h"
#include "products.cuh"

namespace diffflow {
namespace gpu {

enum class Way { kForward, kBackward };

/// Sizes of what a block has in shared memory.
struct Sizes {
  int units, depth, dim, per_word;
  int rows;   ///< of a tile: kTileRows, or twice as many
  int slots;  ///< hidden layers whose weights are there at a time: all, or 1
  int ahead;  ///< steps whose noise is drawn at a time

  DF_HD int row() const { return units / per_word + kRowPadding; }
};

/// Parts of shared memory, in the order of `carve`.
struct Layers {
  Sizes size;
  int units, depth, dim, row;
  uint32_t* hidden;      ///< (slots, units, row): row n holds what unit n multiplies
  uint32_t* tiles;       ///< (2 kTileRows, row): what goes from layer to layer
  float* thin_in;        ///< (dim, units): of the layer that the tile enters by
  float* thin_out;       ///< (dim, units): of the layer that it leaves by
  float* bias;           ///< (depth, units)
  float *in, *out;       ///< (rows, dim)
  float *total, *carry;  ///< (rows, dim)
  float* noise;          ///< (ahead, rows, dim)

  /// Small tiles have two buffers in turn; that of a large tile is written after it was read.
  DF_HD bool in_place() const { return size.rows > kTileRows; }
  DF_HD uint32_t* tile(int layer) const {
    return tiles + (in_place() ? 0 : layer % 2 * kTileRows * row);
  }
  /// Whether weights are read again for each product, because they do not fit all at once.
  DF_HD bool streamed() const { return size.slots < depth; }
  DF_HD uint32_t* weights(int layer) const {
    return hidden + (streamed() ? 0 : layer) * units * row;
  }
  DF_HD int blocks() const { return (row - kRowPadding) / kBlockWords; }
};

/// Divides shared memory into the parts; from null it only counts. Returns the number of words.
DF_HD size_t carve(Layers* to, uint32_t* start, const Sizes& of) {
  size_t next = 0;
  const auto take = [&](size_t words) {
    const size_t at = next;
    next += (words + 3) / 4 * 4;
    return at;
  };
  const size_t hidden = take(static_cast<size_t>(of.slots) * of.units * of.row());
  const size_t tiles = take(2 * kTileRows * of.row());
  const size_t thin_in = take(of.dim * of.units), thin_out = take(of.dim * of.units);
  const size_t bias = take(of.depth * of.units), state = of.rows * of.dim;
  const size_t in = take(state), out = take(state), total = take(state), carry = take(state);
  const size_t noise = take(of.ahead * state);
  if (to != nullptr) {
    float* const floats = reinterpret_cast<float*>(start);
    *to = {of,
           of.units,
           of.depth,
           of.dim,
           of.row(),
           start + hidden,
           start + tiles,
           floats + thin_in,
           floats + thin_out,
           floats + bias,
           floats + in,
           floats + out,
           floats + total,
           floats + carry,
           floats + noise};
  }
  return next;
}

/// An element of a matrix (rows, columns), or 0 outside of it.
DF_INLINE float element(const float* matrix, int rows, int columns, int row, int column) {
  return row < rows && column < columns ? matrix[row * columns + column] : 0.0f;
}

/// Copies the weights of a hidden layer to its slot, transposed for the backward direction. Units
/// beyond the network's width have weights 0, and stay 0.
template <class Factors>
DF_INLINE void load_hidden(const Layers& at, const Mlp& net, Way way, int layer) {
  const float* const source = net.weights.hidden[layer];
  uint32_t* const to = at.weights(layer);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int words = at.units / Factors::kPerWord, width = net.width;
  // A warp reads whole sectors of the source and writes to 32 banks: a row, or, where rows become
  // columns, 8 columns of 4.
  [[maybe_unused]] constexpr int kTogether = 4 / Factors::kPerWord;
  const bool forward = way == Way::kForward;
  const int first_row = forward ? warp : 8 * warp + lane % 8, rows = forward ? warps : 8 * warps;
  const int first_word = forward ? lane : lane / 8, step = forward ? 32 : 4;
  for (int n = first_row; n < at.units; n += rows) {
#pragma unroll kTogether
    for (int word = first_word; word < words; word += step) {
      const int k = word * Factors::kPerWord;
      float value[Factors::kPerWord];
      for (int j = 0; j < Factors::kPerWord; ++j) {
        value[j] = forward ? element(source, width, width, n, k + j)
                           : element(source, width, width, k + j, n);
      }
      to[n * at.row + word] = Factors::word(value);
    }
  }
}

/// Copies one network; of the hidden layers, if they are streamed, only the biases.
template <class Factors>
DF_INLINE void load(const Layers& to, const Mlp& net, Way way) {
  const int threads = blockDim.x, width = net.width;
  for (int l = 0; l < to.depth; ++l) {
    if (!to.streamed()) load_hidden<Factors>(to, net, way, l);
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

/// The thin layer in: (rows, dim) times (dim, units).
template <class Factors>
DF_INLINE TileSum<Factors> enter(const Layers& at) {
  TileSum<Factors> sum = {};
  for (int i = 0; i < at.dim; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int pair = 0; pair < Factors::kPairs; ++pair) {
        const Position to = position(half, pair);
        const float value = at.in[to.row * at.dim + i];
        const float* weight = at.thin_in + i * at.units + to.column;
        float* out = sum.part[pair / 2].half[half].value + 2 * (pair % 2);
        out[0] = fma(value, weight[0], out[0]);
        out[1] = fma(value, weight[1], out[1]);
      }
    }
  }
  return sum;
}

/// The thin layer out: (rows, units) times (units, dim), eight lanes for each number.
template <class Factors>
DF_INLINE void leave(const Layers& at, const uint32_t* tile, const float* bias) {
  constexpr int kShare = 8;
  const int groups = blockDim.x / kShare, lane = threadIdx.x % kShare;
  const int numbers = Factors::kRows * at.dim;
  for (int first = 0; first < numbers; first += groups) {
    const int i = first + static_cast<int>(threadIdx.x) / kShare;
    const int row = i / at.dim, component = i % at.dim;
    float sum = 0.0f;
    for (int column = 2 * lane; i < numbers && column < at.units; column += 2 * kShare) {
      const uint32_t* const from = tile + row * at.row + column / Factors::kPerWord;
      const Two two = Factors::unpack(pair_at<Factors>(from));
      const float* weight = at.thin_out + component * at.units + column;
      sum = fma(two.first, weight[0], fma(two.second, weight[1], sum));
    }
    for (int apart = kShare / 2; apart > 0; apart /= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, apart);
    }
    if (i < numbers && lane == 0) at.out[i] = sum + (bias != nullptr ? bias[component] : 0.0f);
  }
}

/// Values and slopes of all of a lane's numbers h, one next to the other: each is a long chain.
template <Activation kind, class Factors>
DF_INLINE void activate_all(LaneTwos<Factors>* h, LaneTwos<Factors>* slopes) {
  for_pairs<Factors>([&](int half, int pair) {
    Two &value = h->at[half][pair], &slope = slopes->at[half][pair];
    const Activated first = activate<kind>(value.first), second = activate<kind>(value.second);
    value = {first.value, second.value}, slope = {first.slope, second.slope};
  });
}

template <class Factors>
DF_INLINE void activate_as(Activation kind, LaneTwos<Factors>* h, LaneTwos<Factors>* slopes) {
  switch (kind) {
    case Activation::kGelu:
      return activate_all<Activation::kGelu>(h, slopes);
    case Activation::kSilu:
      return activate_all<Activation::kSilu>(h, slopes);
    default:
      return activate_all<Activation::kTanh>(h, slopes);
  }
}

/// Address of a tile's activations: its first sample in layer 0, with layers `layer` words apart.
/// `sums` is the row in layer 0 of the sums over the first kTileRows of its samples, which those
/// over the next ones follow, with layers `layer_sums` apart.
struct TileTrace {
  uint32_t *values, *slopes;
  float* sums;
  size_t layer, layer_sums;
  int row_words, rows;
  bool stored;
};

/// Whether a lane's row of a pair is that of a sample.
DF_INLINE bool is_sample(const TileTrace& trace, int pair) {
  return position(0, pair).row < trace.rows;
}

/// Writes numbers to a tile: factors of the next product, or, behind the last one, numbers.
template <class Factors>
DF_INLINE void pass_on(uint32_t* to, Two two, bool last) {
  if (last) {
    Factors::keep(to, two);
  } else {
    Factors::put(to, two);
  }
}

/// One layer forward: bias and activation; writes values to `to`, values and slopes to the trace.
template <class Factors>
DF_INLINE void finish_forward(const Layers& at, const TileSum<Factors>& sum, const float* bias,
                              int width, Activation kind, uint32_t* to, const TileTrace& trace,
                              int l) {
  LaneTwos<Factors> values, slopes;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int column = position(half, 0).column;
    const float first = column < width ? bias[column] : 0.0f;
    const float second = column + 1 < width ? bias[column + 1] : 0.0f;
#pragma unroll
    for (int pair = 0; pair < Factors::kPairs; ++pair) {
      const Two z = two_of(sum, half, pair);
      values.at[half][pair] = {z.first + first, z.second + second};
    }
  }
  activate_as(kind, &values, &slopes);
  const auto of_tile = LaneWords<Factors>::of(at.row);
  for_pairs<Factors>([&](int half, int pair) {
    pass_on<Factors>(to + of_tile.at(half, pair), values.at[half][pair], l == at.depth);
  });
  if (!trace.stored) return;
  const auto of_trace = LaneWords<Factors>::of(trace.row_words);
  uint32_t* const to_values = trace.values + l * trace.layer;
  uint32_t* const to_slopes = trace.slopes + l * trace.layer;
  for_pairs<Factors>([&](int half, int pair) {
    if (!is_sample(trace, pair)) return;
    Factors::keep(to_values + of_trace.at(half, pair), values.at[half][pair]);
    Factors::keep(to_slopes + of_trace.at(half, pair), slopes.at[half][pair]);
  });
}

/// The product of hidden layer `l`. Where weights are streamed, those of layer `next` replace them,
/// if there is one; what follows hides their way.
template <class Factors>
DF_INLINE TileSum<Factors> hidden_product(const Layers& at, const Mlp& net, Way way,
                                          const uint32_t* tile, int l, int next) {
  const auto sum = product<Factors>(tile, at.weights(l), at.row, at.blocks());
  if (at.streamed() || Factors::kParts > 1) __syncthreads();
  if (at.streamed() && next >= 0 && next < at.depth) load_hidden<Factors>(at, net, way, next);
  return sum;
}

/// net(x) of the tile in `in`, into `out`. `embedding` is its row at the tile's time.
template <class Factors>
DF_INLINE void evaluate(const Layers& at, const Mlp& net, const float* embedding,
                        const TileTrace& trace) {
  if (at.streamed()) load_hidden<Factors>(at, net, Way::kForward, 0);
  finish_forward<Factors>(at, enter<Factors>(at), embedding, net.width, net.activation, at.tile(0),
                          trace, 0);
  __syncthreads();
  for (int l = 0; l < at.depth; ++l) {
    const auto sum = hidden_product<Factors>(at, net, Way::kForward, at.tile(l), l, l + 1);
    finish_forward<Factors>(at, sum, at.bias + l * at.units, at.units, net.activation,
                            at.tile(l + 1), trace, l + 1);
    __syncthreads();
  }
  leave<Factors>(at, at.tile(at.depth), net.weights.output_bias);
  __syncthreads();
}

/// The slopes of one layer that a lane needs, read before the product.
template <class Factors>
struct Slopes {
  typename Factors::Pair at[2][Factors::kPairs];

  DF_INLINE Slopes of(const TileTrace& trace, int l) {
    Slopes out;
    const auto words = LaneWords<Factors>::of(trace.row_words);
    const uint32_t* const from = trace.slopes + l * trace.layer;
    for_pairs<Factors>([&](int half, int pair) {
      out.at[half][pair] = {};
      if (!is_sample(trace, pair)) return;
      out.at[half][pair] = pair_at<Factors>(from + words.at(half, pair));
    });
    return out;
  }
};

/// Sums over kTileRows rows each, of which a lane has two: rows behind the last hold 0.
template <class Factors>
DF_INLINE void store_sums(const Layers& at, const LaneTwos<Factors>& delta, float* to, int rows) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int part = 0; part < Factors::kParts; ++part) {
      const Two(&two)[Factors::kPairs] = delta.at[half];
      Two sum = {two[2 * part].first + two[2 * part + 1].first,
                 two[2 * part].second + two[2 * part + 1].second};
#pragma unroll
      for (int apart = 4; apart < 32; apart *= 2) {
        sum.first += __shfl_xor_sync(0xffffffffu, sum.first, apart);
        sum.second += __shfl_xor_sync(0xffffffffu, sum.second, apart);
      }
      const Position p = position(half, 0);
      if (p.row != 0 || part * kTileRows >= rows) continue;
      float* const out = to + part * at.units + p.column;
      out[0] = sum.first, out[1] = sum.second;
    }
  }
}

/// One layer backward: times the slope; writes deltas to `to` and over the slopes of the trace, and
/// their sums over the tile's samples.
template <class Factors>
DF_INLINE void finish_backward(const Layers& at, const TileSum<Factors>& sum,
                               const Slopes<Factors>& slopes, uint32_t* to, const TileTrace& trace,
                               int l) {
  LaneTwos<Factors> deltas;
  const auto of_tile = LaneWords<Factors>::of(at.row);
  const auto of_trace = LaneWords<Factors>::of(trace.row_words);
  uint32_t* const to_trace = trace.slopes + l * trace.layer;
  for_pairs<Factors>([&](int half, int pair) {
    const Two z = two_of(sum, half, pair), slope = Factors::unpack(slopes.at[half][pair]);
    const Two delta = {z.first * slope.first, z.second * slope.second};
    deltas.at[half][pair] = delta;
    pass_on<Factors>(to + of_tile.at(half, pair), delta, l == 0);
    if (is_sample(trace, pair)) Factors::keep(to_trace + of_trace.at(half, pair), delta);
  });
  store_sums(at, deltas, trace.sums + l * trace.layer_sums, trace.rows);
}

/// J^T times the cotangents in `in`, into `out`. `slopes` are those of the last layer.
template <class Factors>
DF_INLINE void pull_back(const Layers& at, const Mlp& net, Slopes<Factors> slopes,
                         const TileTrace& trace) {
  if (at.streamed()) load_hidden<Factors>(at, net, Way::kBackward, at.depth - 1);
  finish_backward<Factors>(at, enter<Factors>(at), slopes, at.tile(0), trace, at.depth);
  __syncthreads();
  for (int l = at.depth - 1; l >= 0; --l) {
    const int from = at.depth - 1 - l;
    slopes = Slopes<Factors>::of(trace, l);
    const auto sum = hidden_product<Factors>(at, net, Way::kBackward, at.tile(from), l, l - 1);
    finish_backward<Factors>(at, sum, slopes, at.tile(from + 1), trace, l);
    __syncthreads();
  }
  leave<Factors>(at, at.tile(at.depth), nullptr);
  __syncthreads();
}

}  // namespace gpu
}  // namespace diffflow
