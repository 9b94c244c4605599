// The engines for any processor.
#define DF_NAMESPACE portable
#define DF_LANES 4
#include "engines.h"

namespace diffflow {

const Instructions& portable_instructions() { return portable::kInstructions; }

}  // namespace diffflow
