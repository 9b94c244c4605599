// Tiles of samples through all steps of the SDE pair, forward and backward, in one thread each.
#pragma once

#include "../../math/sde_step.h"
#include "condition.h"

namespace diffflow {
namespace DF_NAMESPACE {

/// Data that all threads read, and sums to which they add in the order of the tiles.
struct Shared {
  PackedMlp drift, score;
  MlpSums drift_sums, score_sums;
  double* grad_g;
  float* sums_begin;  ///< all sums lie between here and the end
  int64_t num_sums;
};

/// Memory that one thread writes.
struct Scratch {
  Activations drift, score;
  Condition drift_condition, score_condition;
  TileScratch inside;
  float *states, *drifts;  ///< (num_steps + 1, tile, dim)
  float *noise, *value, *cotangent_f, *cotangent_s, *grad_f, *grad_s, *total, *carry;
  float* weight;  ///< (tile)
  double* cost;   ///< (tile)
  MlpSums drift_sums, score_sums;
  double* grad_g;
  float* sums_begin;
};

DF_INLINE int64_t times_of(const PathsProblem& p) { return p.num_steps + 1; }

DF_INLINE void carve_all_sums(Arena& arena, const PathsProblem& p, const Shared& shared,
                              MlpSums* drift, MlpSums* score, double** grad_g, float** begin,
                              int64_t* count) {
  *begin = arena.take_part<float>(0);
  *drift = carve_sums(arena, shared.drift, times_of(p));
  *score = carve_sums(arena, shared.score, times_of(p));
  *count = (arena.next() - reinterpret_cast<uintptr_t>(*begin)) / sizeof(float);
  arena.wall();
  *grad_g = arena.take<double>(times_of(p));
}

DF_INLINE Shared carve_shared(Arena& arena, const PathsProblem& p, bool gradients) {
  Shared out;
  out.drift = carve_weights(arena, p.drift, p.dim, times_of(p));
  out.score = carve_weights(arena, p.score, p.dim, times_of(p));
  if (gradients) {
    carve_all_sums(arena, p, out, &out.drift_sums, &out.score_sums, &out.grad_g, &out.sums_begin,
                   &out.num_sums);
  }
  return out;
}

DF_INLINE Scratch carve_scratch(Arena& arena, const PathsProblem& p, const Shared& shared,
                                bool gradients) {
  const int64_t state = p.work.tile * p.dim;
  Scratch out;
  out.drift = carve_activations(arena, shared.drift, p.work.tile,
                                gradients && p.keep_activations ? times_of(p) : 1);
  out.score = carve_activations(arena, shared.score, p.work.tile, 1);
  out.drift_condition = carve_condition(arena, p.drift, shared.drift, p.work.tile, gradients);
  out.score_condition = carve_condition(arena, p.score, shared.score, p.work.tile, gradients);
  const int64_t width = larger(shared.drift.width, shared.score.width);
  out.inside = carve_tile_scratch(arena, p.work.tile, width, shared.drift.outer);
  out.states = arena.take<float>(times_of(p) * state);
  out.drifts = arena.take<float>(times_of(p) * state);
  float** const parts[] = {&out.noise,  &out.value,  &out.cotangent_f, &out.cotangent_s,
                           &out.grad_f, &out.grad_s, &out.total,       &out.carry};
  for (float** part : parts) *part = arena.take<float>(state);
  out.weight = arena.take<float>(p.work.tile);
  out.cost = arena.take<double>(p.work.tile);
  if (gradients) {
    int64_t count;
    carve_all_sums(arena, p, shared, &out.drift_sums, &out.score_sums, &out.grad_g, &out.sums_begin,
                   &count);
  }
  return out;
}

static int64_t paths_scratch_bytes(const PathsProblem& p, bool gradients) {
  return bytes_of(
      p.work, [&](Arena& arena) { return carve_shared(arena, p, gradients); },
      [&](Arena& arena, const Shared& shared) { carve_scratch(arena, p, shared, gradients); });
}

/// Divides the scratch memory of a call and packs the weights.
DF_INLINE Shared prepare(const PathsProblem& p, bool gradients, Arena& arena) {
  const Shared shared = carve_shared(arena, p, gradients);
  pack_weights(shared.drift, p.drift, times_of(p));
  pack_weights(shared.score, p.score, times_of(p));
  if (gradients) {
    memset(shared.sums_begin, 0, shared.num_sums * sizeof(float));
    memset(shared.grad_g, 0, times_of(p) * sizeof(double));
  }
  return shared;
}

DF_INLINE StepScalars<float> scalars(const PathsProblem& p, int64_t step, int64_t g_at) {
  return {p.dt[step], square_root(p.dt[step]), p.g[g_at]};
}

DF_INLINE void begin_conditions(const PathsProblem& p, const Shared& shared, const Scratch& scratch,
                                const Rows& rows) {
  begin(scratch.drift_condition, p.drift, shared.drift, rows, p.work.tile);
  begin(scratch.score_condition, p.score, shared.score, rows, p.work.tile);
}

// --- loss ----------------------------------------------------------------------------------------

/// One tile: forward to the noise, then backward with costs and, if wanted, gradients.
class LossTile {
 public:
  LossTile(const PathsProblem& p, const Shared& shared, const Scratch& scratch)
      : p_(p), shared_(shared), room_(scratch), keep_(p.weight && p.keep_activations) {}

  void run(const Rows& rows) {
    rows_ = rows;
    forward();
    copy_out(p_.x_last, x(p_.num_steps), p_, rows_);
    if (p_.cost == nullptr) return;
    begin_costs();
    for (int64_t k = p_.num_steps; k >= 1; --k) step_back(k);
    for (int64_t m = 0; m < rows.count; ++m) {
      p_.cost[rows.first + m] = static_cast<float>(room_.cost[m]);
    }
    if (p_.weight != nullptr) finish_gradients();
  }

 private:
  int64_t state() const { return p_.work.tile * p_.dim; }
  float* x(int64_t k) const { return room_.states + k * state(); }
  float* f(int64_t k) const { return room_.drifts + k * state(); }
  Activations drift_at(int64_t k) const {
    return activations_of(room_.drift, shared_.drift, p_.work.tile, keep_ ? k : 0);
  }

  void forward() {
    copy_in(x(0), p_.x0, p_, rows_);
    begin_conditions(p_, shared_, room_, rows_);
    memset(room_.noise, 0, state() * sizeof(float));
    for (int64_t k = 0; k <= p_.num_steps; ++k) {
      evaluate_at(shared_.drift, room_.drift_condition, k, p_.work.tile, x(k), drift_at(k), f(k),
                  room_.inside);
      if (p_.states != nullptr) {
        copy_out(p_.states + k * p_.samples * p_.dim, x(k), p_, rows_);
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
    memset(room_.weight, 0, p_.work.tile * sizeof(float));
    for (int64_t m = 0; m < p_.work.tile; ++m) {
      if (p_.weight != nullptr && m < rows_.count) room_.weight[m] = p_.weight[rows_.first + m];
      double square = 0;
      for (int64_t j = 0; j < p_.dim; ++j) {
        const float last = x(p_.num_steps)[m * p_.dim + j];
        square += static_cast<double>(last) * last;
        room_.total[m * p_.dim + j] = room_.weight[m] * last;
      }
      room_.cost[m] = 0.5 * square + 0.5 * p_.dim * log_two_pi;
    }
    memset(room_.carry, 0, state() * sizeof(float));
    if (p_.weight != nullptr) {
      memset(room_.sums_begin, 0, shared_.num_sums * sizeof(float));
      memset(room_.grad_g, 0, times_of(p_) * sizeof(double));
    }
  }

  /// State k: the cost of step k, and dL/dx_k in `total` from dL/dx_{k+1}, as ops/adjoint.h has it.
  void step_back(int64_t k) {
    const StepScalars<float> at = scalars(p_, k - 1, k);
    const Activations score = room_.score;
    evaluate_at(shared_.score, room_.score_condition, k, p_.work.tile, x(k), score, room_.value,
                room_.inside);
    const float dt_next = k < p_.num_steps ? p_.dt[k] : 0.0f;
    if (p_.grad_g != nullptr && k < p_.num_steps) add_noise_part(k);
    double grad_g = 0;
    for (int64_t m = 0; m < p_.work.tile; ++m) {
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
    if (p_.weight == nullptr) return;
    room_.grad_g[k] += grad_g;
    pull_back_at(shared_.score, room_.score_condition, room_.score_sums, k, p_.work.tile, x(k),
                 score, room_.cotangent_s, room_.grad_s, room_.inside);
    pull_back_drift(k);
    for (int64_t i = 0; i < state(); ++i) room_.total[i] += room_.grad_f[i] + room_.grad_s[i];
  }

  void pull_back_drift(int64_t k) {
    if (!keep_) {
      evaluate_at(shared_.drift, room_.drift_condition, k, p_.work.tile, x(k), room_.drift,
                  room_.value, room_.inside);
    }
    pull_back_at(shared_.drift, room_.drift_condition, room_.drift_sums, k, p_.work.tile, x(k),
                 drift_at(k), room_.cotangent_f, room_.grad_f, room_.inside);
  }

  /// g_k also scales the noise of the step k -> k+1.
  void add_noise_part(int64_t k) {
    draw(p_, k, rows_, room_.noise);
    double sum = 0;
    for (int64_t i = 0; i < rows_.count * p_.dim; ++i) sum += room_.total[i] * room_.noise[i];
    room_.grad_g[k] += square_root(p_.dt[k]) * sum;
  }

  /// State 0 has no residual.
  void finish_gradients() {
    if (p_.grad_g != nullptr) add_noise_part(0);
    for (int64_t i = 0; i < state(); ++i) room_.cotangent_f[i] = p_.dt[0] * room_.total[i];
    pull_back_drift(0);
    for (int64_t i = 0; i < state(); ++i) {
      room_.total[i] += room_.carry[i] + room_.grad_f[i];
    }
    copy_out(p_.grad_x0, room_.total, p_, rows_);
    finish(p_.grad_drift, room_.drift_condition, p_.drift, shared_.drift, rows_);
    finish(p_.grad_score, room_.score_condition, p_.score, shared_.score, rows_);
  }

  const PathsProblem& p_;
  const Shared& shared_;
  const Scratch& room_;
  const bool keep_;
  Rows rows_{};
};

DF_INLINE void add_sums(const Shared& to, const Scratch& from, int64_t times) {
  add_block(to.sums_begin, from.sums_begin, to.num_sums);
  for (int64_t k = 0; k < times; ++k) to.grad_g[k] += from.grad_g[k];
}

static void run_paths(const PathsProblem& p) {
  const bool gradients = p.weight != nullptr;
  Arena arena(p.work.scratch);
  const Shared shared = prepare(p, gradients, arena);
  for_tiles(
      p, arena, [&](Arena& own) { return carve_scratch(own, p, shared, gradients); },
      [&](const Scratch& scratch, const Rows& rows) { LossTile(p, shared, scratch).run(rows); },
      [&](const Scratch& scratch, const Rows&) {
        if (gradients) add_sums(shared, scratch, times_of(p));
      });
  if (!gradients) return;
  if (p.grad_drift.embedding != nullptr) {
    unpack_sums(p.grad_drift, shared.drift_sums, shared.drift, p.drift, times_of(p));
    unpack_sums(p.grad_score, shared.score_sums, shared.score, p.score, times_of(p));
  }
  if (p.grad_g != nullptr) memcpy(p.grad_g, shared.grad_g, times_of(p) * sizeof(double));
}

}  // namespace DF_NAMESPACE
}  // namespace diffflow
