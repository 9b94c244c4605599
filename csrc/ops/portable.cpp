// The ops for any processor.
#define DF_NAMESPACE portable
#define DF_LANES 4
#include "all_cpu.h"

namespace diffflow {

const OpLoops& portable_ops() { return portable::kOps; }

}  // namespace diffflow
