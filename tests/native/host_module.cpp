// The package's own bindings, built a second time with the CUDA side executed on the host: device 0
// of this module is the emulation of cuda_host.h. Compiled with -I csrc and -I tests/native,
// linked with ops/*.cu and the engines of fused/.
#include "bindings/module.cpp"
#include "cuda_host.h"

extern "C" __attribute__((visibility("default"))) void host_set_schedule(int schedule) {
  emu::set_schedule(schedule);
}

extern "C" __attribute__((visibility("default"))) void host_set_shared_limit(int bytes) {
  emu::set_opt_in_shared_bytes(static_cast<size_t>(bytes));
}
