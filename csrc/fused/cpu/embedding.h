// Time embeddings of many times: Fourier features and two layers, with gradients.
#pragma once

#include "mlp.h"
#include "tiles.h"

namespace diffflow {
namespace DF_NAMESPACE {

struct SinCosVec {
  Vec sin, cos;
};

/// For larger angles the reduction by the parts of pi / 2 is inaccurate.
constexpr float kLargestAngle = 8192.0f;

/// Within 2 ulp of 1 for |v| <= kLargestAngle. v = n pi/2 + r, pi/2 in three parts of few digits;
/// the polynomials are those of Cephes' sinf and cosf.
DF_INLINE SinCosVec sine_and_cosine(Vec v) {
  const Vec shift = splat(12582912.0f);
  const Vec n = (v * splat(0.636619772f) + shift) - shift;
  Vec r = v - n * splat(1.5703125f);
  r = r - n * splat(4.837512969970703125e-4f);
  r = r - n * splat(7.5497899548918821e-8f);
  const Vec z = r * r;
  Vec s = fma(z, splat(-1.9515295891e-4f), splat(8.3321608736e-3f));
  s = fma(s, z, splat(-1.6666654611e-1f));
  s = fma(s * z, r, r);
  Vec c = fma(z, splat(2.443315711809948e-5f), splat(-1.388731625493765e-3f));
  c = fma(c, z, splat(4.166664568298827e-2f));
  c = fma(c * z, z, fma(z, splat(-0.5f), splat(1.0f)));
  const IntVec turns = __builtin_convertvector(n, IntVec);
  const IntVec odd = (turns & 1) != 0;
  const Vec sine = choose(odd, c, s), cosine = choose(odd, s, c);
  return {choose((turns & 2) != 0, -sine, sine), choose(((turns + 1) & 2) != 0, -cosine, cosine)};
}

/// The same for any angles.
DF_INLINE SinCosVec sine_and_cosine_of_any(Vec v) {
  SinCosVec out{};
  for (int i = 0; i < kLanes; ++i) {
    out.sin[i] = __builtin_sinf(v[i]), out.cos[i] = __builtin_cosf(v[i]);
  }
  return out;
}

DF_INLINE float largest_of(const float* values, int64_t count) {
  float out = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float size = __builtin_fabsf(values[i]);
    // NaN and infinity are unchanged.
    if (!(size <= out)) out = size;
  }
  return out;
}

/// Sums of gradients of a network's time embedding, in one block; rows are padded.
struct EmbeddingSums {
  float *phase, *first_bias, *constant;  ///< (width)
  float *of_sine, *of_cosine, *second;   ///< (width, width)
};

struct EmbeddingShared {
  int64_t width;                                 ///< padded
  float *frequencies, *phase, *first_bias;       ///< (width)
  float *sine, *cosine, *second;                 ///< panels of the transposed matrices
  float *sine_back, *cosine_back, *second_back;  ///< panels of the matrices
  EmbeddingSums sums;
  float* sums_begin;
  int64_t num_sums;
};

struct EmbeddingScratch {
  float *activations, *sums, *delta, *other, *grad;
  EmbeddingSums of_tile;
  float* sums_begin;
};

/// Results of a tile that its gradients need.
struct EmbeddingTile {
  float *sine, *cosine, *hidden, *slope;  ///< (tile, width)
};

DF_INLINE EmbeddingTile activations_from(float* begin, int64_t layer) {
  return {begin, begin + layer, begin + 2 * layer, begin + 3 * layer};
}

DF_INLINE EmbeddingSums carve_embedding_sums(Arena& arena, int64_t width, float** begin,
                                             int64_t* count) {
  EmbeddingSums out;
  *begin = arena.take_part<float>(0);
  float** const rows[] = {&out.phase, &out.first_bias, &out.constant};
  float** const squares[] = {&out.of_sine, &out.of_cosine, &out.second};
  for (float** row : rows) *row = arena.take_part<float>(width);
  for (float** square : squares) *square = arena.take_part<float>(width * width);
  *count = (arena.next() - reinterpret_cast<uintptr_t>(*begin)) / sizeof(float);
  arena.wall();
  return out;
}

DF_INLINE EmbeddingShared carve_embedding(Arena& arena, const EmbeddingProblem& p) {
  EmbeddingShared out;
  out.width = padded(p.width);
  float** const rows[] = {&out.frequencies, &out.phase, &out.first_bias};
  float** const panels[] = {&out.sine,      &out.cosine,      &out.second,
                            &out.sine_back, &out.cosine_back, &out.second_back};
  for (float** row : rows) *row = arena.take<float>(out.width);
  for (float** panel : panels) *panel = arena.take<float>(out.width * out.width);
  out.sums = carve_embedding_sums(arena, out.width, &out.sums_begin, &out.num_sums);
  return out;
}

DF_INLINE EmbeddingScratch carve_embedding_scratch(Arena& arena, const EmbeddingProblem& p,
                                                   const EmbeddingShared& shared) {
  EmbeddingScratch out;
  const int64_t layer = p.work.tile * shared.width;
  int64_t count;
  out.activations = arena.take<float>(4 * layer);
  float** const parts[] = {&out.sums, &out.delta, &out.other, &out.grad};
  for (float** part : parts) *part = arena.take<float>(layer);
  out.of_tile = carve_embedding_sums(arena, shared.width, &out.sums_begin, &count);
  return out;
}

static int64_t embedding_scratch_bytes(const EmbeddingProblem& p) {
  return bytes_of(
      p.work, [&](Arena& arena) { return carve_embedding(arena, p); },
      [&](Arena& arena, const EmbeddingShared& shared) {
        carve_embedding_scratch(arena, p, shared);
      });
}

static void pack_embedding(const EmbeddingShared& to, const EmbeddingProblem& p, bool back) {
  const int64_t width = p.width;
  const float* of_cosine = p.weights.first + width;
  copy_rows(to.frequencies, to.width, p.frequencies, width, 1);
  copy_rows(to.phase, to.width, p.weights.phase, width, 1);
  copy_rows(to.first_bias, to.width, p.weights.first_bias, width, 1);
  if (!back) {
    pack(to.sine, {p.weights.first, width, width, 2 * width, true}, to.width, to.width);
    pack(to.cosine, {of_cosine, width, width, 2 * width, true}, to.width, to.width);
    pack(to.second, {p.weights.second, width, width, width, true}, to.width, to.width);
  } else {
    pack(to.sine_back, {p.weights.first, width, width, 2 * width, false}, to.width, to.width);
    pack(to.cosine_back, {of_cosine, width, width, 2 * width, false}, to.width, to.width);
    pack(to.second_back, {p.weights.second, width, width, width, false}, to.width, to.width);
    memset(to.sums_begin, 0, to.num_sums * sizeof(float));
  }
}

/// c (rows, width) (+)= a (rows, width) times a packed square matrix.
template <bool add>
DF_INLINE void times_square(int64_t rows, int64_t width, float* c, const float* a,
                            const float* panels) {
  product<add>(rows, width, width, c, width, Left<float>{a, width, 1}, panels, kPanel,
               width * kPanel);
}

/// c (width, width) += a^T b for a, b (rows, width).
DF_INLINE void add_outer(int64_t rows, int64_t width, float* c, const float* a, const float* b) {
  product<true>(width, width, rows, c, width, Left<float>{a, 1, width}, b, width, kPanel);
}

static void embed_tile(const EmbeddingProblem& p, const EmbeddingShared& shared,
                       const EmbeddingTile& to, float* sums, const Rows& rows) {
  const int64_t width = shared.width;
  const float steepest = largest_of(shared.frequencies, width);
  const float farthest = largest_of(shared.phase, width);
  for (int64_t m = 0; m < p.work.tile; ++m) {
    // Products and sums are rounded separately, as in torch.
    const float time = p.times[rows.first + (m < rows.count ? m : 0)] * p.scale;
    const bool near = __builtin_fabsf(time) * steepest + farthest < kLargestAngle;
    for (int64_t j = 0; j < width; j += kLanes) {
      const Vec angle = splat(time) * load(shared.frequencies + j) + load(shared.phase + j);
      const SinCosVec at = near ? sine_and_cosine(angle) : sine_and_cosine_of_any(angle);
      store(to.sine + m * width + j, at.sin), store(to.cosine + m * width + j, at.cos);
    }
  }
  times_square<false>(p.work.tile, width, sums, to.sine, shared.sine);
  times_square<true>(p.work.tile, width, sums, to.cosine, shared.cosine);
  activate_layer(p.activation, p.work.tile, width, sums, shared.first_bias, 0,
                 Layer{nullptr, to.hidden, to.slope});
  times_square<false>(p.work.tile, width, sums, to.hidden, shared.second);
  for (int64_t m = 0; m < rows.count; ++m) {
    float* out = p.embeddings + (rows.first + m) * p.width;
    for (int64_t j = 0; j < p.width; ++j) out[j] = sums[m * width + j] + p.weights.constant[j];
  }
}

/// Gradients of one tile's embeddings. See FourierMLP in diffflow_ext/nets/mlp.py.
static void embed_tile_vjp(const EmbeddingProblem& p, const EmbeddingShared& shared,
                           const EmbeddingTile& at, const EmbeddingScratch& scratch,
                           const Rows& rows) {
  const int64_t width = shared.width, layer = p.work.tile * width;
  const EmbeddingSums& to = scratch.of_tile;
  memset(scratch.sums_begin, 0, shared.num_sums * sizeof(float));
  memset(scratch.grad, 0, layer * sizeof(float));
  copy_rows(scratch.grad, width, p.grad + rows.first * p.width, p.width, rows.count);
  add_columns(to.constant, scratch.grad, p.work.tile, width);
  add_outer(p.work.tile, width, to.second, scratch.grad, at.hidden);
  times_square<false>(p.work.tile, width, scratch.sums, scratch.grad, shared.second_back);
  multiply(scratch.delta, scratch.sums, at.slope, layer);
  add_columns(to.first_bias, scratch.delta, p.work.tile, width);
  add_outer(p.work.tile, width, to.of_sine, scratch.delta, at.sine);
  add_outer(p.work.tile, width, to.of_cosine, scratch.delta, at.cosine);
  times_square<false>(p.work.tile, width, scratch.sums, scratch.delta, shared.sine_back);
  times_square<false>(p.work.tile, width, scratch.other, scratch.delta, shared.cosine_back);
  for (int64_t i = 0; i < layer; i += kLanes) {
    store(scratch.sums + i, load(scratch.sums + i) * load(at.cosine + i) -
                                load(scratch.other + i) * load(at.sine + i));
  }
  add_columns(to.phase, scratch.sums, p.work.tile, width);
}

static void unpack_embedding_sums(const EmbeddingProblem& p, const EmbeddingShared& shared) {
  const EmbeddingSums& from = shared.sums;
  const int64_t width = p.width, row = width * sizeof(float);
  memcpy(p.grads.phase, from.phase, row);
  memcpy(p.grads.first_bias, from.first_bias, row);
  memcpy(p.grads.constant, from.constant, row);
  for (int64_t i = 0; i < width; ++i) {
    memcpy(p.grads.first + 2 * i * width, from.of_sine + i * shared.width, row);
    memcpy(p.grads.first + (2 * i + 1) * width, from.of_cosine + i * shared.width, row);
    memcpy(p.grads.second + i * width, from.second + i * shared.width, row);
  }
}

/// Embeddings, or, if `grad` is given, the gradients of their parameters.
static void run_embedding(const EmbeddingProblem& p) {
  const bool back = p.grad != nullptr;
  Arena arena(p.work.scratch);
  const EmbeddingShared shared = carve_embedding(arena, p);
  pack_embedding(shared, p, back);
  const int64_t layer = p.work.tile * shared.width;
  for_tiles(
      p, arena, [&](Arena& own) { return carve_embedding_scratch(own, p, shared); },
      [&](const EmbeddingScratch& scratch, const Rows& rows) {
        float* begin = p.activations != nullptr ? p.activations + 4 * rows.first * shared.width
                                                : scratch.activations;
        const EmbeddingTile at = activations_from(begin, layer);
        if (!back) embed_tile(p, shared, at, scratch.sums, rows);
        if (back) embed_tile_vjp(p, shared, at, scratch, rows);
      },
      [&](const EmbeddingScratch& scratch, const Rows&) {
        if (back) add_block(shared.sums_begin, scratch.sums_begin, shared.num_sums);
      });
  if (back) unpack_embedding_sums(p, shared);
}

}  // namespace DF_NAMESPACE
}  // namespace diffflow
