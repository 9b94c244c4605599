// The engines for processors with AVX-512.
#define DF_NAMESPACE avx512
#define DF_LANES 16
#include "engines.h"

namespace diffflow {

const Instructions& avx512_instructions() { return avx512::kInstructions; }

}  // namespace diffflow
