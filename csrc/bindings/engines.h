// From what Python sends to an engine that carries tiles of samples through all steps.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../fused/problem.h"
#include "launch.h"

namespace diffflow {

/// Engines of this build that the processor can run, the fastest first.
inline std::vector<const Engine*> engines() {
  std::vector<const Engine*> out;
#ifdef DIFFFLOW_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
    out.push_back(&engine_avx512());
    if (__builtin_cpu_supports("avx512bf16")) out.push_back(&engine_avx512bf16());
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    out.push_back(&engine_avx2());
  }
#endif
  out.push_back(&engine_portable());
  return out;
}

inline const Engine& engine_named(const std::string& name) {
  for (const Engine* engine : engines()) {
    if (engine->name == name) return *engine;
  }
  throw std::invalid_argument("engine: this processor has no engine '" + name + "'");
}

/// Addresses of one network: embedding, input, output, output bias, then weight and bias of each
/// hidden layer. Keeps the lists that MlpTensors point into.
template <typename T>
class TensorList {
 public:
  explicit TensorList(const std::vector<Address>& addresses) {
    if (addresses.empty()) return;
    for (size_t i = 4; i + 1 < addresses.size(); i += 2) {
      hidden_.push_back(pointer<T>(addresses[i]));
      bias_.push_back(pointer<T>(addresses[i + 1]));
    }
    tensors_ = {pointer<T>(addresses[0]), pointer<T>(addresses[1]), pointer<T>(addresses[2]),
                pointer<T>(addresses[3]), hidden_.data(),           bias_.data()};
  }
  TensorList(const TensorList&) = delete;
  TensorList& operator=(const TensorList&) = delete;

  const MlpTensors<T>& tensors() const { return tensors_; }
  int64_t depth() const { return static_cast<int64_t>(hidden_.size()); }

 private:
  std::vector<T*> hidden_, bias_;
  MlpTensors<T> tensors_{};
};

/// A network as Python describes it: width, activation, addresses.
using MlpTuple = std::tuple<int64_t, int, std::vector<Address>>;

inline Mlp described(const MlpTuple& mlp, const TensorList<const float>& list) {
  return {std::get<0>(mlp), list.depth(), static_cast<Activation>(std::get<1>(mlp)),
          list.tensors()};
}

/// samples, dim, num_steps, tile, keep, threads.
using SizesTuple = std::tuple<int64_t, int64_t, int64_t, int64_t, bool, int>;

/// dt, g, scratch.
using BuffersTuple = std::tuple<Address, Address, Address>;

/// A problem and the lists that it points into.
class ProblemHolder {
 public:
  ProblemHolder(const SizesTuple& sizes, const MlpTuple& drift, const MlpTuple& score,
                const BuffersTuple& buffers,
                const std::tuple<uint64_t, uint32_t, uint32_t, uint32_t>& noise)
      : drift_(std::get<2>(drift)), score_(std::get<2>(score)) {
    problem_.samples = std::get<0>(sizes), problem_.dim = std::get<1>(sizes);
    problem_.num_steps = std::get<2>(sizes), problem_.tile = std::get<3>(sizes);
    problem_.keep = std::get<4>(sizes), problem_.threads = std::get<5>(sizes);
    problem_.drift = described(drift, drift_), problem_.score = described(score, score_);
    problem_.dt = pointer<const float>(std::get<0>(buffers));
    problem_.g = pointer<const float>(std::get<1>(buffers));
    problem_.scratch = pointer<void>(std::get<2>(buffers));
    problem_.seed = std::get<0>(noise), problem_.stream = std::get<1>(noise);
    problem_.purpose = std::get<2>(noise), problem_.sample_offset = std::get<3>(noise);
  }

  const TrajectoryProblem& problem() const { return problem_; }

 private:
  TensorList<const float> drift_, score_;
  TrajectoryProblem problem_{};
};

/// samples, dim, times, tile, threads.
using RegressionSizes = std::tuple<int64_t, int64_t, int64_t, int64_t, int>;

/// A problem with the addresses scratch, x, target, weight, cost, grad_x, time_of.
inline RegressionProblem regression_problem(const RegressionSizes& sizes, const MlpTuple& mlp,
                                            const TensorList<const float>& weights,
                                            const TensorList<float>& grads,
                                            const std::array<Address, 7>& a) {
  RegressionProblem out{};
  out.samples = std::get<0>(sizes), out.dim = std::get<1>(sizes), out.times = std::get<2>(sizes);
  out.tile = std::get<3>(sizes), out.threads = std::get<4>(sizes);
  out.mlp = described(mlp, weights);
  out.scratch = pointer<void>(a[0]);
  out.x = pointer<const float>(a[1]), out.target = pointer<const float>(a[2]);
  out.weight = pointer<const float>(a[3]), out.cost = pointer<float>(a[4]);
  out.grad_x = pointer<float>(a[5]), out.time_of = pointer<const int64_t>(a[6]);
  out.grads = grads.tensors();
  return out;
}

/// samples, dim, num_steps, num_stages, times, probes, tile, threads.
using FlowSizes = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int>;

/// An equation and the lists that it points into.
class FlowHolder {
 public:
  FlowHolder(const FlowSizes& sizes, const std::vector<MlpTuple>& nets) {
    if (nets.empty() || nets.size() > 2) {
      throw std::invalid_argument("flow: expected 1 or 2 networks");
    }
    for (const MlpTuple& net : nets) {
      lists_.push_back(std::make_unique<TensorList<const float>>(std::get<2>(net)));
      problem_.nets[problem_.num_nets++] = described(net, *lists_.back());
    }
    problem_.samples = std::get<0>(sizes), problem_.dim = std::get<1>(sizes);
    problem_.num_steps = std::get<2>(sizes), problem_.num_stages = std::get<3>(sizes);
    problem_.times = std::get<4>(sizes), problem_.probes = std::get<5>(sizes);
    problem_.tile = std::get<6>(sizes), problem_.threads = std::get<7>(sizes);
  }

  /// scratch, time_of, lengths, coefficients, start, end, states, change.
  void set_buffers(const std::array<Address, 8>& a, int64_t states_row) {
    problem_.scratch = pointer<void>(a[0]), problem_.time_of = pointer<const int64_t>(a[1]);
    problem_.lengths = pointer<const double>(a[2]);
    problem_.coefficients = pointer<const double>(a[3]);
    problem_.start = pointer<const float>(a[4]), problem_.end = pointer<float>(a[5]);
    problem_.states = pointer<float>(a[6]), problem_.change = pointer<double>(a[7]);
    problem_.states_row = states_row;
  }

  void set_noise(const std::tuple<uint64_t, uint32_t, uint32_t, uint32_t>& noise) {
    problem_.seed = std::get<0>(noise), problem_.stream = std::get<1>(noise);
    problem_.purpose = std::get<2>(noise), problem_.sample_offset = std::get<3>(noise);
  }

  const FlowProblem& problem() const { return problem_; }

 private:
  std::vector<std::unique_ptr<TensorList<const float>>> lists_;
  FlowProblem problem_{};
};

/// times, width, activation, tile, threads.
using EmbeddingSizes = std::tuple<int64_t, int64_t, int, int64_t, int>;

/// phase, first, first_bias, second, constant; empty for none.
template <typename T>
EmbeddingTensors<T> embedding_tensors(const std::vector<Address>& a) {
  if (a.size() != 5) return {};
  return {pointer<T>(a[0]), pointer<T>(a[1]), pointer<T>(a[2]), pointer<T>(a[3]), pointer<T>(a[4])};
}

/// A problem with the addresses scratch, times, frequencies, kept, embeddings, grad.
inline EmbeddingProblem embedding_problem(const EmbeddingSizes& sizes, float scale,
                                          const std::array<Address, 6>& a,
                                          const std::vector<Address>& weights,
                                          const std::vector<Address>& grads) {
  EmbeddingProblem out{};
  out.samples = std::get<0>(sizes), out.width = std::get<1>(sizes);
  out.activation = static_cast<Activation>(std::get<2>(sizes));
  out.tile = std::get<3>(sizes), out.threads = std::get<4>(sizes), out.scale = scale;
  out.scratch = pointer<void>(a[0]), out.times = pointer<const float>(a[1]);
  out.frequencies = pointer<const float>(a[2]), out.kept = pointer<float>(a[3]);
  out.embeddings = pointer<float>(a[4]), out.grad = pointer<const float>(a[5]);
  out.weights = embedding_tensors<const float>(weights);
  out.grads = embedding_tensors<float>(grads);
  return out;
}

}  // namespace diffflow
