"""What nvcc made of the kernels: no spills, no FP64 in float32, nothing fused, wide access.

The rules below hold for the built module; the planted kernels show that each rule can fail.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import pytest
import sass
from helpers import CSRC

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
PTX = "compute_120"
#: What kernels with planted defects are compiled for; newer ones spill in other places.
PLANTED_FOR = ("sm_80", "sm_90")
#: Instructions that four normals may take of a thread, from its index to the store.
NORMALS = 250
#: Fused multiply-adds of two normals: two steps of a square root, and two of exact products.
FUSED_OF_ROOT = 4
T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """What the kernels whose names match `pattern` must keep to.

    Arguments:
        registers: Most registers a thread: 64 let a multiprocessor hold 1,024 threads.
        loads, stores: At least so many 16-byte accesses to global memory: one for each tensor that
            the kernel reads or writes by the quad.
    """

    pattern: str
    registers: int = 64
    loads: int = 0
    stores: int = 0


#: 16-byte loads and stores of kernels, where tensors of networks are float32, and where they are
#: half: those move 8 bytes at a time.
WIDE = {
    "for_each_kernel<diffflow::EmStep": ((2, 1), (1, 1)),
    "for_each_kernel<diffflow::BackwardResidual": ((4, 1), (2, 1)),
    "for_each_kernel<diffflow::ResidualVjp": ((1, 4), (1, 2)),
    "for_each_kernel<diffflow::ReverseStep": ((3, 1), (1, 1)),
    "for_each_kernel<diffflow::AffineStep": ((3, 1), (1, 1)),
    "for_each_kernel<diffflow::AdjointStepFixedG": ((8, 4), (6, 2)),
    "reduce_kernel<diffflow::ResidualCost": ((4, 0), (2, 0)),
    "reduce_kernel<diffflow::ResidualCostVjp": ((4, 4), (2, 2)),
    "reduce_kernel<diffflow::AdjointStepLearnedG": ((8, 4), (6, 2)),
}

# The first match counts. float64 takes two accesses, and is not counted.
RULES = (
    Rule(r"\bdouble\b", registers=128),
    # One block a multiprocessor, whose shared memory a network fills.
    Rule(r"diffflow::gpu::", registers=128),
    Rule(r"for_each_kernel<diffflow::Normal<float>", stores=1),
    Rule(r"for_each_kernel<diffflow::Perturb<float>", loads=1, stores=2),
    Rule(r"reduce_kernel<diffflow::NoiseDot<float>", loads=1),
    *(Rule(f"{name}<float, float>", 64, *full) for name, (full, _) in WIDE.items()),
    *(Rule(f"{name}<", 64, *half) for name, (_, half) in WIDE.items()),
    Rule(r""),
)

# Kernels that may fuse a multiply and an add, because they ask for it: networks, not noise.
MAY_FUSE = r"diffflow::gpu::"


def rule_for(kernel: str) -> Rule:
    return next(rule for rule in RULES if re.search(rule.pattern, kernel))


def machine_defects(kernel: str, usage: sass.Usage, opcodes: list[str], rule: Rule) -> list[str]:
    """The rules that one kernel's machine code breaks, in words."""
    loads, stores = (sass.count_wide(opcodes, operation) for operation in ("LDG", "STG"))
    spills = usage.spill_stores + usage.spill_loads
    checks = {
        f"stack frame of {usage.stack} bytes": usage.stack > 0,
        f"spills of {spills} bytes": spills > 0,
        f"local memory: {sorted(sass.local_memory(opcodes))}": sass.local_memory(opcodes),
        f"FP64 in float32 code: {sorted(sass.fp64(opcodes))}": "double" not in kernel
        and sass.fp64(opcodes),
        f"{usage.registers} registers, at most {rule.registers}": usage.registers > rule.registers,
        f"{loads} 16-byte loads, at least {rule.loads}": loads < rule.loads,
        f"{stores} 16-byte stores, at least {rule.stores}": stores < rule.stores,
    }
    return [text for text, broken in checks.items() if broken]


# The built module


@cache
def module_path() -> Path:
    try:
        spec = find_spec("diffflow_ext._core")
    except ImportError as error:
        pytest.skip(f"diffflow_ext cannot be imported: {error}")
    if spec is None or spec.origin is None:
        pytest.skip("diffflow_ext._core is not built")
    path = Path(spec.origin)
    if not sass.has_kernels(path):
        pytest.skip(f"{path.name} was built without CUDA kernels")
    if sass.find_tool("cuobjdump") is None:
        pytest.skip("cuobjdump not found: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    return path


@cache
def opcodes_of(arch: str) -> dict[str, list[str]]:
    return sass.instructions(module_path(), arch)


def test_module_holds_all_architectures() -> None:
    assert {*ARCHITECTURES, PTX} <= sass.architectures(module_path())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_module_machine_code(arch: str) -> None:
    usage = sass.resource_usage(module_path(), arch)
    opcodes = opcodes_of(arch)
    assert usage
    assert usage.keys() == opcodes.keys()
    defects = {
        kernel: found
        for kernel in usage
        if (found := machine_defects(kernel, usage[kernel], opcodes[kernel], rule_for(kernel)))
    }
    assert not defects, "\n".join(f"{kernel}: {found}" for kernel, found in defects.items())


def test_module_arithmetic_is_not_fused() -> None:
    """Noise has the same bits on all devices only if every product is rounded before its sum.

    PTX shows it exactly. SASS cannot: divisions and square roots expand to FFMA there. Where
    normals are drawn, `square_root_of_normal` and `add_exact` of csrc/math fuse what is exact.
    """
    programs = sass.ptx(module_path())
    assert programs
    for kernel, opcodes in programs.items():
        if re.search(MAY_FUSE, kernel):
            continue
        assert sass.fusable(opcodes) <= {"fma.rn.f32"}, kernel
        roots = opcodes.count("rsqrt.approx.ftz.f32")
        assert opcodes.count("fma.rn.f32") == FUSED_OF_ROOT * roots, kernel


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_normals_take_few_instructions(arch: str) -> None:
    opcodes = planted(opcodes_of(arch), r"for_each_kernel<diffflow::Normal<float>")
    # Nothing else runs: no subroutine, and no loop but the one behind the kernel's end.
    assert not [op for op in opcodes if op.startswith("CALL")]
    assert path_of_whole_quad(opcodes) <= NORMALS


def path_of_whole_quad(opcodes: list[str]) -> int:
    """Instructions up to the end behind the 16-byte store, without narrow stores before it."""
    stores = [i for i, op in enumerate(opcodes) if op.startswith("STG")]
    wide = next(i for i in stores if ".128" in opcodes[i])
    length = opcodes.index("EXIT", wide) + 1
    if stores[0] == wide:
        return length
    before, between = opcodes[: stores[0]], opcodes[:wide]
    branch = max(i for i, op in enumerate(before) if op == "BRA")
    end = max(i for i, op in enumerate(between) if op == "EXIT")
    return length - (end - branch)


def test_every_rule_applies() -> None:
    """A rule that matches no kernel checks nothing: its kernel was renamed or is gone."""
    kernels = opcodes_of(ARCHITECTURES[0])
    used = {rule_for(kernel).pattern for kernel in kernels}
    assert [rule.pattern for rule in RULES[:-1] if rule.pattern not in used] == []


# Planted kernels

PLANTED = """
template <typename T>
__global__ void clean(const float4* in, T* out, float scale) {
  const float4 v = in[threadIdx.x];
  out[threadIdx.x] = T{v.x * scale + v.y, v.y * scale + v.z, v.z / scale, sqrtf(v.w)};
}
template __global__ void clean<float4>(const float4*, float4*, float);

__global__ void narrow(const float* in, float* out) {
  for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = in[4 * threadIdx.x + i];
}

__global__ void indexed(const float* in, const int* which, float* out) {
  float local[16];
  for (int i = 0; i < 16; ++i) local[i] = in[i];
  for (int i = 0; i < 64; ++i) local[which[i]] += in[i];
  out[threadIdx.x] = local[which[threadIdx.x]];
}

__global__ void promoted(const float* in, float* out) { out[threadIdx.x] = in[threadIdx.x] * 0.1; }

__global__ void of_double(const double* in, double* out) { out[threadIdx.x] = 3 * in[0]; }

__global__ void __launch_bounds__(1024, 2) spilled(const float* in, float* out) {
  float v[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) v[i] = in[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) out[i * 1024 + threadIdx.x] = v[i] * v[63 - i];
}

__global__ void hungry(const float* in, float* out) {
  float v[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) v[i] = in[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 96; ++i) out[i * 1024 + threadIdx.x] = v[i] * v[(i + 1) % 96];
}

__global__ void shares(float* out) {
  __shared__ float slot[32];
  slot[threadIdx.x] = out[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = slot[31 - threadIdx.x];
}

__global__ void asks_to_fuse(float* out) { out[0] = fmaf(out[1], out[2], out[3]); }
"""


@dataclass(frozen=True)
class Compiled:
    binary: Path
    report: str


Compile = Callable[[bool], Compiled]


@pytest.fixture(scope="session")
def compile_planted(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc not found")
    if sass.find_tool("cuobjdump") is None:
        pytest.skip("cuobjdump not found: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted.cu").write_text(PLANTED)

    @cache
    def compiled(fmad: bool) -> Compiled:
        binary = folder / f"fmad-{fmad}.o"
        targets = [f"-gencode=arch=compute_{a[3:]},code={a}" for a in PLANTED_FOR]
        targets.append(f"-gencode=arch={PTX},code={PTX}")
        options = ["-std=c++17", "-O3", f"--fmad={str(fmad).lower()}", "-Xptxas=-v", *targets]
        command = [nvcc, *options, "-c", str(folder / "planted.cu"), "-o", str(binary)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return Compiled(binary, done.stdout + done.stderr)

    return compiled


def planted(names: dict[str, T], kernel: str) -> T:
    """The entry of the kernel called `kernel`, whose full name holds its parameters."""
    return next(value for name, value in names.items() if re.search(rf"\b{kernel}(?!\w)", name))


def planted_defects(compiled: Compiled, arch: str, kernel: str, rule: Rule) -> list[str]:
    usage = planted(sass.ptxas_usage(compiled.report, arch), kernel)
    opcodes = sass.instructions(compiled.binary, arch)
    name = next(name for name in opcodes if re.search(rf"\b{kernel}\b", name))
    return machine_defects(name, usage, opcodes[name], rule)


def test_binary_without_kernels_is_known(tmp_path: Path) -> None:
    plain = tmp_path / "plain.so"
    plain.write_bytes(b"\x7fELF.text")
    assert not sass.has_kernels(plain)


@pytest.mark.parametrize("arch", PLANTED_FOR)
def test_readers_agree(compile_planted: Compile, arch: str) -> None:
    compiled = compile_planted(False)
    from_binary = sass.resource_usage(compiled.binary, arch)
    from_report = sass.ptxas_usage(compiled.report, arch)
    assert sass.has_kernels(compiled.binary)
    assert sass.architectures(compiled.binary) == {*PLANTED_FOR, PTX}
    assert len(from_binary) == 9
    assert from_binary.keys() == from_report.keys() == sass.ptx(compiled.binary).keys()
    assert from_binary.keys() == sass.instructions(compiled.binary, arch).keys()
    for kernel, usage in from_binary.items():
        report = from_report[kernel]
        assert (usage.registers, usage.stack) == (report.registers, report.stack)
    assert planted(from_report, "shares").shared >= 128
    assert planted(from_binary, "shares").shared >= 128
    assert "void clean<float4>(float4 const*, float4*, float)" in from_binary


@pytest.mark.parametrize("arch", PLANTED_FOR)
def test_clean_kernels_pass(compile_planted: Compile, arch: str) -> None:
    compiled = compile_planted(False)
    assert planted_defects(compiled, arch, "clean", Rule("", loads=1, stores=1)) == []
    assert planted_defects(compiled, arch, "of_double", Rule("")) == []
    assert planted_defects(compiled, arch, "shares", Rule("")) == []


@pytest.mark.parametrize("arch", PLANTED_FOR)
@pytest.mark.parametrize(
    ("kernel", "rule", "words"),
    [
        ("indexed", Rule(""), ["stack frame", "local memory"]),
        ("promoted", Rule(""), ["FP64"]),
        ("spilled", Rule(""), ["stack frame", "spills", "local memory"]),
        ("hungry", Rule(""), ["registers"]),
        ("narrow", Rule("", loads=1, stores=1), ["16-byte loads", "16-byte stores"]),
    ],
)
def test_planted_defects_are_seen(
    compile_planted: Compile, arch: str, kernel: str, rule: Rule, words: list[str]
) -> None:
    defects = planted_defects(compile_planted(False), arch, kernel, rule)
    assert len(defects) == len(words)
    for defect, word in zip(defects, words, strict=True):
        assert word in defect


def test_fused_arithmetic_is_seen(compile_planted: Compile) -> None:
    exact = sass.ptx(compile_planted(False).binary)
    assert [k for k, opcodes in exact.items() if sass.fusable(opcodes)] == ["asks_to_fuse(float*)"]
    assert "mul.rn.f32" in planted(exact, "clean")
    contracted = sass.ptx(compile_planted(True).binary)
    assert "fma.rn.f32" in sass.fusable(planted(contracted, "clean"))
    assert "mul.f32" in sass.fusable(planted(contracted, "hungry"))


# The square root of normals

ROOTS = """
#include "math/host_device.h"
using diffflow::square_root_of_normal;
__global__ void of_nvcc(float* x) { x[threadIdx.x] = sqrtf(x[threadIdx.x]); }
__global__ void ours(float* x) { x[threadIdx.x] = square_root_of_normal(x[threadIdx.x]); }
"""
STEPS = ["MUFU.RSQ", "FMUL", "FMUL", "FFMA", "FFMA"]


def term_of_root(lines: list[tuple[str, str]]) -> str:
    """What the first steps that begin with a guess of 1 / sqrt(x) compute, as a term of x."""
    steps = [(op.removesuffix(".FTZ"), text.replace(".reuse", "")) for op, text in lines]
    steps = [(op, text) for op, text in steps if op in STEPS][: len(STEPS)]
    assert [op for op, _ in steps] == STEPS
    to, terms = "", {steps[0][1].split(", ")[1]: "x"}
    for op, text in steps:
        to, *factors = text.split(", ")
        known = [re.sub(r"R\d+", lambda found: terms[found[0]], factor) for factor in factors]
        terms[to] = f"{op}({', '.join(known)})"
    return terms[to]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_square_root_is_that_of_nvcc(tmp_path: Path, arch: str) -> None:
    """For numbers that need no scaling; so its bits are those of sqrtf, which rounds correctly."""
    nvcc = shutil.which("nvcc")
    if nvcc is None or sass.find_tool("cuobjdump") is None:
        pytest.skip("needs nvcc and cuobjdump")
    (tmp_path / "roots.cu").write_text(ROOTS)
    options = ["-std=c++17", "--fmad=false", f"-I{CSRC}", f"-arch={arch}", "-cubin"]
    command = [nvcc, *options, str(tmp_path / "roots.cu"), "-o", str(tmp_path / "roots.cubin")]
    subprocess.run(command, check=True)
    kernels = sass.operations(tmp_path / "roots.cubin", arch)
    ours, theirs = (term_of_root(planted(kernels, name)) for name in ("ours", "of_nvcc"))
    assert ours == theirs
    assert ours.count("MUFU.RSQ(x)") == 4
