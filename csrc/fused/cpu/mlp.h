// A perceptron on a tile of samples: values, and vector-Jacobian products with weight gradients.
#pragma once

#include "../activations.h"
#include "arena.h"
#include "matrix_tiles.h"

namespace diffflow {
namespace DF_NAMESPACE {

/// Products with up to this many columns are computed column by column.
constexpr int64_t kNarrow = 8;

/// Weights with rows of `width`, padded with units that are always 0.
struct PackedMlp {
  int64_t width, depth, dim, outer;  ///< outer: dim, padded
  Activation activation;
  float* embedding;  ///< (times, width)
  float* input;      ///< (dim, width)
  float* output;     ///< (dim, width)
  const float* output_bias;
  float* bias[kMaxDepth];                          ///< (width)
  Unit *forward[kMaxDepth], *backward[kMaxDepth];  ///< panels
  float *output_panels, *input_panels;             ///< (width, outer), where dim is not narrow
};

/// Sums of gradients, in one block; `input` is transposed, (dim, width).
struct MlpSums {
  float *embedding, *input, *output, *output_bias, *hidden[kMaxDepth], *bias[kMaxDepth];
};

/// A (tile, width) matrix as a factor: in rows, for sums over units of the layer, and in columns,
/// for sums over samples, (tile / kPerUnit, width). Of floats both are one matrix.
struct Operand {
  Unit *rows, *columns;
};

/// Results of the forward pass of a tile that the backward pass needs.
struct Activations {
  Operand inputs;  ///< of the hidden layers, (depth, tile, width)
  float* last;     ///< values of the last layer, (tile, width)
  float* slope;    ///< (depth + 1, tile, width)
};

DF_INLINE Operand carve_operand(Arena& arena, int64_t elements) {
  Operand out;
  out.rows = arena.take<Unit>(elements / kPerUnit);
  out.columns = kPerUnit == 1 ? out.rows : arena.take<Unit>(elements / kPerUnit);
  return out;
}

DF_INLINE Operand shifted(const Operand& operand, int64_t elements) {
  return {operand.rows + elements / kPerUnit, operand.columns + elements / kPerUnit};
}

DF_INLINE Activations carve_activations(Arena& arena, const PackedMlp& mlp, int64_t tile,
                                        int64_t times) {
  const int64_t layer = times * tile * mlp.width;
  Activations out;
  out.inputs = carve_operand(arena, mlp.depth * layer);
  out.last = arena.take<float>(layer);
  out.slope = arena.take<float>((mlp.depth + 1) * layer);
  return out;
}

/// The same for one of several times.
DF_INLINE Activations activations_of(const Activations& all, const PackedMlp& mlp, int64_t tile,
                                     int64_t k) {
  const int64_t layer = k * tile * mlp.width;
  return {shifted(all.inputs, mlp.depth * layer), all.last + layer,
          all.slope + (mlp.depth + 1) * layer};
}

/// Vectors of values at columns [j, j + kLanes) of rows m, m + 1 ... m + kPerUnit - 1.
DF_INLINE void put(const Operand& to, int64_t width, int64_t m, int64_t j, const Vec* values) {
#ifdef DF_BF16
  const __m256i first = bfloat16_of(values[0]), second = bfloat16_of(values[1]);
  memcpy(to.rows + (m * width + j) / 2, &first, sizeof(first));
  memcpy(to.rows + ((m + 1) * width + j) / 2, &second, sizeof(second));
  const IntVec pairs = pairs_of(first, second);
  memcpy(to.columns + m / 2 * width + j, &pairs, sizeof(pairs));
#else
  store(to.rows + m * width + j, values[0]);
#endif
}

DF_INLINE PackedMlp carve_weights(Arena& arena, const Mlp& mlp, int64_t dim, int64_t times) {
  PackedMlp out;
  out.width = padded(mlp.width), out.depth = mlp.depth, out.dim = dim, out.outer = padded(dim);
  out.activation = mlp.activation, out.output_bias = mlp.weights.output_bias;
  out.embedding = arena.take<float>(times * out.width);
  out.input = arena.take<float>(dim * out.width);
  out.output = arena.take<float>(dim * out.width);
  for (int64_t l = 0; l < mlp.depth; ++l) {
    out.bias[l] = arena.take<float>(out.width);
    out.forward[l] = arena.take<Unit>(out.width * out.width / kPerUnit);
    out.backward[l] = arena.take<Unit>(out.width * out.width / kPerUnit);
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
    const int64_t inner = to.width / kPerUnit;
    pack(to.forward[l], {w.hidden[l], mlp.width, mlp.width, mlp.width, true}, inner, to.width);
    pack(to.backward[l], {w.hidden[l], mlp.width, mlp.width, mlp.width, false}, inner, to.width);
  }
  if (to.dim > kNarrow) {
    pack(to.output_panels, {w.output, to.dim, mlp.width, mlp.width, true}, to.width, to.outer);
    pack(to.input_panels, {w.input, mlp.width, to.dim, to.dim, false}, to.width, to.outer);
  }
}

DF_INLINE MlpSums carve_sums(Arena& arena, const PackedMlp& mlp, int64_t times) {
  MlpSums out;
  out.embedding = arena.take_part<float>(times * mlp.width);
  out.input = arena.take_part<float>(mlp.dim * mlp.width);
  out.output = arena.take_part<float>(mlp.dim * mlp.width);
  out.output_bias = arena.take_part<float>(mlp.outer);
  for (int64_t l = 0; l < mlp.depth; ++l) {
    out.hidden[l] = arena.take_part<float>(mlp.width * mlp.width);
    out.bias[l] = arena.take_part<float>(mlp.width);
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

/// The destination of a layer's values: a factor of the next layer, or floats of the output.
struct Layer {
  const Operand* inputs;
  float *last, *slope;
};

/// `bias_row` is the distance of rows of `bias`; 0 for a common row.
template <Activation kind>
static void activate_rows(int64_t rows, int64_t width, const float* sums, const float* bias,
                          int64_t bias_row, const Layer& to) {
  for (int64_t m = 0; m < rows; m += kPerUnit) {
    for (int64_t j = 0; j < width; j += kLanes) {
      Vec values[kPerUnit];
      for (int64_t i = m; i < m + kPerUnit; ++i) {
        const int64_t at = i * width + j;
        const Activated out = activate<kind>(load(sums + at) + load(bias + i * bias_row + j));
        store(to.slope + at, out.slope);
        values[i - m] = out.value;
        if (to.inputs == nullptr) store(to.last + at, out.value);
      }
      if (to.inputs != nullptr) put(*to.inputs, width, m, j, values);
    }
  }
}

static void activate_layer(Activation kind, int64_t rows, int64_t width, const float* sums,
                           const float* bias, int64_t bias_row, const Layer& to) {
  switch (kind) {
    case Activation::kGelu:
      return activate_rows<Activation::kGelu>(rows, width, sums, bias, bias_row, to);
    case Activation::kSilu:
      return activate_rows<Activation::kSilu>(rows, width, sums, bias, bias_row, to);
    default:
      return activate_rows<Activation::kTanh>(rows, width, sums, bias, bias_row, to);
  }
}

/// Scratch memory for one tile inside a network.
struct TileScratch {
  float *sums, *delta;  ///< (tile, max(width, outer)), (tile, width)
  Operand factor;       ///< delta as a factor
};

DF_INLINE TileScratch carve_tile_scratch(Arena& arena, int64_t tile, int64_t width, int64_t outer) {
  TileScratch out;
  out.sums = arena.take<float>(tile * (width > outer ? width : outer));
  out.delta = arena.take<float>(tile * width);
  if (kPerUnit > 1) out.factor = carve_operand(arena, tile * width);
  return out;
}

/// delta (rows, width) as a factor.
DF_INLINE Operand factor_of(const TileScratch& scratch, int64_t rows, int64_t width) {
#ifdef DF_BF16
  for (int64_t m = 0; m < rows; m += 2) {
    for (int64_t j = 0; j < width; j += kLanes) {
      const Vec values[2] = {load(scratch.delta + m * width + j),
                             load(scratch.delta + (m + 1) * width + j)};
      put(scratch.factor, width, m, j, values);
    }
  }
  return scratch.factor;
#else
  (void)rows, (void)width;
  return {scratch.delta, scratch.delta};
#endif
}

/// sums (rows, width) = factor times a packed square matrix.
DF_INLINE void square_product(int64_t rows, int64_t width, float* sums, const Unit* factor_rows,
                              const Unit* panels) {
  const int64_t inner = width / kPerUnit;
  product<false>(rows, width, inner, sums, width, Left<Unit>{factor_rows, inner, 1}, panels, kPanel,
                 inner * kPanel);
}

/// Products with a matrix of `dim` columns: a (rows, width) b^T (width, dim) + bias.
DF_INLINE void to_state(const PackedMlp& mlp, int64_t rows, const float* a, const float* b,
                        const float* panels, const float* bias, float* out, float* sums) {
  if (mlp.dim <= kNarrow) return narrow_product(rows, mlp.dim, mlp.width, out, a, b, bias);
  product<false>(rows, mlp.outer, mlp.width, sums, mlp.outer, Left<float>{a, mlp.width, 1}, panels,
                 kPanel, mlp.width * kPanel);
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t k = 0; k < mlp.dim; ++k) {
      out[m * mlp.dim + k] = sums[m * mlp.outer + k] + (bias != nullptr ? bias[k] : 0.0f);
    }
  }
}

/// out (rows, dim) = net(x) with the given embedding, one row or one for each sample; stores values
/// and slopes of all layers.
static void evaluate(const PackedMlp& mlp, const float* embedding, int64_t embedding_row,
                     int64_t rows, const float* x, const Activations& at, float* out,
                     const TileScratch& scratch) {
  const int64_t width = mlp.width, layer = rows * width;
  product<false>(rows, width, mlp.dim, scratch.sums, width, Left<float>{x, mlp.dim, 1}, mlp.input,
                 width, kPanel);
  for (int64_t l = 0; l <= mlp.depth; ++l) {
    const Operand inputs = shifted(at.inputs, l * layer);
    const Layer to = {l < mlp.depth ? &inputs : nullptr, at.last, at.slope + l * layer};
    const float* bias = l == 0 ? embedding : mlp.bias[l - 1];
    activate_layer(mlp.activation, rows, width, scratch.sums, bias, l == 0 ? embedding_row : 0, to);
    if (l < mlp.depth) square_product(rows, width, scratch.sums, inputs.rows, mlp.forward[l]);
  }
  to_state(mlp, rows, at.last, mlp.output, mlp.output_panels, mlp.output_bias, out, scratch.sums);
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
/// of the embedding, where it is one row, to `grad_embedding`; scratch.delta keeps its rows.
static void pull_back(const PackedMlp& mlp, const MlpSums& sums, float* grad_embedding,
                      int64_t rows, const float* x, const Activations& at, const float* cotangent,
                      float* grad_x, const TileScratch& scratch) {
  const int64_t width = mlp.width, dim = mlp.dim, layer = rows * width;
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t j = 0; j < dim; ++j) sums.output_bias[j] += cotangent[m * dim + j];
  }
  product<true>(dim, width, rows, sums.output, width, Left<float>{cotangent, 1, dim}, at.last,
                width, kPanel);
  product<false>(rows, width, dim, scratch.sums, width, Left<float>{cotangent, dim, 1}, mlp.output,
                 width, kPanel);
  multiply(scratch.delta, scratch.sums, at.slope + mlp.depth * layer, layer);
  for (int64_t l = mlp.depth - 1; l >= 0; --l) {
    const Operand delta = factor_of(scratch, rows, width);
    product<true>(width, width, rows / kPerUnit, sums.hidden[l], width,
                  Left<Unit>{delta.columns, 1, width}, shifted(at.inputs, l * layer).columns, width,
                  kPanel);
    add_columns(sums.bias[l], scratch.delta, rows, width);
    square_product(rows, width, scratch.sums, delta.rows, mlp.backward[l]);
    multiply(scratch.delta, scratch.sums, at.slope + l * layer, layer);
  }
  if (grad_embedding != nullptr) add_columns(grad_embedding, scratch.delta, rows, width);
  product<true>(dim, width, rows, sums.input, width, Left<float>{x, 1, dim}, scratch.delta, width,
                kPanel);
  to_state(mlp, rows, scratch.delta, mlp.input, mlp.input_panels, nullptr, grad_x, scratch.sums);
}

}  // namespace DF_NAMESPACE
}  // namespace diffflow
