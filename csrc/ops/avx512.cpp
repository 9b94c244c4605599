// The ops for processors with AVX-512.
#define DF_NAMESPACE avx512
#define DF_LANES 16
#include "all_cpu.h"

namespace diffflow {

const OpLoops& avx512_ops() { return avx512::kOps; }

}  // namespace diffflow
