// As avx512bf16.cpp, with products of the hidden layers by matrix tiles (AMX).
#define DF_NAMESPACE amxbf16
#define DF_LANES 16
#define DF_BF16
#define DF_AMX
#include "engines.h"

namespace diffflow {

const Instructions& amxbf16_instructions() { return amxbf16::kInstructions; }

}  // namespace diffflow
