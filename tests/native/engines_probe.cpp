// Every engine of every set of instructions over odd sizes, on buffers of exactly the size that is
// promised, for sanitizers to watch. Prints how many calls were made; linked with fused/cpu/*.cpp.
#include <cstdio>
#include <memory>
#include <vector>

#include "bindings/engines.h"

namespace df = diffflow;

namespace {

struct Case {
  int64_t samples, dim, tile;
  int threads;
  int64_t width, depth;
};

constexpr int64_t kSteps = 3, kTimes = kSteps + 1;

/// Memory that ends where it is said to end, with small numbers in it.
class Heap {
 public:
  template <typename T>
  T* take(int64_t count) {
    std::shared_ptr<T[]> block(new T[static_cast<size_t>(count)]);
    for (int64_t i = 0; i < count; ++i) block[i] = static_cast<T>(0.01 * (i % 37) - 0.15);
    blocks_.push_back(block);
    return block.get();
  }

 private:
  std::vector<std::shared_ptr<void>> blocks_;
};

/// A network, or room for its gradients.
template <typename T>
struct Net {
  df::MlpTensors<T> tensors{};

  Net(Heap& heap, const Case& c, int64_t times) {
    for (int64_t l = 0; l < c.depth; ++l) {
      tensors.hidden[l] = heap.take<float>(c.width * c.width);
      tensors.hidden_bias[l] = heap.take<float>(c.width);
    }
    tensors.embedding = heap.take<float>(times * c.width);
    tensors.input = heap.take<float>(c.width * c.dim);
    tensors.output = heap.take<float>(c.dim * c.width);
    tensors.output_bias = heap.take<float>(c.dim);
    if (c.samples % 2 == 1) tensors.condition = heap.take<float>(c.samples * c.width);
  }
};

df::Mlp described(const Case& c, const Net<const float>& net, df::Activation activation) {
  return {static_cast<int>(c.width), static_cast<int>(c.depth), activation, net.tensors};
}

df::Activation activation_of(const Case& c) { return static_cast<df::Activation>(c.width % 3); }

/// Another network's sizes.
Case narrower(Case c) {
  c.width = c.width / 2 + 1, c.depth = c.depth / 2;
  return c;
}

void paths(const df::Instructions& engine, const Case& c, bool keep, bool gradients,
           bool learned_g) {
  Heap heap;
  const Case other = narrower(c);
  const Net<const float> drift(heap, c, kTimes), score(heap, other, kTimes);
  const Net<float> of_drift(heap, c, kTimes), of_score(heap, other, kTimes);
  df::PathsProblem p{};
  p.samples = c.samples, p.dim = c.dim, p.num_steps = kSteps, p.work.tile = c.tile;
  p.keep_activations = keep, p.work.threads = c.threads, p.noise.seed = 7;
  p.drift = described(c, drift, activation_of(c));
  p.score = described(other, score, activation_of(other));
  std::vector<float> ones(kTimes, 0.5f);
  p.dt = ones.data(), p.g = ones.data();
  p.work.scratch = heap.take<char>(engine.paths_scratch_bytes(p, gradients));
  const int64_t state = c.samples * c.dim;
  p.x0 = heap.take<float>(state), p.cost = heap.take<float>(c.samples);
  if (gradients) {
    p.weight = heap.take<float>(c.samples), p.grad_x0 = heap.take<float>(state);
    p.grad_drift = of_drift.tensors, p.grad_score = of_score.tensors;
    if (learned_g) p.grad_g = heap.take<double>(kTimes);
  } else {
    p.states = heap.take<float>(kTimes * state), p.x_last = heap.take<float>(state);
  }
  engine.run_paths(p);
}

void reverse_paths(const df::Instructions& engine, const Case& c, df::LastStep last_step) {
  Heap heap;
  const Net<const float> drift(heap, c, kTimes), score(heap, c, kTimes);
  df::PathsProblem p{};
  p.samples = c.samples, p.dim = c.dim, p.num_steps = kSteps, p.work.tile = c.tile;
  p.work.threads = c.threads;
  p.drift = described(c, drift, activation_of(c)), p.score = p.drift;
  p.score.weights = score.tensors;
  std::vector<float> ones(kTimes, 0.5f);
  p.dt = ones.data(), p.g = ones.data();
  p.work.scratch = heap.take<char>(engine.paths_scratch_bytes(p, false));
  const int64_t state = c.samples * c.dim;
  p.x_last = heap.take<float>(state), p.x0 = heap.take<float>(state);
  p.states = heap.take<float>(kTimes * state);
  p.stochasticity = 1.0f, p.last_step = last_step;
  engine.run_reverse_paths(p);
}

void regression(const df::Instructions& engine, const Case& c, bool gradients) {
  Heap heap;
  const int64_t state = c.samples * c.dim;
  const Net<const float> net(heap, c, kTimes);
  const Net<float> grads(heap, c, kTimes);
  df::RegressionProblem p{};
  p.samples = c.samples, p.dim = c.dim, p.times = kTimes, p.work.tile = c.tile,
  p.work.threads = c.threads;
  p.mlp = described(c, net, activation_of(c));
  int64_t* time_of = heap.take<int64_t>(c.samples);
  for (int64_t i = 0; i < c.samples; ++i) time_of[i] = i % kTimes;
  p.time_of = time_of, p.x = heap.take<float>(state), p.target = heap.take<float>(state);
  p.cost = heap.take<float>(c.samples);
  if (gradients) {
    p.weight = heap.take<float>(c.samples), p.grad_x = heap.take<float>(state);
    p.grads = grads.tensors;
  }
  p.work.scratch = heap.take<char>(engine.regression_scratch_bytes(p, gradients));
  engine.run_regression(p);
}

void ode(const df::Instructions& engine, const Case& c, int num_nets, int64_t probes,
         bool divergence) {
  constexpr int64_t kStages = 2;
  Heap heap;
  const Case other = narrower(c);
  const Net<const float> first(heap, c, kTimes), second(heap, other, kTimes);
  const int64_t state = c.samples * c.dim;
  df::OdeProblem p{};
  p.samples = c.samples, p.dim = c.dim, p.num_steps = kSteps, p.num_stages = kStages;
  p.times = kTimes, p.num_nets = num_nets, p.work.tile = c.tile, p.work.threads = c.threads;
  p.nets[0] = described(c, first, activation_of(c));
  if (num_nets == 2) p.nets[1] = described(other, second, activation_of(other));
  int64_t* time_of = heap.take<int64_t>(kSteps * kStages);
  for (int64_t i = 0; i < kSteps * kStages; ++i) time_of[i] = (i + 1) / kStages;
  p.time_of = time_of, p.lengths = heap.take<double>(kSteps * kStages * 2);
  p.coefficients = heap.take<double>(kTimes * 3), p.probes = probes;
  p.start = heap.take<float>(state), p.end = heap.take<float>(state);
  p.states = heap.take<float>(kTimes * state), p.states_stride = state;
  if (probes == 0) p.states += kSteps * state, p.states_stride = -state;
  if (divergence) p.change = heap.take<double>(c.samples);
  p.work.scratch = heap.take<char>(engine.ode_scratch_bytes(p));
  engine.run_ode(p);
}

void embedding(const df::Instructions& engine, const Case& c, bool keep) {
  Heap heap;
  const int64_t width = c.width, lanes = 32;
  df::EmbeddingProblem p{};
  p.samples = c.samples, p.width = width, p.work.tile = c.tile, p.work.threads = c.threads;
  // Angles on both sides of the largest that is taken by vectors.
  p.scale = keep ? 1.0f : 1e6f, p.activation = activation_of(c);
  p.times = heap.take<float>(c.samples), p.frequencies = heap.take<float>(width);
  p.weights = {heap.take<float>(width), heap.take<float>(2 * width * width),
               heap.take<float>(width), heap.take<float>(width * width), heap.take<float>(width)};
  const int64_t rows = (c.samples + c.tile - 1) / c.tile * c.tile;
  if (keep) p.activations = heap.take<float>(4 * rows * ((width + lanes - 1) / lanes * lanes));
  p.embeddings = heap.take<float>(c.samples * width);
  p.work.scratch = heap.take<char>(engine.embedding_scratch_bytes(p));
  engine.run_embedding(p);
  if (!keep) return;
  p.grad = p.embeddings, p.embeddings = nullptr;
  p.grads = {heap.take<float>(width), heap.take<float>(2 * width * width), heap.take<float>(width),
             heap.take<float>(width * width), heap.take<float>(width)};
  engine.run_embedding(p);
}

int all(const df::Instructions& engine, const Case& c) {
  for (const bool keep : {false, true}) {
    paths(engine, c, keep, false, false);
    for (const bool learned_g : {false, true}) paths(engine, c, keep, true, learned_g);
  }
  for (const int last : {0, 1, 2}) reverse_paths(engine, c, static_cast<df::LastStep>(last));
  for (const bool gradients : {false, true}) regression(engine, c, gradients);
  for (const int num_nets : {1, 2}) {
    ode(engine, c, num_nets, 0, false);
    for (const int64_t probes : {0, 1, 3}) ode(engine, c, num_nets, probes, true);
  }
  for (const bool keep : {false, true}) embedding(engine, c, keep);
  return 22;
}

}  // namespace

int main() {
  const Case cases[] = {{1, 1, 8, 1, 1, 0},    {13, 3, 8, 2, 31, 2},   {8, 8, 8, 1, 33, 1},
                        {17, 9, 16, 2, 65, 1}, {25, 70, 24, 3, 20, 3}, {3, 5, 40, 1, 97, 2}};
  int calls = 0;
  for (const df::Instructions* engine : df::instructions()) {
    for (const Case& c : cases) calls += all(*engine, c);
  }
  std::printf("%d calls\n", calls);
}
