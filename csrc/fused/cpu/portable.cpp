// The engine for any processor.
#define DF_ENGINE portable
#define DF_LANES 4
#define DF_HD inline __attribute__((always_inline))
#include "embedding.h"
#include "ode.h"
#include "regression.h"
#include "reverse.h"

namespace diffflow {

const Engine& engine_portable() {
  static const Engine engine = {"portable",
                                portable::scratch_bytes,
                                portable::run_loss,
                                portable::run_sample,
                                portable::regression_scratch_bytes,
                                portable::run_regression,
                                portable::flow_scratch_bytes,
                                portable::run_flow,
                                portable::embedding_scratch_bytes,
                                portable::run_embedding};
  return engine;
}

}  // namespace diffflow
