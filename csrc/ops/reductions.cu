// Every reduction kernel of the build.
#include "loop_cuda.cuh"

namespace diffflow {
namespace cuda {

#define DF_INSTANTIATE(...)                                                 \
  template void reduce<__VA_ARGS__>(const __VA_ARGS__&, const Shape&, bool, \
                                    typename __VA_ARGS__::Sum*, int, void*);
DF_FOR_REDUCTIONS(DF_INSTANTIATE)

}  // namespace cuda
}  // namespace diffflow
