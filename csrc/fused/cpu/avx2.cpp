// The engines for processors with AVX2 and FMA.
#define DF_NAMESPACE avx2
#define DF_LANES 8
#include "engines.h"

namespace diffflow {

const Instructions& avx2_instructions() { return avx2::kInstructions; }

}  // namespace diffflow
