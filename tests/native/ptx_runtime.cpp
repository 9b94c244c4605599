// The CUDA runtime of a machine without a GPU: linked in the place of libcudart, it takes PTX,
// launches and arguments from the host code that nvcc makes, as a driver would, and interprets
// them. Below it, what ptx_device.py calls.
#include <memory>

#include "ptx_execution.h"

namespace ptx {

struct Pushed {
  Size grid, threads;
  size_t shared;
  void* stream;
};
std::vector<Pushed> pushed;

/// Kernels by name. They register themselves before variables of this file have values.
std::map<std::string, std::shared_ptr<Kernel>>& kernels() {
  static std::map<std::string, std::shared_ptr<Kernel>> all;
  return all;
}
/// Kernels by the address of their host code.
std::map<const void*, std::shared_ptr<Kernel>>& kernels_by_stub() {
  static std::map<const void*, std::shared_ptr<Kernel>> all;
  return all;
}

// Codes of cudaError_t.
enum Error {
  kSuccess = 0,
  kInvalidValue = 1,
  kInvalidConfiguration = 9,
  kInvalidDevice = 101,
  kUnknown = 999
};
int last_error = kSuccess;
int current_device = 0;
std::string error_text;

int fail(Error error, const std::string& text) {
  error_text = text;
  return last_error = error;
}

/// Python's say before a launch: whether to keep it for replays instead of running it.
using OnLaunch = int (*)(const char* kernel, uint64_t stream);
OnLaunch on_launch = nullptr;
std::vector<Launch> kept;

int run(const Launch& launch) {
  Kernel& kernel = *launch.kernel;
  running_kernel = kernel.name;
  ++kernel.launches;
  try {
    read_code(kernel);
    Grid(launch).run();
  } catch (const std::exception& error) {
    return fail(kUnknown, kernel.name + ": " + error.what());
  }
  return kSuccess;
}

bool fits(const Kernel& kernel, const Size& grid, const Size& threads, size_t shared) {
  return threads.count() > 0 && threads.count() <= kernel.max_threads && grid.count() > 0 &&
         grid.x <= INT_MAX && grid.y <= 65535 && grid.z <= 65535 && shared <= kernel.dynamic_limit;
}

int launch(const void* stub, Size grid, Size threads, void** arguments, size_t shared,
           void* stream) {
  const std::shared_ptr<Kernel> kernel = kernels_by_stub().at(stub);
  if (!fits(*kernel, grid, threads, shared)) {
    return fail(kInvalidConfiguration, "invalid configuration argument");
  }
  Launch now = {kernel, grid, threads, std::vector<uint8_t>(kernel->parameter_bytes),
                static_cast<uint32_t>(shared)};
  for (size_t i = 0; i < kernel->parameters.size(); ++i) {
    const Parameter& at = kernel->parameters[i];
    std::memcpy(now.parameters.data() + at.offset, arguments[i], at.bytes);
  }
  if (on_launch != nullptr &&
      on_launch(kernel->name.c_str(), reinterpret_cast<uint64_t>(stream)) != 0) {
    kept.push_back(now);
    return kSuccess;
  }
  return run(now);
}

template <class T>
T read(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

/// The texts of PTX in a fat binary: a header, then entries of a header and data.
void load(const uint8_t* data) {
  const uint8_t* at = data + read<uint16_t>(data + 6);
  const uint8_t* const end = at + read<uint64_t>(data + 8);
  while (at < end) {
    const uint32_t header = read<uint32_t>(at + 4);
    const uint64_t bytes = read<uint64_t>(at + 8);
    const std::string text(reinterpret_cast<const char*>(at + header), bytes);
    if (read<uint16_t>(at) == 1 && text.find(".version") != std::string::npos) {
      for (const auto& kernel : kernels_of(text)) kernels()[kernel->name] = kernel;
    }
    at += header + bytes;
  }
}

/// A text that lives until the next call.
const char* keep(std::string text) {
  static std::string kept_text;
  kept_text = std::move(text);
  return kept_text.c_str();
}

}  // namespace ptx

// Hidden, so that no libcudart of the process comes before them.
extern "C" {

// --- what nvcc's host code calls -----------------------------------------------------------------

void** __cudaRegisterFatBinary(void* wrapper) {
  static void* handle;
  ptx::load(*reinterpret_cast<const uint8_t**>(static_cast<char*>(wrapper) + 8));
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterFunction(void**, const char* stub, char*, const char* name, int, void*, void*,
                            void*, void*, int*) {
  ptx::kernels_by_stub()[stub] = ptx::kernels().at(name);
}
unsigned __cudaPushCallConfiguration(ptx::Size grid, ptx::Size threads, size_t shared,
                                     void* stream) {
  ptx::pushed.push_back({grid, threads, shared, stream});
  return 0;
}
int __cudaPopCallConfiguration(ptx::Size* grid, ptx::Size* threads, size_t* shared, void** stream) {
  const ptx::Pushed last = ptx::pushed.back();
  ptx::pushed.pop_back();
  *grid = last.grid, *threads = last.threads, *shared = last.shared, *stream = last.stream;
  return 0;
}
int __cudaGetKernel(const void** kernel, const void* stub) {
  *kernel = stub;
  return 0;
}
int __cudaLaunchKernel(const void* stub, ptx::Size grid, ptx::Size threads, void** arguments,
                       size_t shared, void* stream) {
  return ptx::launch(stub, grid, threads, arguments, shared, stream);
}

// --- what our host code calls --------------------------------------------------------------------

int cudaGetDevice(int* device) {
  *device = ptx::current_device;
  return 0;
}
int cudaSetDevice(int device) {
  if (device < 0 || device >= ptx::settings.devices) {
    return ptx::fail(ptx::kInvalidDevice, "invalid device ordinal");
  }
  ptx::current_device = device;
  return 0;
}
int cudaGetLastError() { return std::exchange(ptx::last_error, ptx::kSuccess); }
const char* cudaGetErrorString(int) { return ptx::error_text.c_str(); }
int cudaDeviceGetAttribute(int* value, int attribute, int) {
  constexpr int multiprocessors = 16, shared_limit = 97;
  if (attribute != multiprocessors && attribute != shared_limit) {
    return ptx::fail(ptx::kInvalidValue, "an attribute that the interpreter does not know");
  }
  *value = static_cast<int>(attribute == shared_limit ? ptx::settings.shared_limit
                                                      : ptx::settings.multiprocessors);
  return 0;
}
/// The name alone, which comes first.
int cudaGetDeviceProperties(char* properties, int) {
  std::snprintf(properties, 256, "PTX on a CPU");
  return 0;
}
int cudaFuncSetAttribute(const void* stub, int attribute, int value) {
  constexpr int dynamic_limit = 8;
  if (attribute != dynamic_limit || value > ptx::settings.shared_limit) {
    return ptx::fail(ptx::kInvalidValue, "invalid argument");
  }
  ptx::kernels_by_stub().at(stub)->dynamic_limit = std::max(48 * 1024, value);
  return 0;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t,
                                                           unsigned) {
  *blocks = 1;
  return 0;
}

}  // extern "C"

// --- what ptx_device.py calls --------------------------------------------------------------------

#define API extern "C" __attribute__((visibility("default")))

/// Changes a setting; returns its value before.
API int64_t ptx_set(const char* name, int64_t value) {
  std::map<std::string, int64_t*> places = {{"order", &ptx::settings.order},
                                            {"inexact", &ptx::settings.inexact},
                                            {"junk", &ptx::settings.junk},
                                            {"devices", &ptx::settings.devices},
                                            {"multiprocessors", &ptx::settings.multiprocessors},
                                            {"shared_limit", &ptx::settings.shared_limit}};
  return std::exchange(*places.at(name), value);
}
API void ptx_allow(uint64_t start, uint64_t end) { ptx::allow(start, end); }
API void ptx_forget(uint64_t start, uint64_t end) { ptx::forget(start, end); }
API void ptx_on_launch(ptx::OnLaunch call) { ptx::on_launch = call; }
/// Runs a launch that was kept; returns what went wrong, or nothing.
API const char* ptx_replay(int64_t number) {
  return ptx::run(ptx::kept.at(number)) == 0 ? "" : ptx::error_text.c_str();
}
/// Problems since the last call, one a line.
API const char* ptx_problems() {
  std::string text;
  for (const auto& [_, words] : ptx::problems) text += words + "\n";
  ptx::problems.clear();
  return ptx::keep(text);
}
/// Of each kernel: launches and name.
API const char* ptx_kernels() {
  std::string text;
  for (const auto& [name, kernel] : ptx::kernels()) {
    text += std::to_string(kernel->launches) + " " + name + "\n";
  }
  return ptx::keep(text);
}
/// Of each instruction of a kernel that has been launched: how often it ran, and its text.
API const char* ptx_instructions(const char* kernel) {
  std::string text;
  for (const ptx::Instruction& one : ptx::kernels().at(kernel)->code) {
    text += std::to_string(one.runs) + " " + one.text + "\n";
  }
  return ptx::keep(text);
}
/// Puts another instruction in a place of a kernel's code; empty text does nothing. Returns what
/// is wrong with it, or nothing.
API const char* ptx_replace(const char* kernel, int64_t place, const char* text) {
  try {
    ptx::Kernel& changed = *ptx::kernels().at(kernel);
    changed.code.at(place) = ptx::instruction_of(changed, text);
    return "";
  } catch (const std::exception& error) {
    return ptx::keep(error.what());
  }
}
