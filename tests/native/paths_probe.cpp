// Runs the four kernels of fused/gpu/paths.cu on a small problem, every buffer an allocation of
// its own that ends where it must: `paths_probe SCHEDULE ROUNDING LEARNED STREAMED` prints sums of
// all results, or "error: TEXT". Built from changed sources and under sanitizers by
// tests/native/test_paths_host.py.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <vector>

#include "fused/gpu/paths.cu"

namespace gpu = diffflow::gpu;

namespace {

/// Numbers in (-size, size), or NaN where a kernel is to write.
class Floats {
 public:
  Floats(size_t count, float size, unsigned seed) : Floats(count) {
    for (size_t i = 0; i < count; ++i) {
      const uint32_t hash = (static_cast<uint32_t>(i) + 17 * seed + 1) * 2654435761u;
      data_[i] = size * (static_cast<float>(hash >> 16) / 32768.0f - 1.0f);
    }
  }
  explicit Floats(size_t count) : count_(count), data_(new float[count]) {
    for (size_t i = 0; i < count; ++i) data_[i] = NAN;
  }
  float* get() { return data_.get(); }
  float at(size_t i) const { return data_[i]; }
  double sum() const {
    double total = 0;
    for (size_t i = 0; i < count_; ++i) total += data_[i] * (1.0 + static_cast<double>(i % 7));
    return total;
  }

 private:
  size_t count_;
  std::unique_ptr<float[]> data_;
};

struct Network {
  int width, depth, dim, times;
  std::vector<std::unique_ptr<Floats>> parts;

  const float* part(size_t count, float size) {
    parts.push_back(std::make_unique<Floats>(count, size, parts.size() + 31 * width));
    return parts.back()->get();
  }
  diffflow::Mlp mlp(diffflow::Activation activation) {
    diffflow::Mlp out{};
    out.width = width, out.depth = depth, out.activation = activation;
    auto& weights = out.weights;
    weights.embedding = part(times * width, 1.0f), weights.input = part(width * dim, 1.0f);
    weights.output = part(dim * width, 0.3f), weights.output_bias = part(dim, 0.5f);
    for (int l = 0; l < depth; ++l) {
      weights.hidden[l] = part(width * width, 0.3f), weights.hidden_bias[l] = part(width, 0.5f);
    }
    return out;
  }
};

void run(gpu::Products products, bool learned, bool streamed) {
  constexpr int kSamples = 19, kDim = 5, kSteps = 3;
  constexpr size_t kState = kSamples * kDim;
  Network drift{33, 2, kDim, kSteps + 1, {}}, score{20, 1, kDim, kSteps + 1, {}};
  if (streamed) {
    const size_t of_drift = gpu::shared_bytes(drift.width, drift.depth, kDim, products);
    const size_t of_score = gpu::shared_bytes(score.width, score.depth, kDim, products);
    emu::set_opt_in_shared_bytes(std::max(of_drift, of_score));
  }
  const size_t words = products == gpu::Products::kBfloat16 ? 2 : 1;
  const size_t drift_trace = 3 * (kSteps + 1) * kSamples * 48 / words;
  const size_t score_trace = 2 * kSteps * kSamples * 32 / words;
  Floats dt(kSteps, 0.0f, 1), g(kSteps + 1, 0.0f, 2), x0(kState, 1.0f, 3);
  for (int i = 0; i < kSteps; ++i) dt.get()[i] = 0.1f + 0.05f * i;
  for (int i = 0; i <= kSteps; ++i) g.get()[i] = 1.0f - 0.1f * i;
  Floats weight(kSamples, 1.0f, 4);
  Floats states((kSteps + 1) * kState), drifts((kSteps + 1) * kState), residuals(kSteps * kState);
  Floats costs(kSteps * kSamples), f_values(drift_trace), f_slopes(drift_trace);
  Floats s_values(score_trace), s_slopes(score_trace), cot_f((kSteps + 1) * kState);
  Floats f_sums(3 * (kSteps + 1) * 2 * 48), s_sums(2 * kSteps * 2 * 32);
  Floats cot_s(kSteps * kState), grad_s(kSteps * kState), grad_x0(kState);
  Floats grad_g((kSteps + 1) * kSamples);
  gpu::PathsProblem p{};
  p.samples = kSamples, p.dim = kDim, p.num_steps = kSteps;
  p.drift = drift.mlp(diffflow::Activation::kGelu);
  p.score = score.mlp(diffflow::Activation::kSilu);
  p.dt = dt.get(), p.g = g.get(), p.noise = {7, 1, 1, 0, 5, nullptr};
  p.x0 = x0.get(), p.states = states.get(), p.drifts = drifts.get();
  p.residuals = residuals.get(), p.costs = costs.get();
  p.drift_trace = {f_values.get(), f_slopes.get(), f_sums.get()};
  p.score_trace = {s_values.get(), s_slopes.get(), s_sums.get()};
  p.weight = weight.get(), p.cotangents_f = cot_f.get(), p.cotangents_s = cot_s.get();
  p.grad_scores = grad_s.get(), p.grad_x0 = grad_x0.get();
  p.grad_g = learned ? grad_g.get() : nullptr;
  for (int phase = 0; phase < 4; ++phase) {
    gpu::run(static_cast<gpu::Phase>(phase), products, p, 0, nullptr);
  }
  for (const Floats* part : {&states, &drifts, &residuals, &costs, &cot_f, &cot_s, &grad_s,
                             &grad_x0, &f_sums, &s_sums}) {
    std::printf("%a ", part->sum());
  }
  if (products != gpu::Products::kBfloat16) {
    for (const Floats* part : {&f_values, &f_slopes, &s_values, &s_slopes}) {
      std::printf("%a ", part->sum());
    }
  }
  if (learned) std::printf("%a", grad_g.sum());
  std::printf("\n");
}

}  // namespace

int main(int, char** words) {
  try {
    emu::set_schedule(std::atoi(words[1]));
    run(static_cast<gpu::Products>(std::atoi(words[2])), words[3][0] == '1', words[4][0] == '1');
  } catch (const std::exception& error) {
    std::printf("error: %s\n", error.what());
  }
  return 0;
}
