// The private Python module diffflow_ext._core; functional/core.py of the package loads it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <vector>

#include "engines.h"
#include "gpu_paths.h"
#include "ops.h"
#include "problems.h"

namespace py = pybind11;
namespace df = diffflow;

namespace {

/// Releases the GIL around kernels: CPU loops are long, and CUDA launches may wait for a queue.
using Free = py::call_guard<py::gil_scoped_release>;

py::dict build_info() {
  py::dict info;
  info["version"] = DIFFFLOW_VERSION;
  info["compiler"] = DIFFFLOW_COMPILER;
  py::list names;
  py::dict left_out;
  for (const df::Candidate& one : df::candidates()) {
    if (one.left_out() == nullptr) {
      names.append(one.engines->name);
    } else {
      left_out[one.engines->name] = one.left_out();
    }
  }
  info["instructions"] = names;
  info["instructions_left_out"] = left_out;
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

void define_ops(py::module_& m) {
  m.def("num_segments", [](int64_t elements) { return df::num_segments((elements + 3) / 4); });
  m.def("philox_words", &df::ops::philox_words, Free());
  m.def("normal", &df::ops::normal, Free());
  m.def("em_step", &df::ops::em_step, Free());
  m.def("backward_residual", &df::ops::backward_residual, Free());
  m.def("backward_residual_vjp", &df::ops::backward_residual_vjp, Free());
  m.def("residual_cost", &df::ops::residual_cost, Free());
  m.def("residual_cost_vjp", &df::ops::residual_cost_vjp, Free());
  m.def("reverse_step", &df::ops::reverse_step, Free());
  m.def("affine_step", &df::ops::affine_step, Free());
  m.def("perturb", &df::ops::perturb, Free());
  m.def("noise_dot", &df::ops::noise_dot, Free());
  m.def("noise_energy", &df::ops::noise_energy, Free());
  m.def("adjoint_step", &df::ops::adjoint_step, Free());
}

/// Defines `name(instructions, problem, ...)` for one function of the set of instructions.
template <class Result, class Problem, class... More>
void define_engine(py::module_& m, const char* name,
                   Result (*df::Instructions::*function)(const Problem&, More...)) {
  m.def(
      name,
      [function](const std::string& instructions, const Problem& problem, More... more) {
        return (df::instructions_named(instructions).*function)(problem, more...);
      },
      Free());
}

void define_engines(py::module_& m) {
  m.def("instructions", [] {
    std::vector<std::string> names;
    for (const df::Instructions* one : df::instructions()) names.emplace_back(one->name);
    return names;
  });
  m.def("op_instructions", [] { return std::string(df::op_loops()->name); });
  m.def("use_op_instructions",
        [](const std::string& name) { df::op_loops() = df::ops_named(name); });
  define_engine(m, "paths_scratch_bytes", &df::Instructions::paths_scratch_bytes);
  define_engine(m, "run_paths", &df::Instructions::run_paths);
  define_engine(m, "run_reverse_paths", &df::Instructions::run_reverse_paths);
  define_engine(m, "regression_scratch_bytes", &df::Instructions::regression_scratch_bytes);
  define_engine(m, "run_regression", &df::Instructions::run_regression);
  define_engine(m, "ode_scratch_bytes", &df::Instructions::ode_scratch_bytes);
  define_engine(m, "run_ode", &df::Instructions::run_ode);
  define_engine(m, "embedding_scratch_bytes", &df::Instructions::embedding_scratch_bytes);
  define_engine(m, "run_embedding", &df::Instructions::run_embedding);
}

void define_gpu_paths(py::module_& m) {
  m.def("gpu_paths_limits",
        [] { return std::make_tuple(df::gpu::kMaxUnits, df::gpu::kMaxHidden); });
  m.def("gpu_paths_shared_bytes", &df::gpu_paths_shared_bytes);
  m.def("gpu_paths_shared_limit", &df::gpu_paths_shared_limit);
  m.def("gpu_paths_card", &df::gpu_paths_card);
  m.def("run_gpu_paths", &df::run_gpu_paths, Free());
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Kernels of diffflow_ext on raw addresses. Private; nothing is checked here.";
  m.def("build_info", &build_info);
  df::bind_problems(m);
  define_ops(m);
  define_engines(m);
  define_gpu_paths(m);
}
