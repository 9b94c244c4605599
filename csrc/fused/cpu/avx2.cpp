// The engine for processors with AVX2 and FMA.
#define DF_ENGINE avx2
#define DF_LANES 8
#define DF_HD inline __attribute__((always_inline))
#include "embedding.h"
#include "ode.h"
#include "regression.h"
#include "reverse.h"

namespace diffflow {

const Engine& engine_avx2() {
  static const Engine engine = {"avx2",
                                avx2::scratch_bytes,
                                avx2::run_loss,
                                avx2::run_sample,
                                avx2::regression_scratch_bytes,
                                avx2::run_regression,
                                avx2::flow_scratch_bytes,
                                avx2::run_flow,
                                avx2::embedding_scratch_bytes,
                                avx2::run_embedding};
  return engine;
}

}  // namespace diffflow
