// Tiles of samples through all steps of the SDE pair, forward and backward, in one thread each.
//
// Samples do not interact, so a tile needs nothing but the weights, which stay in the cache. The
// gradients of the tiles are added up in the order of the tiles: results depend on the size of a
// tile, but not on the number of threads.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include "../../ops/noise.h"
#include "../../math/sde_step.h"
#include "mlp.h"

namespace diffflow {
namespace DF_ENGINE {

DF_INLINE int this_thread() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

/// What all threads read, and the sums that they add to in turn.
struct Shared {
  PackedMlp drift, score;
  MlpSums drift_sums, score_sums;
  double* grad_g;
  float* sums_begin;  ///< all sums lie between here and the end
  int64_t num_sums;
};

/// What one thread writes.
struct Room {
  Activations drift, score;
  TileRoom inside;
  float *states, *drifts;  ///< (num_steps + 1, tile, dim)
  float *noise, *value, *cotangent_f, *cotangent_s, *grad_f, *grad_s, *total, *carry;
  float* weight;  ///< (tile)
  double* cost;   ///< (tile)
  MlpSums drift_sums, score_sums;
  double* grad_g;
  float* sums_begin;
};

DF_INLINE int64_t times_of(const TrajectoryProblem& p) { return p.num_steps + 1; }

DF_INLINE void carve_all_sums(Arena& arena, const TrajectoryProblem& p, const Shared& shared,
                              MlpSums* drift, MlpSums* score, double** grad_g, float** begin,
                              int64_t* count) {
  *begin = arena.take_part<float>(0);
  *drift = carve_sums(arena, shared.drift, times_of(p));
  *score = carve_sums(arena, shared.score, times_of(p));
  *count = (arena.next() - reinterpret_cast<uintptr_t>(*begin)) / sizeof(float);
  arena.wall();
  *grad_g = arena.take<double>(times_of(p));
}

DF_INLINE Shared carve_shared(Arena& arena, const TrajectoryProblem& p, bool gradients) {
  Shared out;
  out.drift = carve_weights(arena, p.drift, p.dim, times_of(p));
  out.score = carve_weights(arena, p.score, p.dim, times_of(p));
  if (gradients) {
    carve_all_sums(arena, p, out, &out.drift_sums, &out.score_sums, &out.grad_g, &out.sums_begin,
                   &out.num_sums);
  }
  return out;
}

DF_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

DF_INLINE Room carve_room(Arena& arena, const TrajectoryProblem& p, const Shared& shared,
                          bool gradients) {
  const int64_t state = p.tile * p.dim;
  Room out;
  out.drift = carve_activations(arena, shared.drift, p.tile, gradients && p.keep ? times_of(p) : 1);
  out.score = carve_activations(arena, shared.score, p.tile, 1);
  const int64_t width = larger(shared.drift.width, shared.score.width);
  out.inside = carve_tile_room(arena, p.tile, width, shared.drift.outer);
  out.states = arena.take<float>(times_of(p) * state);
  out.drifts = arena.take<float>(times_of(p) * state);
  float** const parts[] = {&out.noise,  &out.value,  &out.cotangent_f, &out.cotangent_s,
                           &out.grad_f, &out.grad_s, &out.total,       &out.carry};
  for (float** part : parts) *part = arena.take<float>(state);
  out.weight = arena.take<float>(p.tile);
  out.cost = arena.take<double>(p.tile);
  if (gradients) {
    int64_t count;
    carve_all_sums(arena, p, shared, &out.drift_sums, &out.score_sums, &out.grad_g, &out.sums_begin,
                   &count);
  }
  return out;
}

static int64_t scratch_bytes(const TrajectoryProblem& p, bool gradients) {
  Arena arena(nullptr);
  const Shared shared = carve_shared(arena, p, gradients);
  for (int i = 0; i < p.threads; ++i) carve_room(arena, p, shared, gradients);
  return static_cast<int64_t>(arena.next()) + 64;
}

/// Carves the scratch memory of a call and packs the weights.
DF_INLINE Shared prepare(const TrajectoryProblem& p, bool gradients, Arena& arena) {
  const Shared shared = carve_shared(arena, p, gradients);
  pack_weights(shared.drift, p.drift, times_of(p));
  pack_weights(shared.score, p.score, times_of(p));
  if (gradients) {
    memset(shared.sums_begin, 0, shared.num_sums * sizeof(float));
    memset(shared.grad_g, 0, times_of(p) * sizeof(double));
  }
  return shared;
}

DF_INLINE Room room_of(int thread, const TrajectoryProblem& p, const Shared& shared, Arena arena,
                       bool gradients) {
  Room room = carve_room(arena, p, shared, gradients);
  for (int i = 0; i < thread; ++i) room = carve_room(arena, p, shared, gradients);
  return room;
}

DF_INLINE StepScalars<float> scalars(const TrajectoryProblem& p, int64_t step, int64_t g_at) {
  return {p.dt[step], square_root(p.dt[step]), p.g[g_at]};
}

/// Samples [first, first + count) of the batch; the other rows of the tile are no samples.
struct Rows {
  int64_t first, count;
};

/// Rows behind the last sample repeat the first, so that they overflow only where it does.
DF_INLINE void repeat_first(float* rows, int64_t row, int64_t count, int64_t tile) {
  for (int64_t m = count; m < tile; ++m) memcpy(rows + m * row, rows, row * sizeof(float));
}

template <typename Problem>
static void draw(const Problem& p, int64_t step, const Rows& rows, float* out) {
  const NoiseSource source = {p.seed, p.stream, static_cast<uint32_t>(step) | p.purpose << 24,
                              p.sample_offset, nullptr};
  const Shape shape = {p.samples, p.dim};
  const int64_t per_sample = shape.quads_per_sample(), total = rows.count * per_sample;
  for (int64_t first = 0; first < total; first += kDrawn) {
    const int count = static_cast<int>(total - first < kDrawn ? total - first : kDrawn);
    Place at[kDrawn];
    Quad<float> z[kDrawn];
    for (int i = 0; i < count; ++i) {
      const int64_t m = (first + i) / per_sample, quad = (first + i) % per_sample;
      at[i] = place_at(rows.first + m, quad, shape, false);
    }
    draw_quads(source, at, count, z);
    for (int i = 0; i < count; ++i) {
      const int64_t start = at[i].offset - rows.first * p.dim;
      for (int j = 0; j < at[i].count; ++j) out[start + j] = z[i].value[j];
    }
  }
  repeat_first(out, p.dim, rows.count, p.tile);
}

template <typename Problem>
DF_INLINE void copy_in(float* to, const float* from, const Problem& p, const Rows& rows) {
  memcpy(to, from + rows.first * p.dim, rows.count * p.dim * sizeof(float));
  repeat_first(to, p.dim, rows.count, p.tile);
}

template <typename Problem>
DF_INLINE void copy_out(float* to, const float* from, const Problem& p, const Rows& rows) {
  if (to == nullptr) return;
  memcpy(to + rows.first * p.dim, from, rows.count * p.dim * sizeof(float));
}

DF_INLINE void evaluate_at(const PackedMlp& mlp, int64_t k, int64_t rows, const float* x,
                           const Activations& at, float* out, const TileRoom& room) {
  evaluate(mlp, mlp.embedding + k * mlp.width, 0, rows, x, at, out, room);
}

DF_INLINE void pull_back_at(const PackedMlp& mlp, const MlpSums& sums, int64_t k, int64_t rows,
                            const float* x, const Activations& at, const float* cotangent,
                            float* grad_x, const TileRoom& room) {
  pull_back(mlp, sums, sums.embedding + k * mlp.width, rows, x, at, cotangent, grad_x, room);
}

// --- loss ----------------------------------------------------------------------------------------

/// One tile: forward to the noise, then backward with costs, and with gradients where wanted.
class LossTile {
 public:
  LossTile(const TrajectoryProblem& p, const LossOutputs& outputs, const Shared& shared,
           const Room& room)
      : p_(p), out_(outputs), shared_(shared), room_(room), keep_(outputs.weight && p.keep) {}

  void run(const Rows& rows) {
    rows_ = rows;
    forward();
    copy_out(out_.last, x(p_.num_steps), p_, rows_);
    if (out_.cost == nullptr) return;
    begin_costs();
    for (int64_t k = p_.num_steps; k >= 1; --k) step_back(k);
    for (int64_t m = 0; m < rows.count; ++m) {
      out_.cost[rows.first + m] = static_cast<float>(room_.cost[m]);
    }
    if (out_.weight != nullptr) finish_gradients();
  }

 private:
  int64_t state() const { return p_.tile * p_.dim; }
  float* x(int64_t k) const { return room_.states + k * state(); }
  float* f(int64_t k) const { return room_.drifts + k * state(); }
  Activations drift_at(int64_t k) const {
    return activations_of(room_.drift, shared_.drift, p_.tile, keep_ ? k : 0);
  }

  void forward() {
    copy_in(x(0), out_.x0, p_, rows_);
    memset(room_.noise, 0, state() * sizeof(float));
    for (int64_t k = 0; k <= p_.num_steps; ++k) {
      evaluate_at(shared_.drift, k, p_.tile, x(k), drift_at(k), f(k), room_.inside);
      if (out_.states != nullptr) {
        copy_out(out_.states + k * p_.samples * p_.dim, x(k), p_, rows_);
      }
      if (k == p_.num_steps) break;
      draw(p_, k, rows_, room_.noise);
      const StepScalars<float> at = scalars(p_, k, k);
      for (int64_t i = 0; i < state(); ++i)
        x(k + 1)[i] = em_step(x(k)[i], f(k)[i], room_.noise[i], at);
    }
  }

  void begin_costs() {
    const double log_two_pi = 1.8378770664093453;
    memset(room_.weight, 0, p_.tile * sizeof(float));
    for (int64_t m = 0; m < p_.tile; ++m) {
      if (out_.weight != nullptr && m < rows_.count) room_.weight[m] = out_.weight[rows_.first + m];
      double square = 0;
      for (int64_t j = 0; j < p_.dim; ++j) {
        const float last = x(p_.num_steps)[m * p_.dim + j];
        square += static_cast<double>(last) * last;
        room_.total[m * p_.dim + j] = room_.weight[m] * last;
      }
      room_.cost[m] = 0.5 * square + 0.5 * p_.dim * log_two_pi;
    }
    memset(room_.carry, 0, state() * sizeof(float));
    if (out_.weight != nullptr) {
      memset(room_.sums_begin, 0, shared_.num_sums * sizeof(float));
      memset(room_.grad_g, 0, times_of(p_) * sizeof(double));
    }
  }

  /// State k: the cost of step k, and dL/dx_k in `total` from dL/dx_{k+1}. See adjoint.py.
  void step_back(int64_t k) {
    const StepScalars<float> at = scalars(p_, k - 1, k);
    const Activations score = room_.score;
    evaluate_at(shared_.score, k, p_.tile, x(k), score, room_.value, room_.inside);
    const float dt_next = k < p_.num_steps ? p_.dt[k] : 0.0f;
    if (out_.grad_g != nullptr && k < p_.num_steps) add_noise_part(k);
    double grad_g = 0;
    for (int64_t m = 0; m < p_.tile; ++m) {
      const float c = room_.weight[m], scale = c / (at.g * at.sqrt_dt);
      float cost = 0;
      for (int64_t j = m * p_.dim; j < (m + 1) * p_.dim; ++j) {
        const float s = room_.value[j];
        const float r = backward_residual(x(k - 1)[j], x(k)[j], f(k)[j], s, at);
        cost += 0.5f * r * r;
        const float q = scale * r;
        const AdjointTerms<float> terms =
            adjoint_terms(q, room_.carry[j], room_.total[j], at.dt, dt_next, at.g);
        room_.cotangent_f[j] = terms.cotangent_f, room_.cotangent_s[j] = terms.cotangent_s;
        room_.total[j] = terms.local, room_.carry[j] = q;
        grad_g += c * residual_cost_grad_g(r, s, at);
      }
      room_.cost[m] += cost;
    }
    if (out_.weight == nullptr) return;
    room_.grad_g[k] += grad_g;
    pull_back_at(shared_.score, room_.score_sums, k, p_.tile, x(k), score, room_.cotangent_s,
                 room_.grad_s, room_.inside);
    pull_back_drift(k);
    for (int64_t i = 0; i < state(); ++i) room_.total[i] += room_.grad_f[i] + room_.grad_s[i];
  }

  void pull_back_drift(int64_t k) {
    if (!keep_) {
      evaluate_at(shared_.drift, k, p_.tile, x(k), room_.drift, room_.value, room_.inside);
    }
    pull_back_at(shared_.drift, room_.drift_sums, k, p_.tile, x(k), drift_at(k), room_.cotangent_f,
                 room_.grad_f, room_.inside);
  }

  /// g_k also scales the noise of the step k -> k+1.
  void add_noise_part(int64_t k) {
    draw(p_, k, rows_, room_.noise);
    double sum = 0;
    for (int64_t i = 0; i < rows_.count * p_.dim; ++i) sum += room_.total[i] * room_.noise[i];
    room_.grad_g[k] += square_root(p_.dt[k]) * sum;
  }

  /// State 0 has no residual behind it.
  void finish_gradients() {
    if (out_.grad_g != nullptr) add_noise_part(0);
    for (int64_t i = 0; i < state(); ++i) room_.cotangent_f[i] = p_.dt[0] * room_.total[i];
    pull_back_drift(0);
    for (int64_t i = 0; i < state(); ++i) {
      room_.total[i] += room_.carry[i] + room_.grad_f[i];
    }
    copy_out(out_.grad_x0, room_.total, p_, rows_);
  }

  const TrajectoryProblem& p_;
  const LossOutputs& out_;
  const Shared& shared_;
  const Room& room_;
  const bool keep_;
  Rows rows_{};
};

DF_INLINE void add_block(float* to, const float* from, int64_t count) {
  const int64_t whole = count / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) store(to + i, load(to + i) + load(from + i));
  for (int64_t i = whole; i < count; ++i) to[i] += from[i];
}

DF_INLINE void add_sums(const Shared& to, const Room& from, int64_t times) {
  add_block(to.sums_begin, from.sums_begin, to.num_sums);
  for (int64_t k = 0; k < times; ++k) to.grad_g[k] += from.grad_g[k];
}

template <typename Problem>
DF_INLINE Rows rows_of(const Problem& p, int64_t tile) {
  const int64_t first = tile * p.tile, left = p.samples - first;
  return {first, left < p.tile ? left : p.tile};
}

static void run_loss(const TrajectoryProblem& p, const LossOutputs& outputs) {
  const bool gradients = outputs.weight != nullptr;
  Arena arena(p.scratch);
  const Shared shared = prepare(p, gradients, arena);
  const int64_t tiles = (p.samples + p.tile - 1) / p.tile;
#pragma omp parallel num_threads(p.threads)
  {
    const Room room = room_of(this_thread(), p, shared, arena, gradients);
#pragma omp for ordered schedule(static, 1)
    for (int64_t i = 0; i < tiles; ++i) {
      LossTile(p, outputs, shared, room).run(rows_of(p, i));
#pragma omp ordered
      {
        if (gradients) add_sums(shared, room, times_of(p));
      }
    }
  }
  if (!gradients) return;
  if (outputs.grad_drift.embedding != nullptr) {
    unpack_sums(outputs.grad_drift, shared.drift_sums, shared.drift, p.drift, times_of(p));
    unpack_sums(outputs.grad_score, shared.score_sums, shared.score, p.score, times_of(p));
  }
  if (outputs.grad_g != nullptr) {
    memcpy(outputs.grad_g, shared.grad_g, times_of(p) * sizeof(double));
  }
}

}  // namespace DF_ENGINE
}  // namespace diffflow
