// The engine for processors with AVX-512 and dot products of bfloat16: factors of the hidden layers
// are rounded to bfloat16, everything else is float32.
#define DF_ENGINE avx512bf16
#define DF_LANES 16
#define DF_BF16
#define DF_HD inline __attribute__((always_inline))
#include "embedding.h"
#include "ode.h"
#include "regression.h"
#include "reverse.h"

namespace diffflow {

const Engine& engine_avx512bf16() {
  static const Engine engine = {"avx512bf16",
                                avx512bf16::scratch_bytes,
                                avx512bf16::run_loss,
                                avx512bf16::run_sample,
                                avx512bf16::regression_scratch_bytes,
                                avx512bf16::run_regression,
                                avx512bf16::flow_scratch_bytes,
                                avx512bf16::run_flow,
                                avx512bf16::embedding_scratch_bytes,
                                avx512bf16::run_embedding};
  return engine;
}

}  // namespace diffflow
