// Runs a few bodies through the CPU loops and through the CUDA loops on the host, and says whether
// they agree: `loops_probe SCHEDULE` prints "equal", "differs: CASE" or "error: TEXT". Small, so
// that a test can build it from changed sources (-I csrc) and under sanitizers: every tensor is an
// allocation of its own, ending where the tensor ends.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#define DF_NAMESPACE portable
#define DF_LANES 4
#include "ops/bodies.h"
#include "ops/loop_cpu.h"
#include "ops/loop_cuda.cuh"

namespace df = diffflow;

namespace {

/// A tensor whose first element lies `shift` elements after an aligned address.
template <typename T>
class Tensor {
 public:
  Tensor(int64_t count, int shift) : shift_(shift), count_(count), store_(new T[count + shift]) {
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t hash = static_cast<uint32_t>(i + 1) * 2654435761u;
      data()[i] = df::to_storage<T>(static_cast<float>(hash >> 16) / 32768.0f - 1.0f);
    }
  }
  T* data() { return store_.get() + shift_; }
  std::string bytes() {
    return {reinterpret_cast<const char*>(data()), static_cast<size_t>(count_) * sizeof(T)};
  }

 private:
  int shift_;
  int64_t count_;
  std::unique_ptr<T[]> store_;
};

struct Run {
  bool on_device;
  df::Shape shape;
  int shift;

  bool aligned() const { return shift % 4 == 0 && (shape.samples == 1 || shape.elements % 4 == 0); }
  int64_t numel() const { return shape.samples * shape.elements; }

  template <typename T>
  Tensor<T> tensor() const {
    return {numel(), shift};
  }
  template <typename T>
  Tensor<T> column() const {
    return {shape.samples, 0};
  }
  template <class Body>
  void each(const Body& body) const {
    if (on_device) return df::cuda::for_each(body, shape, aligned(), 0, nullptr);
    df::portable::for_each(body, shape);
  }
  template <class Body>
  void reduce(const Body& body) const {
    Tensor<typename Body::Sum> partials(shape.samples * df::num_segments(shape.quads_per_sample()),
                                        0);
    if (on_device) return df::cuda::reduce(body, shape, aligned(), partials.data(), 0, nullptr);
    df::portable::reduce(body, shape, partials.data());
  }
};

constexpr df::NoiseSource kNoise{0x0123456789abcdefull, 7, 1, 5, 11, nullptr};
constexpr df::StepSource<float> kStep{{0.05f, nullptr}, {0.7f, nullptr}};

std::string normal(const Run& run) {
  auto out = run.tensor<double>();
  run.each(df::Normal<double>{out.data(), kNoise});
  return out.bytes();
}

std::string em_step(const Run& run) {
  auto x = run.tensor<float>(), x_next = run.tensor<float>();
  auto f = run.tensor<df::BFloat16>();
  run.each(df::EmStep<float, df::BFloat16>{x.data(), f.data(), x_next.data(), kStep, kNoise});
  return x_next.bytes();
}

std::string noise_dot(const Run& run) {
  auto v = run.tensor<float>();
  auto dot = run.column<float>();
  run.reduce(df::NoiseDot<float>{v.data(), dot.data(), kNoise});
  return dot.bytes();
}

std::string residual_cost_vjp(const Run& run) {
  auto x = run.tensor<float>(), x_next = run.tensor<float>();
  auto f = run.tensor<df::Half>(), s = run.tensor<df::Half>();
  auto grad = run.column<float>(), grad_g = run.column<float>();
  auto grad_x = run.tensor<float>(), grad_x_next = run.tensor<float>();
  auto grad_f = run.tensor<df::Half>(), grad_s = run.tensor<df::Half>();
  run.reduce(
      df::ResidualCostVjp<float, df::Half>{{x.data(), x_next.data(), f.data(), s.data(), kStep},
                                           grad.data(),
                                           grad_x.data(),
                                           grad_x_next.data(),
                                           grad_f.data(),
                                           grad_s.data(),
                                           grad_g.data()});
  return grad_x.bytes() + grad_x_next.bytes() + grad_f.bytes() + grad_s.bytes() + grad_g.bytes();
}

/// Around multiples of small and large numbers, up to the last that a launch has.
bool divides() {
  constexpr uint32_t last = 0x7fffffffu;
  for (uint32_t by = 1; by < 1u << 30; by += by < 300 ? 1 : by / 3) {
    const df::cuda::Divisor divisor(by);
    for (uint32_t nth = 1; nth <= last / by; nth += 1 + last / by / 1000) {
      for (uint32_t value : {nth * by - 1, nth * by, last}) {
        if (divisor.quotient(value) != value / by) return false;
      }
    }
  }
  return df::cuda::Divisor(1u << 30).quotient(last) == 1;
}

struct Case {
  const char* name;
  std::string (*result)(const Run&);
};

constexpr Case kCases[] = {{"normal", normal},
                           {"em_step", em_step},
                           {"noise_dot", noise_dot},
                           {"residual_cost_vjp", residual_cost_vjp}};

// Groups of 1, 2, 8 and 32 lanes and whole blocks; one, two and three segments; several blocks.
constexpr df::Shape kShapes[] = {{1, 1},   {3, 2},    {300, 3},  {37, 6},   {33, 29},
                                 {3, 200}, {2, 1023}, {2, 1028}, {3, 8192}, {2, 16390}};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  emu::set_schedule(std::atoi(argv[1]));
  if (!divides()) return std::puts("differs: division"), 0;
  try {
    for (const df::Shape& shape : kShapes) {
      for (int shift : {0, 1}) {
        for (const Case& one : kCases) {
          if (one.result({true, shape, shift}) == one.result({false, shape, shift})) continue;
          std::printf("differs: %s of %lld x %lld\n", one.name,
                      static_cast<long long>(shape.samples),
                      static_cast<long long>(shape.elements));
          return 0;
        }
      }
    }
  } catch (const std::exception& error) {
    std::printf("error: %s\n", error.what());
    return 0;
  }
  std::puts("equal");
}
