// Every elementwise kernel of the build.
#include "loop_cuda.cuh"

namespace diffflow {
namespace cuda {

#define DF_INSTANTIATE(...) \
  template void for_each<__VA_ARGS__>(const __VA_ARGS__&, const Shape&, bool, int, void*);
DF_FOR_ELEMENTWISE(DF_INSTANTIATE)

}  // namespace cuda
}  // namespace diffflow
