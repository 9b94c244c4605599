// The structs of fused/problem.h, of fused/gpu/paths.h and of the adjoint as Python classes with
// the same fields, all zero at first. Pointers are integers in Python, 0 for absent tensors. The
// classes are local to the module, so that tests can load a second build of it.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <type_traits>
#include <vector>

#include "../fused/gpu/paths.h"
#include "casters.h"

namespace diffflow {

namespace py = pybind11;

/// Binds a struct: one call for each field.
template <class Struct>
class Fields {
 public:
  Fields(py::module_& module, const char* name) : class_(module, name, py::module_local()) {
    class_.def(py::init([] { return Struct{}; }));
  }

  template <typename Field>
  Fields& field(const char* name, Field Struct::* member) {
    if constexpr (std::is_pointer_v<Field>) {
      class_.def_property(
          name, [member](const Struct& self) { return reinterpret_cast<Address>(self.*member); },
          [member](Struct& self, Address value) { self.*member = reinterpret_cast<Field>(value); });
    } else if constexpr (std::is_same_v<Field, NoiseSource>) {
      class_.def_property(name, nullptr,
                          [member](Struct& self, NoiseSource value) { self.*member = value; });
    } else {
      class_.def_readwrite(name, member);
    }
    return *this;
  }

  /// One address for each of some layers.
  template <typename T>
  Fields& field(const char* name, T* (Struct::*layers)[kMaxDepth]) {
    class_.def_property(name, nullptr, [layers](Struct& self, const std::vector<Address>& values) {
      if (values.size() > kMaxDepth) throw std::invalid_argument("depth: too many hidden layers");
      for (size_t l = 0; l < values.size(); ++l) (self.*layers)[l] = pointer<T>(values[l]);
    });
    return *this;
  }

  py::class_<Struct>& bound() { return class_; }

 private:
  py::class_<Struct> class_;
};

template <typename T>
void bind_mlp_tensors(py::module_& m, const char* name) {
  using S = MlpTensors<T>;
  Fields<S>(m, name)
      .field("embedding", &S::embedding)
      .field("input", &S::input)
      .field("output", &S::output)
      .field("output_bias", &S::output_bias)
      .field("hidden", &S::hidden)
      .field("hidden_bias", &S::hidden_bias)
      .field("condition", &S::condition);
}

template <typename T>
void bind_embedding_tensors(py::module_& m, const char* name) {
  using S = EmbeddingTensors<T>;
  Fields<S>(m, name)
      .field("phase", &S::phase)
      .field("first", &S::first)
      .field("first_bias", &S::first_bias)
      .field("second", &S::second)
      .field("constant", &S::constant);
}

inline void bind_parts(py::module_& m) {
  py::enum_<Activation>(m, "Activation", py::module_local())
      .value("gelu", Activation::kGelu)
      .value("silu", Activation::kSilu)
      .value("tanh", Activation::kTanh);
  py::enum_<LastStep>(m, "LastStep", py::module_local())
      .value("noisy", LastStep::kNoisy)
      .value("mean", LastStep::kMean)
      .value("tweedie", LastStep::kTweedie);
  bind_mlp_tensors<const float>(m, "MlpTensors");
  bind_mlp_tensors<float>(m, "MlpGradients");
  bind_embedding_tensors<const float>(m, "EmbeddingTensors");
  bind_embedding_tensors<float>(m, "EmbeddingGradients");
  Fields<Mlp>(m, "Mlp")
      .field("width", &Mlp::width)
      .field("depth", &Mlp::depth)
      .field("activation", &Mlp::activation)
      .field("weights", &Mlp::weights);
  Fields<Work>(m, "Work")
      .field("tile", &Work::tile)
      .field("threads", &Work::threads)
      .field("scratch", &Work::scratch);
}

inline void bind_paths(py::module_& m) {
  using P = PathsProblem;
  Fields<P>(m, "PathsProblem")
      .field("samples", &P::samples)
      .field("dim", &P::dim)
      .field("num_steps", &P::num_steps)
      .field("drift", &P::drift)
      .field("score", &P::score)
      .field("dt", &P::dt)
      .field("g", &P::g)
      .field("noise", &P::noise)
      .field("work", &P::work)
      .field("x0", &P::x0)
      .field("x_last", &P::x_last)
      .field("states", &P::states)
      .field("cost", &P::cost)
      .field("weight", &P::weight)
      .field("keep_activations", &P::keep_activations)
      .field("grad_drift", &P::grad_drift)
      .field("grad_score", &P::grad_score)
      .field("grad_x0", &P::grad_x0)
      .field("grad_g", &P::grad_g)
      .field("stochasticity", &P::stochasticity)
      .field("last_step", &P::last_step);
}

inline void bind_regression(py::module_& m) {
  using P = RegressionProblem;
  Fields<P>(m, "RegressionProblem")
      .field("samples", &P::samples)
      .field("dim", &P::dim)
      .field("times", &P::times)
      .field("mlp", &P::mlp)
      .field("work", &P::work)
      .field("time_of", &P::time_of)
      .field("x", &P::x)
      .field("target", &P::target)
      .field("cost", &P::cost)
      .field("weight", &P::weight)
      .field("grads", &P::grads)
      .field("grad_x", &P::grad_x);
}

inline void bind_ode(py::module_& m) {
  using P = OdeProblem;
  Fields<P> fields(m, "OdeProblem");
  fields.bound().def_property("nets", nullptr, [](P& self, const std::vector<Mlp>& nets) {
    if (nets.empty() || nets.size() > P::kMaxNets) {
      throw std::invalid_argument("nets: expected 1 or 2 networks");
    }
    self.num_nets = static_cast<int>(nets.size());
    for (size_t n = 0; n < nets.size(); ++n) self.nets[n] = nets[n];
  });
  fields.field("samples", &P::samples)
      .field("dim", &P::dim)
      .field("num_steps", &P::num_steps)
      .field("num_stages", &P::num_stages)
      .field("times", &P::times)
      .field("time_of", &P::time_of)
      .field("lengths", &P::lengths)
      .field("coefficients", &P::coefficients)
      .field("probes", &P::probes)
      .field("noise", &P::noise)
      .field("work", &P::work)
      .field("start", &P::start)
      .field("end", &P::end)
      .field("states", &P::states)
      .field("states_stride", &P::states_stride)
      .field("change", &P::change);
}

inline void bind_embedding(py::module_& m) {
  using P = EmbeddingProblem;
  Fields<P>(m, "EmbeddingProblem")
      .field("samples", &P::samples)
      .field("width", &P::width)
      .field("activation", &P::activation)
      .field("scale", &P::scale)
      .field("times", &P::times)
      .field("frequencies", &P::frequencies)
      .field("weights", &P::weights)
      .field("work", &P::work)
      .field("activations", &P::activations)
      .field("embeddings", &P::embeddings)
      .field("grad", &P::grad)
      .field("grads", &P::grads);
}

inline void bind_gpu_paths(py::module_& m) {
  using P = gpu::PathsProblem;
  using T = gpu::Trace;
  py::enum_<gpu::Products>(m, "Products", py::module_local())
      .value("float32", gpu::Products::kFloat32)
      .value("tf32", gpu::Products::kTf32)
      .value("bfloat16", gpu::Products::kBfloat16);
  py::enum_<gpu::Phase>(m, "Phase", py::module_local())
      .value("forward", gpu::Phase::kForward)
      .value("residuals", gpu::Phase::kResiduals)
      .value("score", gpu::Phase::kScore)
      .value("backward", gpu::Phase::kBackward);
  Fields<T>(m, "GpuTrace")
      .field("values", &T::values)
      .field("slopes", &T::slopes)
      .field("sums", &T::sums);
  Fields<P>(m, "GpuPathsProblem")
      .field("samples", &P::samples)
      .field("dim", &P::dim)
      .field("num_steps", &P::num_steps)
      .field("drift", &P::drift)
      .field("score", &P::score)
      .field("dt", &P::dt)
      .field("g", &P::g)
      .field("noise", &P::noise)
      .field("x0", &P::x0)
      .field("states", &P::states)
      .field("drifts", &P::drifts)
      .field("residuals", &P::residuals)
      .field("costs", &P::costs)
      .field("drift_trace", &P::drift_trace)
      .field("score_trace", &P::score_trace)
      .field("weight", &P::weight)
      .field("cotangents_f", &P::cotangents_f)
      .field("cotangents_s", &P::cotangents_s)
      .field("grad_scores", &P::grad_scores)
      .field("grad_x0", &P::grad_x0)
      .field("grad_g", &P::grad_g);
}

inline void bind_adjoint(py::module_& m) {
  using A = ops::AdjointTensors;
  Fields<A>(m, "AdjointTensors")
      .field("x_prev", &A::x_prev)
      .field("x", &A::x)
      .field("f", &A::f)
      .field("s", &A::s)
      .field("local_next", &A::local_next)
      .field("vjp_f_next", &A::vjp_f_next)
      .field("vjp_s_next", &A::vjp_s_next)
      .field("carry_next", &A::carry_next)
      .field("weight", &A::weight)
      .field("cotangent_f", &A::cotangent_f)
      .field("cotangent_s", &A::cotangent_s)
      .field("local", &A::local)
      .field("carry", &A::carry)
      .field("grad_g", &A::grad_g)
      .field("partials", &A::partials);
}

inline void bind_problems(py::module_& m) {
  bind_parts(m);
  bind_paths(m);
  bind_regression(m);
  bind_ode(m);
  bind_embedding(m);
  bind_gpu_paths(m);
  bind_adjoint(m);
}

}  // namespace diffflow
