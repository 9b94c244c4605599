// A perceptron on a tile of samples: values, and vector-Jacobian products with weight gradients.
#pragma once

#include "activations.h"
#include "matmul.h"

namespace diffflow {
namespace DF_ENGINE {

constexpr int kMaxDepth = 16;
/// Up to here a product with so few columns is taken column by column.
constexpr int64_t kNarrow = 8;

/// Hands out aligned parts of a block of memory; from address 0 it only counts.
class Arena {
 public:
  explicit Arena(void* start) : next_(reinterpret_cast<uintptr_t>(start)) {}

  template <typename T>
  T* take(int64_t count) {
    next_ = (next_ + 63) / 64 * 64;
    T* out = reinterpret_cast<T*>(next_);
    next_ += static_cast<uintptr_t>(count) * sizeof(T);
    return out;
  }
  uintptr_t next() const { return next_; }

 private:
  uintptr_t next_;
};

/// Weights with rows of `width`, which is padded with units that are always 0.
struct PackedMlp {
  int64_t width, depth, dim, outer;  ///< outer: dim, padded
  Activation activation;
  float* embedding;  ///< (times, width)
  float* input;      ///< (dim, width)
  float* output;     ///< (dim, width)
  const float* output_bias;
  float* bias[kMaxDepth];                           ///< (width)
  float *forward[kMaxDepth], *backward[kMaxDepth];  ///< panels
  float *output_panels, *input_panels;              ///< (width, outer), where dim is not narrow
};

/// Sums of gradients, in one block; `input` is transposed, (dim, width).
struct MlpSums {
  float *embedding, *input, *output, *output_bias, *hidden[kMaxDepth], *bias[kMaxDepth];
};

/// What the forward pass leaves of a tile: (depth + 1, tile, width) each.
struct Activations {
  float *value, *slope;
};

DF_INLINE PackedMlp carve_weights(Arena& arena, const Mlp& mlp, int64_t dim, int64_t times) {
  PackedMlp out;
  out.width = padded(mlp.width), out.depth = mlp.depth, out.dim = dim, out.outer = padded(dim);
  out.activation = mlp.activation, out.output_bias = mlp.weights.output_bias;
  out.embedding = arena.take<float>(times * out.width);
  out.input = arena.take<float>(dim * out.width);
  out.output = arena.take<float>(dim * out.width);
  for (int64_t l = 0; l < mlp.depth; ++l) {
    out.bias[l] = arena.take<float>(out.width);
    out.forward[l] = arena.take<float>(out.width * out.width);
    out.backward[l] = arena.take<float>(out.width * out.width);
  }
  const int64_t wide = dim > kNarrow ? out.width * out.outer : 0;
  out.output_panels = arena.take<float>(wide);
  out.input_panels = arena.take<float>(wide);
  return out;
}

DF_INLINE void copy_rows(float* to, int64_t to_row, const float* from, int64_t from_row,
                         int64_t rows) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < to_row; ++j) {
      to[i * to_row + j] = j < from_row ? from[i * from_row + j] : 0.0f;
    }
  }
}

static void pack_weights(const PackedMlp& to, const Mlp& mlp, int64_t times) {
  const MlpTensors<const float>& w = mlp.weights;
  copy_rows(to.embedding, to.width, w.embedding, mlp.width, times);
  copy_rows(to.output, to.width, w.output, mlp.width, to.dim);
  for (int64_t k = 0; k < to.dim; ++k) {
    for (int64_t j = 0; j < to.width; ++j) {
      to.input[k * to.width + j] = j < mlp.width ? w.input[j * to.dim + k] : 0.0f;
    }
  }
  for (int64_t l = 0; l < mlp.depth; ++l) {
    copy_rows(to.bias[l], to.width, w.hidden_bias[l], mlp.width, 1);
    pack(to.forward[l], w.hidden[l], mlp.width, mlp.width, true, to.width, to.width);
    pack(to.backward[l], w.hidden[l], mlp.width, mlp.width, false, to.width, to.width);
  }
  if (to.dim > kNarrow) {
    pack(to.output_panels, w.output, to.dim, mlp.width, true, to.width, to.outer);
    pack(to.input_panels, w.input, mlp.width, to.dim, false, to.width, to.outer);
  }
}

DF_INLINE MlpSums carve_sums(Arena& arena, const PackedMlp& mlp, int64_t times) {
  MlpSums out;
  out.embedding = arena.take<float>(times * mlp.width);
  out.input = arena.take<float>(mlp.dim * mlp.width);
  out.output = arena.take<float>(mlp.dim * mlp.width);
  out.output_bias = arena.take<float>(mlp.outer);
  for (int64_t l = 0; l < mlp.depth; ++l) {
    out.hidden[l] = arena.take<float>(mlp.width * mlp.width);
    out.bias[l] = arena.take<float>(mlp.width);
  }
  return out;
}

/// Writes sums as gradients in torch's layout.
static void unpack_sums(const MlpTensors<float>& to, const MlpSums& from, const PackedMlp& packed,
                        const Mlp& mlp, int64_t times) {
  const int64_t width = mlp.width, row = packed.width;
  for (int64_t k = 0; k < times; ++k) {
    memcpy(to.embedding + k * width, from.embedding + k * row, width * sizeof(float));
  }
  for (int64_t k = 0; k < packed.dim; ++k) {
    memcpy(to.output + k * width, from.output + k * row, width * sizeof(float));
    for (int64_t j = 0; j < width; ++j) to.input[j * packed.dim + k] = from.input[k * row + j];
  }
  memcpy(to.output_bias, from.output_bias, packed.dim * sizeof(float));
  for (int64_t l = 0; l < mlp.depth; ++l) {
    for (int64_t i = 0; i < width; ++i) {
      memcpy(to.hidden[l] + i * width, from.hidden[l] + i * row, width * sizeof(float));
    }
    memcpy(to.hidden_bias[l], from.bias[l], width * sizeof(float));
  }
}

// --- forward -------------------------------------------------------------------------------------

/// Rows of `bias` lie `bias_row` apart; 0 for one row for all.
template <Activation kind>
static void activate_rows(int64_t rows, int64_t width, const float* sums, const float* bias,
                          int64_t bias_row, float* value, float* slope) {
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t j = 0; j < width; j += kLanes) {
      const int64_t at = m * width + j;
      const Activated out = activate<kind>(load(sums + at) + load(bias + m * bias_row + j));
      store(value + at, out.value);
      store(slope + at, out.slope);
    }
  }
}

static void activate_layer(Activation kind, int64_t rows, int64_t width, const float* sums,
                           const float* bias, int64_t bias_row, float* value, float* slope) {
  switch (kind) {
    case Activation::kGelu:
      return activate_rows<Activation::kGelu>(rows, width, sums, bias, bias_row, value, slope);
    case Activation::kSilu:
      return activate_rows<Activation::kSilu>(rows, width, sums, bias, bias_row, value, slope);
    default:
      return activate_rows<Activation::kTanh>(rows, width, sums, bias, bias_row, value, slope);
  }
}

/// Room for one tile's work inside a network.
struct TileRoom {
  float *sums, *delta;  ///< (tile, max(width, outer)), (tile, width)
};

/// Products with a matrix of `dim` columns: a (rows, width) b^T (width, dim) + bias.
DF_INLINE void to_state(const PackedMlp& mlp, int64_t rows, const float* a, const float* b,
                        const float* panels, const float* bias, float* out, float* sums) {
  if (mlp.dim <= kNarrow) return narrow_product(rows, mlp.dim, mlp.width, out, a, b, bias);
  product<false>(rows, mlp.outer, mlp.width, sums, mlp.outer, {a, mlp.width, 1}, panels, kPanel,
                 mlp.width * kPanel);
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t k = 0; k < mlp.dim; ++k) {
      out[m * mlp.dim + k] = sums[m * mlp.outer + k] + (bias != nullptr ? bias[k] : 0.0f);
    }
  }
}

/// out (rows, dim) = net(x) with the given embedding, one row or one for each sample; leaves values
/// and slopes of all layers.
static void evaluate(const PackedMlp& mlp, const float* embedding, int64_t embedding_row,
                     int64_t rows, const float* x, const Activations& at, float* out,
                     const TileRoom& room) {
  const int64_t width = mlp.width, layer = rows * width;
  product<false>(rows, width, mlp.dim, room.sums, width, {x, mlp.dim, 1}, mlp.input, width, kPanel);
  activate_layer(mlp.activation, rows, width, room.sums, embedding, embedding_row, at.value,
                 at.slope);
  for (int64_t l = 0; l < mlp.depth; ++l) {
    product<false>(rows, width, width, room.sums, width, {at.value + l * layer, width, 1},
                   mlp.forward[l], kPanel, width * kPanel);
    activate_layer(mlp.activation, rows, width, room.sums, mlp.bias[l], 0,
                   at.value + (l + 1) * layer, at.slope + (l + 1) * layer);
  }
  to_state(mlp, rows, at.value + mlp.depth * layer, mlp.output, mlp.output_panels, mlp.output_bias,
           out, room.sums);
}

// --- backward ------------------------------------------------------------------------------------

/// to (width) += sums of the columns of a (rows, width).
DF_INLINE void add_columns(float* to, const float* a, int64_t rows, int64_t width) {
  for (int64_t j = 0; j < width; j += kLanes) {
    Vec total = load(to + j);
    for (int64_t m = 0; m < rows; ++m) total = total + load(a + m * width + j);
    store(to + j, total);
  }
}

DF_INLINE void multiply(float* to, const float* a, const float* b, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) store(to + i, load(a + i) * load(b + i));
}

/// grad_x (rows, dim) = J^T cotangent. Adds the gradients of the weights to `sums`, and that
/// of the embedding, where it is one row, to `grad_embedding`; room.delta keeps its rows.
static void pull_back(const PackedMlp& mlp, const MlpSums& sums, float* grad_embedding,
                      int64_t rows, const float* x, const Activations& at, const float* cotangent,
                      float* grad_x, const TileRoom& room) {
  const int64_t width = mlp.width, dim = mlp.dim, layer = rows * width;
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t j = 0; j < dim; ++j) sums.output_bias[j] += cotangent[m * dim + j];
  }
  product<true>(dim, width, rows, sums.output, width, {cotangent, 1, dim},
                at.value + mlp.depth * layer, width, kPanel);
  product<false>(rows, width, dim, room.sums, width, {cotangent, dim, 1}, mlp.output, width,
                 kPanel);
  multiply(room.delta, room.sums, at.slope + mlp.depth * layer, layer);
  for (int64_t l = mlp.depth - 1; l >= 0; --l) {
    product<true>(width, width, rows, sums.hidden[l], width, {room.delta, 1, width},
                  at.value + l * layer, width, kPanel);
    add_columns(sums.bias[l], room.delta, rows, width);
    product<false>(rows, width, width, room.sums, width, {room.delta, width, 1}, mlp.backward[l],
                   kPanel, width * kPanel);
    multiply(room.delta, room.sums, at.slope + l * layer, layer);
  }
  if (grad_embedding != nullptr) add_columns(grad_embedding, room.delta, rows, width);
  product<true>(dim, width, rows, sums.input, width, {x, 1, dim}, room.delta, width, kPanel);
  to_state(mlp, rows, room.delta, mlp.input, mlp.input_panels, nullptr, grad_x, room.sums);
}

}  // namespace DF_ENGINE
}  // namespace diffflow
