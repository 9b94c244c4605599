"""Reads what nvcc put into a binary: architectures, and by kernel resources, SASS and PTX.

Works on object files, executables and shared libraries, on machines without a GPU. cuobjdump and
nvdisasm come from a CUDA toolkit or from the wheels nvidia-cuda-cuobjdump and
nvidia-cuda-nvdisasm. Kernels are named as C++ names them: `void f<float>(float*, int)`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Usage:
    """What one kernel takes of the device, by thread (registers, bytes of stack) or block."""

    registers: int
    stack: int
    shared: int
    spill_stores: int = 0
    spill_loads: int = 0


def find_tool(name: str) -> Path | None:
    """Looks for a CUDA tool: CUDA_HOME, CUDA_PATH, PATH, then NVIDIA's wheels."""
    homes = [os.environ[var] for var in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(var)]
    folders = [str(Path(home) / "bin") for home in homes]
    found = shutil.which(name, path=os.pathsep.join([*folders, os.environ.get("PATH", "")]))
    if found:
        return Path(found)
    spec = find_spec("nvidia")
    roots = [Path(p) for p in spec.submodule_search_locations or []] if spec else []
    wheels = [path for root in roots for path in sorted(root.glob(f"*/bin/{name}"))]
    return wheels[-1] if wheels else None


def has_kernels(binary: Path) -> bool:
    """Whether nvcc left a section of device code in a host binary."""
    return b".nv_fatbin" in binary.read_bytes()


def architectures(binary: Path) -> set[str]:
    """The embedded targets: `sm_80` for machine code, `compute_90` for PTX."""
    listing = _cuobjdump("-lelf", "-lptx", binary)
    machine = {f"sm_{n}" for n in re.findall(r"\.sm_(\w+)\.cubin", listing)}
    virtual = {f"compute_{n}" for n in re.findall(r"\.(?:sm|compute)_(\w+)\.ptx", listing)}
    return machine | virtual


def resource_usage(binary: Path, arch: str) -> dict[str, Usage]:
    """Registers, stack frame and static shared memory by kernel. Spills are part of the stack."""
    listing = _cuobjdump("-res-usage", "-arch", arch, binary)
    rows = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", listing)
    usages = [Usage(int(reg), int(stack), int(shared)) for _, reg, stack, shared in rows]
    return dict(zip(_demangle([row[0] for row in rows]), usages, strict=True))


def ptxas_usage(report: str, arch: str) -> dict[str, Usage]:
    """The same with spills, from what `nvcc -Xptxas -v` prints."""
    pattern = (
        rf"Compiling entry function '(\S+)' for '{arch}'.*?(\d+) bytes stack frame, "
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)"
    )
    names, usages = [], []
    for row in re.findall(pattern, report, flags=re.DOTALL):
        name, stack, stores, loads, registers, rest = row
        shared = re.search(r"(\d+) bytes smem", rest)
        names.append(name)
        usages.append(
            Usage(
                registers=int(registers),
                stack=int(stack),
                shared=int(shared.group(1)) if shared else 0,
                spill_stores=int(stores),
                spill_loads=int(loads),
            )
        )
    return dict(zip(_demangle(names), usages, strict=True))


def operations(binary: Path, arch: str) -> dict[str, list[tuple[str, str]]]:
    """The machine instructions of each kernel in order: `("FMUL.FTZ", "R3, R2, 0.5")`."""
    listing = _cuobjdump("-sass", "-arch", arch, binary)
    functions = re.split(r"^\s*Function : (\S+)\n", listing, flags=re.MULTILINE)[1:]
    line = r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)\s*([^;]*?)\s*;"
    return _by_kernel(functions, re.compile(line, re.MULTILINE))


def instructions(binary: Path, arch: str) -> dict[str, list[str]]:
    """The same without operands."""
    kernels = operations(binary, arch).items()
    return {kernel: [opcode for opcode, _ in lines] for kernel, lines in kernels}


def ptx(binary: Path) -> dict[str, list[str]]:
    """The embedded PTX of each kernel, without operands: `mul.rn.f32`."""
    listing = _cuobjdump("-ptx", binary)
    functions = re.split(
        r"^\s*(?:\.visible |\.weak )*\.entry (\w+)\(", listing, flags=re.MULTILINE
    )[1:]
    opcode = re.compile(r"^\s*(?:@!?%\w+\s+)?([a-z][\w.:]*)(?=[\s;])", re.MULTILINE)
    return _by_kernel(functions, opcode)


def fp64(opcodes: list[str]) -> set[str]:
    """The double-precision instructions among SASS opcodes, conversions included."""
    return {op for op in opcodes if re.match(r"D(ADD|MUL|FMA|SETP|MNMX|MMA)\b", op)} | {
        op for op in opcodes if ".F64" in op or "64H" in op
    }


def local_memory(opcodes: list[str]) -> set[str]:
    """Loads and stores of a thread's stack among SASS opcodes."""
    return {op for op in opcodes if re.match(r"(LDL|STL)\b", op)}


def fusable(opcodes: list[str]) -> set[str]:
    """PTX operations that are fused multiply-adds or that ptxas may still fuse into some.

    Without contraction nvcc writes `mul.rn.f32`, which PTX forbids to fuse; `mul.f32` may be.
    """
    return {
        op
        for op in opcodes
        if re.fullmatch(r"(fma|mad)\..*f(32|64)|(mul|add|sub)(\.ftz)?\.f(32|64)", op)
    }


def count_wide(opcodes: list[str], operation: str) -> int:
    """Number of 16-byte accesses to global memory; `operation` is LDG or STG."""
    return sum(re.match(rf"{operation}\.E\b.*\.128\b", op) is not None for op in opcodes)


def _by_kernel(split: list[str], line: re.Pattern[str]) -> dict[str, list[Any]]:
    names, bodies = split[::2], split[1::2]
    return dict(zip(_demangle(names), map(line.findall, bodies), strict=True))


def _demangle(names: list[str]) -> list[str]:
    tool = find_tool("cu++filt") or find_tool("c++filt")
    if tool is None or not names:
        return names
    text = _run([str(tool)], stdin="\n".join(names))
    return [
        re.sub(r">(?: >)+", lambda m: m[0].replace(" ", ""), line) for line in text.splitlines()
    ]


def _cuobjdump(*arguments: str | Path) -> str:
    tool = find_tool("cuobjdump")
    if tool is None:
        raise RuntimeError(
            "cuobjdump: not found; install a CUDA toolkit, or the wheels "
            "nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm"
        )
    return _run([str(tool), *map(str, arguments)])


def _run(command: list[str], stdin: str | None = None) -> str:
    nvdisasm = find_tool("nvdisasm")
    folders = [str(nvdisasm.parent)] if nvdisasm else []
    path = os.pathsep.join([*folders, os.environ.get("PATH", "")])
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
