// The engines for processors with AVX-512 and dot products of bfloat16: factors of the hidden
// layers are rounded to bfloat16, everything else is float32.
#define DF_NAMESPACE avx512bf16
#define DF_LANES 16
#define DF_BF16
#include "engines.h"

namespace diffflow {

const Instructions& avx512bf16_instructions() { return avx512bf16::kInstructions; }

}  // namespace diffflow
