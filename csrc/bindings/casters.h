// Conversion of tuples from Python to structs: Target, Number and NoiseSource. All other arguments
// have named fields (problems.h).
#pragma once

#include <pybind11/pybind11.h>

#include "ops.h"

namespace pybind11 {
namespace detail {

/// Reads the entries of a tuple into variables; false if number or types differ.
template <typename... Parts>
bool read_tuple(handle source, bool convert, Parts&... parts) {
  PyObject* const tuple = source.ptr();
  if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != sizeof...(Parts)) return false;
  Py_ssize_t next = 0;
  const auto read = [&](auto& part) {
    using Part = std::remove_reference_t<decltype(part)>;
    make_caster<Part> caster;
    if (!caster.load(PyTuple_GET_ITEM(tuple, next++), convert)) return false;
    part = cast_op<Part>(caster);
    return true;
  };
  return (read(parts) && ...);
}

/// As functional.core.target makes it.
template <>
struct type_caster<diffflow::Target> {
  PYBIND11_TYPE_CASTER(diffflow::Target, const_name("Target"));

  bool load(handle source, bool convert) {
    return read_tuple(source, convert, value.device, value.stream, value.types, value.samples,
                      value.elements);
  }
};

/// As functional.core.number makes it.
template <>
struct type_caster<diffflow::ops::Number> {
  PYBIND11_TYPE_CASTER(diffflow::ops::Number, const_name("Number"));

  bool load(handle source, bool convert) {
    return read_tuple(source, convert, value.value, value.address);
  }
};

/// As functional.noise.noise_source makes it.
template <>
struct type_caster<diffflow::NoiseSource> {
  PYBIND11_TYPE_CASTER(diffflow::NoiseSource, const_name("Noise"));

  bool load(handle source, bool convert) {
    diffflow::Address key;
    if (!read_tuple(source, convert, value.seed, value.stream, value.purpose, value.step,
                    value.sample_offset, key)) {
      return false;
    }
    value.key_from_memory = diffflow::pointer<const int64_t>(key);
    return true;
  }
};

}  // namespace detail
}  // namespace pybind11
