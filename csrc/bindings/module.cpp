// The Python module diffflow_ext._core. Private: diffflow_ext/_backend.py is its only caller.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "gpu_paths.h"
#include "ops.h"
#include "engines.h"

namespace py = pybind11;
namespace df = diffflow;

namespace {

using TargetTuple = std::tuple<int, df::Address, int, int64_t, int64_t>;
using NoiseTuple = std::tuple<uint64_t, uint32_t, uint32_t, uint32_t, df::Address>;
using NumberTuple = std::tuple<double, df::Address>;

df::Target target(const TargetTuple& t) {
  return {std::get<0>(t), std::get<1>(t), std::get<2>(t), std::get<3>(t), std::get<4>(t)};
}
df::Number number(const NumberTuple& t) { return {std::get<0>(t), std::get<1>(t)}; }
df::NoiseSource noise(const NoiseTuple& t) {
  return {std::get<0>(t), std::get<1>(t), std::get<2>(t), std::get<3>(t),
          df::pointer<const int64_t>(std::get<4>(t))};
}

/// Releases the GIL around kernels: CPU loops are long, and CUDA launches may wait for a queue.
using Free = py::call_guard<py::gil_scoped_release>;

py::dict build_info() {
  py::dict info;
  info["version"] = DIFFFLOW_VERSION;
  info["compiler"] = DIFFFLOW_COMPILER;
#ifdef _OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
#ifdef DIFFFLOW_WITH_CUDA
  info["cuda"] = true;
#else
  info["cuda"] = false;
#endif
  info["cuda_compiler"] = DIFFFLOW_CUDA_COMPILER;
  info["cuda_architectures"] = DIFFFLOW_CUDA_ARCHITECTURES;
  info["cuda_note"] = DIFFFLOW_CUDA_NOTE;
  return info;
}

using SeedTuple = std::tuple<uint64_t, uint32_t, uint32_t, uint32_t>;

std::vector<std::string> engine_names() {
  std::vector<std::string> names;
  for (const df::Engine* engine : df::engines()) names.emplace_back(engine->name);
  return names;
}

int64_t trajectory_scratch(const std::string& engine, const df::SizesTuple& sizes,
                           const df::MlpTuple& drift, const df::MlpTuple& score, bool gradients) {
  const df::ProblemHolder holder(sizes, drift, score, {}, {});
  return df::engine_named(engine).scratch_bytes(holder.problem(), gradients);
}

void trajectory_loss(const std::string& engine, const df::SizesTuple& sizes,
                     const df::MlpTuple& drift, const df::MlpTuple& score,
                     const df::BuffersTuple& buffers, const SeedTuple& noise,
                     const std::array<df::Address, 7>& a,
                     const std::vector<df::Address>& grad_drift,
                     const std::vector<df::Address>& grad_score) {
  const df::ProblemHolder holder(sizes, drift, score, buffers, noise);
  const df::TensorList<float> of_drift(grad_drift), of_score(grad_score);
  const df::LossOutputs outputs = {df::pointer<const float>(a[0]),
                                   df::pointer<const float>(a[1]),
                                   df::pointer<float>(a[2]),
                                   df::pointer<float>(a[3]),
                                   df::pointer<float>(a[4]),
                                   of_drift.tensors(),
                                   of_score.tensors(),
                                   df::pointer<float>(a[5]),
                                   df::pointer<double>(a[6])};
  df::engine_named(engine).loss(holder.problem(), outputs);
}

void trajectory_sample(const std::string& engine, const df::SizesTuple& sizes,
                       const df::MlpTuple& drift, const df::MlpTuple& score,
                       const df::BuffersTuple& buffers, const SeedTuple& noise,
                       const std::array<df::Address, 3>& a, float stochasticity, int last_step) {
  const df::ProblemHolder holder(sizes, drift, score, buffers, noise);
  const df::SampleOutputs outputs = {df::pointer<const float>(a[0]), stochasticity,
                                     static_cast<df::LastStep>(last_step), df::pointer<float>(a[1]),
                                     df::pointer<float>(a[2])};
  df::engine_named(engine).sample(holder.problem(), outputs);
}

int64_t regression_scratch(const std::string& engine, const df::RegressionSizes& sizes,
                           const df::MlpTuple& mlp, bool gradients) {
  const df::TensorList<const float> weights(std::get<2>(mlp));
  const df::TensorList<float> none({});
  return df::engine_named(engine).regression_scratch_bytes(
      df::regression_problem(sizes, mlp, weights, none, {}), gradients);
}

void regression(const std::string& engine, const df::RegressionSizes& sizes,
                const df::MlpTuple& mlp, const std::array<df::Address, 7>& a,
                const std::vector<df::Address>& grads) {
  const df::TensorList<const float> weights(std::get<2>(mlp));
  const df::TensorList<float> of_weights(grads);
  df::engine_named(engine).regression(df::regression_problem(sizes, mlp, weights, of_weights, a));
}

int64_t flow_scratch(const std::string& engine, const df::FlowSizes& sizes,
                     const std::vector<df::MlpTuple>& nets) {
  return df::engine_named(engine).flow_scratch_bytes(df::FlowHolder(sizes, nets).problem());
}

void flow(const std::string& engine, const df::FlowSizes& sizes,
          const std::vector<df::MlpTuple>& nets, const SeedTuple& noise,
          const std::array<df::Address, 8>& a, int64_t states_row) {
  df::FlowHolder holder(sizes, nets);
  holder.set_noise(noise);
  holder.set_buffers(a, states_row);
  df::engine_named(engine).flow(holder.problem());
}

int64_t embedding_scratch(const std::string& engine, const df::EmbeddingSizes& sizes) {
  return df::engine_named(engine).embedding_scratch_bytes(
      df::embedding_problem(sizes, 0, {}, {}, {}));
}

void embedding(const std::string& engine, const df::EmbeddingSizes& sizes, float scale,
               const std::array<df::Address, 6>& a, const std::vector<df::Address>& weights,
               const std::vector<df::Address>& grads) {
  df::engine_named(engine).embedding(df::embedding_problem(sizes, scale, a, weights, grads));
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  using A = df::Address;
  using T = TargetTuple;
  using Z = NoiseTuple;
  using R = NumberTuple;
  m.doc() = "Kernels of diffflow_ext on raw addresses. Private; nothing is checked here.";
  m.def("build_info", &build_info);
  m.def("num_segments", [](int64_t elements) { return df::num_segments((elements + 3) / 4); });
  m.def(
      "philox_words",
      [](T t, A counter, A key, A words) { df::philox_words(target(t), counter, key, words); },
      Free());
  m.def("normal", [](T t, Z z, A out) { df::normal(target(t), noise(z), out); }, Free());
  m.def(
      "em_step",
      [](T t, Z z, R dt, R g, A x, A f, A x_next) {
        df::em_step(target(t), noise(z), number(dt), number(g), x, f, x_next);
      },
      Free());
  m.def(
      "backward_residual",
      [](T t, R dt, R g, A x, A x_next, A f, A s, A delta_b) {
        df::backward_residual(target(t), number(dt), number(g), x, x_next, f, s, delta_b);
      },
      Free());
  m.def(
      "backward_residual_vjp",
      [](T t, R dt, R g, A grad, A grad_x, A grad_x_next, A grad_f, A grad_s) {
        df::backward_residual_vjp(target(t), number(dt), number(g), grad, grad_x, grad_x_next,
                                  grad_f, grad_s);
      },
      Free());
  m.def(
      "residual_cost",
      [](T t, R dt, R g, A x, A x_next, A f, A s, A previous, A cost, A partials) {
        df::residual_cost(target(t), number(dt), number(g), x, x_next, f, s, previous, cost,
                          partials);
      },
      Free());
  m.def(
      "residual_cost_vjp",
      [](T t, R dt, R g, A x, A x_next, A f, A s, A grad, A grad_x, A grad_x_next, A grad_f,
         A grad_s, A grad_g, A partials) {
        df::residual_cost_vjp(target(t), number(dt), number(g), x, x_next, f, s, grad, grad_x,
                              grad_x_next, grad_f, grad_s, grad_g, partials);
      },
      Free());
  m.def(
      "reverse_step",
      [](T t, Z z, R dt, R g, double stochasticity, A x_next, A f, A s, A x) {
        df::reverse_step(target(t), noise(z), number(dt), number(g), stochasticity, x_next, f, s,
                         x);
      },
      Free());
  m.def(
      "affine_step",
      [](T t, Z z, R c_x, R c_a, R c_b, R noise_scale, A x, A a, A b, A y) {
        df::affine_step(target(t), noise(z),
                        {number(c_x), number(c_a), number(c_b), number(noise_scale)}, x, a, b, y);
      },
      Free());
  m.def(
      "perturb",
      [](T t, Z z, A x0, A alpha_t, A sigma_t, int64_t scalar_stride, A x_t, A eps) {
        df::perturb(target(t), noise(z), x0, alpha_t, sigma_t, scalar_stride, x_t, eps);
      },
      Free());
  m.def(
      "noise_dot",
      [](T t, Z z, A v, A dot, A partials) {
        df::noise_dot(target(t), noise(z), v, dot, partials);
      },
      Free());
  m.def(
      "noise_energy",
      [](T t, Z z, A previous, A energy, A partials) {
        df::noise_energy(target(t), noise(z), previous, energy, partials);
      },
      Free());
  m.def(
      "adjoint_step",
      [](T t, Z z, R dt, R dt_next, R g, double weight_for_all, const std::array<A, 15>& a) {
        df::adjoint_step(target(t), noise(z), number(dt), number(dt_next), number(g),
                         weight_for_all,
                         {a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11],
                          a[12], a[13], a[14]});
      },
      Free());
  m.def("engines", &engine_names);
  m.def("trajectory_scratch", &trajectory_scratch);
  m.def("trajectory_loss", &trajectory_loss, Free());
  m.def("trajectory_sample", &trajectory_sample, Free());
  m.def("gpu_paths_limits",
        [] { return std::make_tuple(df::gpu::kMaxUnits, df::gpu::kMaxHidden); });
  m.def("gpu_paths_shared_bytes", &df::gpu_paths_shared_bytes);
  m.def("gpu_paths_shared_limit", &df::gpu_paths_shared_limit);
  m.def(
      "gpu_paths",
      [](int phase, int products, const std::tuple<int, A>& where, const df::GpuSizes& sizes,
         const df::GpuNetTuple& drift, const df::GpuNetTuple& score, Z z,
         const df::GpuBuffers& buffers) {
        df::run_gpu_path(phase, products, df::gpu_paths(sizes, drift, score, noise(z), buffers),
                         std::get<0>(where), std::get<1>(where));
      },
      Free());
  m.def("regression_scratch", &regression_scratch);
  m.def("regression", &regression, Free());
  m.def("flow_scratch", &flow_scratch);
  m.def("flow", &flow, Free());
  m.def("embedding_scratch", &embedding_scratch);
  m.def("embedding", &embedding, Free());
}
