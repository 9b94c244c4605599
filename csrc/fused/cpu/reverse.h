// Tiles of samples through all steps of the reverse SDE.
#pragma once

#include "paths.h"

namespace diffflow {
namespace DF_NAMESPACE {

/// One tile from the noise to the data; x is scratch.states, the drift's value scratch.drifts.
static void reverse_tile(const PathsProblem& p, const Shared& shared, const Scratch& scratch,
                         const Rows& rows) {
  const int64_t state = p.work.tile * p.dim;
  float* x = scratch.states;
  copy_in(x, p.x_last, p, rows);
  begin_conditions(p, shared, scratch, rows);
  const auto score = [&](int64_t k) {
    evaluate_at(shared.score, scratch.score_condition, k, p.work.tile, x, scratch.score,
                scratch.value, scratch.inside);
  };
  memset(scratch.noise, 0, state * sizeof(float));
  const auto keep = [&](int64_t k) {
    if (p.states != nullptr) copy_out(p.states + k * p.samples * p.dim, x, p, rows);
  };
  keep(p.num_steps);
  for (int64_t i = p.num_steps - 1; i >= 0; --i) {
    const StepScalars<float> at = scalars(p, i, i + 1);
    evaluate_at(shared.drift, scratch.drift_condition, i + 1, p.work.tile, x, scratch.drift,
                scratch.drifts, scratch.inside);
    score(i + 1);
    const bool mean = i == 0 && p.last_step == LastStep::kMean;
    const float strength = p.stochasticity;
    if (strength != 0.0f && !mean) draw(p, i, rows, scratch.noise);
    for (int64_t j = 0; j < state; ++j) {
      const float eps = mean ? 0.0f : scratch.noise[j];
      x[j] = reverse_step(x[j], scratch.drifts[j], scratch.value[j], eps, strength, at);
    }
    if (i == 0 && p.last_step == LastStep::kTweedie) {
      score(1);
      const float variance = strength * strength * at.g * at.g * at.dt;
      for (int64_t j = 0; j < state; ++j) x[j] = x[j] + variance * scratch.value[j];
    }
    keep(i);
  }
  copy_out(p.x0, x, p, rows);
}

static void run_reverse_paths(const PathsProblem& p) {
  Arena arena(p.work.scratch);
  const Shared shared = prepare(p, false, arena);
  for_tiles(
      p, arena, [&](Arena& own) { return carve_scratch(own, p, shared, false); },
      [&](const Scratch& scratch, const Rows& rows) { reverse_tile(p, shared, scratch, rows); });
}

}  // namespace DF_NAMESPACE
}  // namespace diffflow
