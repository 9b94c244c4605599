// Tiles of samples through all steps of the reverse SDE.
#pragma once

#include "paths.h"

namespace diffflow {
namespace DF_ENGINE {

/// One tile from the noise to the data; x is room.states, the drift's value room.drifts.
static void sample_tile(const TrajectoryProblem& p, const SampleOutputs& out, const Shared& shared,
                        const Room& room, const Rows& rows) {
  const int64_t state = p.tile * p.dim;
  float* x = room.states;
  copy_in(x, out.last, p, rows);
  memset(room.noise, 0, state * sizeof(float));
  const auto keep = [&](int64_t k) {
    if (out.states != nullptr) copy_out(out.states + k * p.samples * p.dim, x, p, rows);
  };
  keep(p.num_steps);
  for (int64_t i = p.num_steps - 1; i >= 0; --i) {
    const StepScalars<float> at = scalars(p, i, i + 1);
    evaluate_at(shared.drift, i + 1, p.tile, x, room.drift, room.drifts, room.inside);
    evaluate_at(shared.score, i + 1, p.tile, x, room.score, room.value, room.inside);
    const bool mean = i == 0 && out.last_step == LastStep::kMean;
    const float strength = out.stochasticity;
    if (strength != 0.0f && !mean) draw(p, i, rows, room.noise);
    for (int64_t j = 0; j < state; ++j) {
      const float eps = mean ? 0.0f : room.noise[j];
      x[j] = reverse_step(x[j], room.drifts[j], room.value[j], eps, strength, at);
    }
    if (i == 0 && out.last_step == LastStep::kTweedie) {
      evaluate_at(shared.score, 1, p.tile, x, room.score, room.value, room.inside);
      const float variance = strength * strength * at.g * at.g * at.dt;
      for (int64_t j = 0; j < state; ++j) x[j] = x[j] + variance * room.value[j];
    }
    keep(i);
  }
  copy_out(out.first, x, p, rows);
}

static void run_sample(const TrajectoryProblem& p, const SampleOutputs& outputs) {
  Arena arena(p.scratch);
  const Shared shared = prepare(p, false, arena);
  const int64_t tiles = (p.samples + p.tile - 1) / p.tile;
#pragma omp parallel num_threads(p.threads)
  {
    const Room room = room_of(this_thread(), p, shared, arena, false);
#pragma omp for schedule(static, 1)
    for (int64_t i = 0; i < tiles; ++i) sample_tile(p, outputs, shared, room, rows_of(p, i));
  }
}

}  // namespace DF_ENGINE
}  // namespace diffflow
