// The engine for processors with AVX-512 (F, VL, BW, DQ).
#define DF_ENGINE avx512
#define DF_LANES 16
#define DF_HD inline __attribute__((always_inline))
#include "embedding.h"
#include "ode.h"
#include "regression.h"
#include "reverse.h"

namespace diffflow {

const Engine& engine_avx512() {
  static const Engine engine = {"avx512",
                                avx512::scratch_bytes,
                                avx512::run_loss,
                                avx512::run_sample,
                                avx512::regression_scratch_bytes,
                                avx512::run_regression,
                                avx512::flow_scratch_bytes,
                                avx512::run_flow,
                                avx512::embedding_scratch_bytes,
                                avx512::run_embedding};
  return engine;
}

}  // namespace diffflow
