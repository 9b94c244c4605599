"""Refuses a module whose arithmetic is not that of IEEE 754; the build runs it at its end.

    python -I -S check_arithmetic.py _core.so

Options such as -ffast-math change losses by 3e-5 and switch subnormal numbers off for the whole
process. CMakeLists.txt takes them back; a wrapper around the compiler may still add them.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import signal
import sys
import zlib
from types import ModuleType

MEND = (
    "The compiler or the linker was given an option such as -ffast-math, -ffp-contract=fast or "
    "-mdaz-ftz which the build could not take back; remove it from the wrapper or the compiler "
    "that CXX names, from CXXFLAGS, CUDAFLAGS and LDFLAGS"
)
#: CRC-32 of the 4,096 normals below, rounded after each multiplication and addition.
NORMALS = 0xE64FEF91


def load(path: str) -> ModuleType:
    """Loads the compiled module alone."""
    spec = importlib.util.spec_from_file_location("diffflow_ext._core", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def normals(core: ModuleType) -> bytes:
    """Returns 64 samples of 64 float32 normals for seed 1, stream 2, purpose 0, step 0."""
    out = (ctypes.c_float * 4096)()
    core.normal((-1, 0, 0, 64, 64), (1, 2, 0, 0, 0, 0), ctypes.addressof(out))
    return bytes(out)


def subnormals_are_on() -> bool:
    """Says whether subnormal results and subnormal operands keep their values."""
    smallest_normal, smallest = sys.float_info.min, 5e-324
    return smallest_normal / 2 > 0 and smallest > 0


def fault(path: str) -> str:
    """Returns what is wrong with the module, "" for nothing."""
    were_on = subnormals_are_on()
    try:
        core = load(path)
    except ImportError:
        if not os.statvfs(path).f_flag & os.ST_NOEXEC:
            raise
        print(f"WARNING: diffflow_ext: the compiled module cannot be tested: {path} is on a file "
              "system mounted noexec")  # fmt: skip
        return ""
    if were_on and not subnormals_are_on():
        return "expected subnormal numbers to stay on when it is loaded, got zeros"
    if (crc := zlib.crc32(normals(core))) != NORMALS:
        return f"expected normals with CRC-32 {NORMALS:#010x}, got {crc:#010x}"
    return ""


def main(path: str) -> int:
    """Checks the module in a process of its own, which it may end; returns the exit code."""
    child = os.fork()
    if child == 0:
        words = fault(path)
        sys.exit(f"diffflow_ext: the compiled module is refused: {words}. {MEND}." if words else 0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == -signal.SIGILL:
        print("WARNING: diffflow_ext: the compiled module cannot be tested here: this processor "
              "lacks instructions that an option such as -march asks for")  # fmt: skip
        return 0
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
