// The ops for processors with AVX2 and FMA.
#define DF_NAMESPACE avx2
#define DF_LANES 8
#include "all_cpu.h"

namespace diffflow {

const OpLoops& avx2_ops() { return avx2::kOps; }

}  // namespace diffflow
