// Tiles of samples along an ordinary differential equation of perceptrons, with its divergence.
//
// Divergences are computed in forward mode: J e is propagated through the layers together with the
// values, whose slopes it uses. Directions e follow one another, each for the whole tile.
#pragma once

#include "condition.h"

namespace diffflow {
namespace DF_NAMESPACE {

struct OdeShared {
  PackedMlp nets[2];
};

struct OdeScratch {
  Activations at[2];
  Condition conditions[2];
  TileScratch inside;
  float *x, *y, *z, *velocity, *value;  ///< (tile, dim)
  float *direction, *product;           ///< (tile, dim), e and J e
  double *rate, *change;                ///< (tile), div v and its integral
};

DF_INLINE OdeShared carve_ode(Arena& arena, const OdeProblem& p) {
  OdeShared out;
  for (int n = 0; n < p.num_nets; ++n) {
    out.nets[n] = carve_weights(arena, p.nets[n], p.dim, p.times);
  }
  return out;
}

DF_INLINE OdeScratch carve_ode_scratch(Arena& arena, const OdeProblem& p, const OdeShared& shared) {
  OdeScratch out;
  int64_t width = 0;
  for (int n = 0; n < p.num_nets; ++n) {
    out.at[n] = carve_activations(arena, shared.nets[n], p.work.tile, 1);
    out.conditions[n] = carve_condition(arena, p.nets[n], shared.nets[n], p.work.tile, false);
    width = larger(width, shared.nets[n].width);
  }
  out.inside = carve_tile_scratch(arena, p.work.tile, width, shared.nets[0].outer);
  float** const parts[] = {&out.x,     &out.y,         &out.z,      &out.velocity,
                           &out.value, &out.direction, &out.product};
  for (float** part : parts) *part = arena.take<float>(p.work.tile * p.dim);
  out.rate = arena.take<double>(p.work.tile);
  out.change = arena.take<double>(p.work.tile);
  return out;
}

static int64_t ode_scratch_bytes(const OdeProblem& p) {
  return bytes_of(
      p.work, [&](Arena& arena) { return carve_ode(arena, p); },
      [&](Arena& arena, const OdeShared& shared) { carve_ode_scratch(arena, p, shared); });
}

/// Propagates scratch.delta, the tangent after the first layer, to the last one.
static void carry_tangent(const PackedMlp& mlp, int64_t rows, const Activations& at,
                          const TileScratch& scratch) {
  const int64_t width = mlp.width, layer = rows * width;
  for (int64_t l = 0; l < mlp.depth; ++l) {
    square_product(rows, width, scratch.sums, factor_of(scratch, rows, width).rows, mlp.forward[l]);
    multiply(scratch.delta, scratch.sums, at.slope + (l + 1) * layer, layer);
  }
}

DF_INLINE float dot(const float* a, const float* b, int64_t count) {
  Vec total = splat(0.0f);
  for (int64_t i = 0; i < count; i += kLanes) total = fma(load(a + i), load(b + i), total);
  return sum(total);
}

/// rate (rows) += scale trace J, one direction for each component.
static void add_trace(const PackedMlp& mlp, int64_t rows, const Activations& at, double scale,
                      double* rate, const TileScratch& scratch) {
  const int64_t width = mlp.width;
  for (int64_t k = 0; k < mlp.dim; ++k) {
    for (int64_t m = 0; m < rows; ++m) {
      multiply(scratch.delta + m * width, mlp.input + k * width, at.slope + m * width, width);
    }
    carry_tangent(mlp, rows, at, scratch);
    for (int64_t m = 0; m < rows; ++m) {
      rate[m] += scale * dot(scratch.delta + m * width, mlp.output + k * width, width);
    }
  }
}

/// rate (rows) += scale e . J e for one direction e (rows, dim) of each sample.
static void add_product(const PackedMlp& mlp, int64_t rows, const Activations& at,
                        const float* direction, double scale, double* rate, float* product_scratch,
                        const TileScratch& scratch) {
  const int64_t width = mlp.width, dim = mlp.dim;
  product<false>(rows, width, dim, scratch.sums, width, Left<float>{direction, dim, 1}, mlp.input,
                 width, kPanel);
  multiply(scratch.delta, scratch.sums, at.slope, rows * width);
  carry_tangent(mlp, rows, at, scratch);
  to_state(mlp, rows, scratch.delta, mlp.output, mlp.output_panels, nullptr, product_scratch,
           scratch.sums);
  for (int64_t m = 0; m < rows; ++m) {
    double total = 0;
    for (int64_t j = m * dim; j < (m + 1) * dim; ++j) {
      total += static_cast<double>(direction[j]) * product_scratch[j];
    }
    rate[m] += scale * total;
  }
}

/// One tile from one end of the equation to the other.
class OdeTile {
 public:
  OdeTile(const OdeProblem& p, const OdeShared& shared, const OdeScratch& scratch)
      : p_(p), shared_(shared), room_(scratch) {}

  void run(const Rows& rows) {
    rows_ = rows;
    copy_in(room_.x, p_.start, p_, rows);
    memset(room_.change, 0, p_.work.tile * sizeof(double));
    for (int n = 0; n < p_.num_nets; ++n) {
      begin(room_.conditions[n], p_.nets[n], shared_.nets[n], rows, p_.work.tile);
    }
    keep(0);
    for (int64_t i = 0; i < p_.num_steps; ++i) {
      memcpy(room_.y, room_.x, state() * sizeof(float));
      memcpy(room_.z, room_.x, state() * sizeof(float));
      for (int64_t j = 0; j < p_.num_stages; ++j) stage(i, j);
      memcpy(room_.x, room_.y, state() * sizeof(float));
      keep(i + 1);
    }
    copy_out(p_.end, room_.x, p_, rows);
    if (p_.change == nullptr) return;
    memcpy(p_.change + rows.first, room_.change, rows.count * sizeof(double));
  }

 private:
  int64_t state() const { return p_.work.tile * p_.dim; }

  void keep(int64_t k) {
    if (p_.states != nullptr) copy_out(p_.states + k * p_.states_stride, room_.x, p_, rows_);
  }

  /// Evaluates v at z, adds its part of the step to y, and moves z to the next stage.
  void stage(int64_t step, int64_t j) {
    const int64_t at = step * p_.num_stages + j, time = p_.time_of[at];
    const double *c = p_.coefficients + 3 * time, *length = p_.lengths + 2 * at;
    for (int64_t i = 0; i < state(); ++i) {
      room_.velocity[i] = static_cast<float>(c[0]) * room_.z[i];
    }
    for (int n = 0; n < p_.num_nets; ++n) {
      evaluate_at(shared_.nets[n], room_.conditions[n], time, p_.work.tile, room_.z, room_.at[n],
                  room_.value, room_.inside);
      const float factor = static_cast<float>(c[n + 1]);
      for (int64_t i = 0; i < state(); ++i) room_.velocity[i] += factor * room_.value[i];
    }
    if (p_.change != nullptr) add_divergence(step, c, length[0]);
    const float whole = static_cast<float>(length[0]), ahead = static_cast<float>(length[1]);
    for (int64_t i = 0; i < state(); ++i) {
      room_.y[i] += whole * room_.velocity[i];
      room_.z[i] = room_.x[i] + ahead * room_.velocity[i];
    }
  }

  void add_divergence(int64_t step, const double* c, double length) {
    for (int64_t m = 0; m < p_.work.tile; ++m) room_.rate[m] = c[0] * p_.dim;
    if (p_.probes == 0) {
      for (int n = 0; n < p_.num_nets; ++n) {
        add_trace(shared_.nets[n], p_.work.tile, room_.at[n], c[n + 1], room_.rate, room_.inside);
      }
    }
    for (int64_t i = 0; i < p_.probes; ++i) {
      draw_signs(step * p_.probes + i);
      for (int n = 0; n < p_.num_nets; ++n) {
        add_product(shared_.nets[n], p_.work.tile, room_.at[n], room_.direction,
                    c[n + 1] / p_.probes, room_.rate, room_.product, room_.inside);
      }
    }
    for (int64_t m = 0; m < p_.work.tile; ++m) room_.change[m] += length * room_.rate[m];
  }

  /// Random signs, the directions of least variance among those with independent entries.
  void draw_signs(int64_t step) {
    draw(p_, step, rows_, room_.direction);
    for (int64_t i = 0; i < state(); ++i) {
      room_.direction[i] = room_.direction[i] < 0.0f ? -1.0f : 1.0f;
    }
  }

  const OdeProblem& p_;
  const OdeShared& shared_;
  const OdeScratch& room_;
  Rows rows_{};
};

static void run_ode(const OdeProblem& p) {
  Arena arena(p.work.scratch);
  const OdeShared shared = carve_ode(arena, p);
  for (int n = 0; n < p.num_nets; ++n) pack_weights(shared.nets[n], p.nets[n], p.times);
  for_tiles(
      p, arena, [&](Arena& own) { return carve_ode_scratch(own, p, shared); },
      [&](const OdeScratch& scratch, const Rows& rows) { OdeTile(p, shared, scratch).run(rows); });
}

}  // namespace DF_NAMESPACE
}  // namespace diffflow
