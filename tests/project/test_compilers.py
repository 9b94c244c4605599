"""Compilers and their options: arithmetic stays that of IEEE 754, and what fails is left out.

Builds go through CMake alone. Those of options are of unoptimised code without code for AVX,
which takes seconds; those of compilers are as users have them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pybind11
import pytest
from helpers import ROOT

from diffflow_ext.functional import reference
from diffflow_ext.functional.core import build_info, core

CHECK = ROOT / "csrc" / "cmake" / "check_arithmetic.py"
# What a fresh process finds in a module; 0x1p-1074 is the smallest number above 0.
FACTS = f"""
import json, runpy, sys
check = runpy.run_path({str(CHECK)!r})
core = check["load"](sys.argv[1])
zero, smallest = 0.0, float.fromhex("0x1p-1074")
refusal = ""
if "avx512bf16" not in core.instructions():
    try:
        core.run_paths("avx512bf16", core.PathsProblem())
    except ValueError as error:
        refusal = str(error)
print(json.dumps({{
    "normals": check["normals"](core).hex(), "subnormals": smallest + smallest > zero,
    "instructions": core.instructions(), "refusal": refusal, **core.build_info(),
}}))
"""


@pytest.fixture
def wrapper(tmp_path: Path) -> Path:
    """A C++ compiler that crashes on the code for AVX."""
    return compiler(tmp_path, 'case "$*" in *"-mavx"*) echo crashed >&2; kill -SEGV $$;; esac')


def compiler(folder: Path, before: str, after: str = "") -> Path:
    """Writes a C++ compiler that first runs some lines of shell, and adds options at the end."""
    path = folder / "wrapper"
    path.write_text(f'#!/bin/sh\n{before}\nexec {shutil.which("c++")} "$@" {after}\n')
    path.chmod(0o755)
    return path


def build(
    folder: Path, *options: str, fails: bool = False, target: str = "all", **settings: str | Path
) -> str:
    """Configures and builds in a folder; returns what was printed."""
    hidden = re.compile(r"DIFFFLOW_|CMAKE_|CUDA|\w*FLAGS$|CXX$|CC$")
    env = {name: value for name, value in os.environ.items() if not hidden.match(name)}
    configure = [
        *("cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DDIFFFLOW_CUDA=OFF"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
        *(f"-DDIFFFLOW_VERSION={build_info()['version']}", *options),
    ]
    text, code = "", 0
    for command in (configure, ["cmake", "--build", folder, "--target", target]):
        done = subprocess.run(
            [str(part) for part in command], text=True, check=False, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env=env | {k: str(v) for k, v in settings.items()},
        )  # fmt: skip
        text, code = text + done.stdout, code or done.returncode
    assert (code != 0) == fails, text[-6000:]
    return text


def module_in(folder: Path) -> Path:
    (path,) = folder.glob("_core.*.so")
    return path


def facts(folder: Path) -> dict:
    command = [sys.executable, "-c", FACTS, str(module_in(folder))]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


# --- an independent truth: numpy rounds after each operation -------------------------------------


def float32_polynomial(x: np.ndarray, *coefficients: float) -> np.ndarray:
    total = np.full_like(x, np.float32(coefficients[0]))
    for coefficient in coefficients[1:]:
        total = total * x + np.float32(coefficient)
    return total


def float32_log(u: np.ndarray) -> np.ndarray:
    """The formula of csrc/math/normal.h."""
    shifted = u.view(np.int32) - np.int32(0x3F3504F3)
    f = ((shifted & 0x007FFFFF) + 0x3F3504F3).astype(np.int32).view(np.float32) - np.float32(1)
    e, square = (shifted >> 23).astype(np.float32), f * f
    p = float32_polynomial(
        f, 0.06746619194746017, -0.11675646156072617, 0.11888168752193451, -0.1240558996796608,
        0.14219552278518677, -0.1666799634695053, 0.2000211924314499, -0.25000008940696716,
        0.3333331346511841,
    )  # fmt: skip
    small = f * square * p + e * np.float32(-2.12194440e-4) - np.float32(0.5) * square
    return e * np.float32(0.693359375) + (f + small)


def float32_turn(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """cos(pi x) and sin(pi x) by the formula of csrc/math/normal.h."""
    quarter = (x * np.float32(2) + np.float32(0.5)).astype(np.int32)
    r = x - quarter.astype(np.float32) * np.float32(0.5)
    square = r * r
    p = float32_polynomial(
        square, -0.5890786647796631, 2.549767255783081, -5.167707920074463, -9.707895998189997e-08
    )
    q = float32_polynomial(
        square, 0.2314295470714569, -1.3350584506988525, 4.0587077140808105, -4.934802055358887
    )
    s, c = r * np.float32(3.1415927410125732) + r * p, np.float32(1) + square * q
    sine, cosine = np.where(quarter & 1, c, s), np.where(quarter & 1, s, c)
    return np.where((quarter + 1) & 2, -cosine, cosine), np.where(quarter & 2, -sine, sine)


def float32_normals() -> bytes:
    """The normals of check_arithmetic.py: seed 1, stream 2, 64 samples of 64 elements."""
    counters = reference.noise_counters(64, 64, code=0, step=0, stream=2, sample_offset=0)
    keys = np.broadcast_to(np.array([1, 0], np.uint64), (*counters.shape[:-1], 2))
    words = reference._philox(counters, keys, 10)
    uniform = (((words >> 9) << 1) + 1).astype(np.float32) * np.float32(2.0**-24)
    radius = np.sqrt(np.float32(-2) * float32_log(np.ascontiguousarray(uniform[..., ::2])))
    cosine, sine = float32_turn(np.float32(2) * uniform[..., 1::2])
    return np.stack([radius * cosine, radius * sine], axis=-1).astype(np.float32).tobytes()


def test_the_known_answer_is_that_of_ieee_arithmetic() -> None:
    (known,) = re.findall(r"^NORMALS = (\w+)$", CHECK.read_text(), re.M)
    assert zlib.crc32(float32_normals()) == int(known, 16)


# --- options -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_options_that_change_arithmetic_are_taken_back(tmp_path: Path, wrapper: Path) -> None:
    fast = "-Ofast -ffast-math -funsafe-math-optimizations -ffp-contract=fast"
    parts = "-fassociative-math -freciprocal-math -ffinite-math-only -fno-signed-zeros"
    text = build(
        tmp_path / "build", "-DCMAKE_BUILD_TYPE=None", CXX=wrapper, LDFLAGS=fast,
        CXXFLAGS=f"{fast} {parts} -march=native -O1",
    )  # fmt: skip
    assert "refused" not in text
    found = facts(tmp_path / "build")
    assert bytes.fromhex(found["normals"]) == float32_normals()
    assert found["subnormals"]


@pytest.mark.slow
@pytest.mark.skipif("avx2" not in core.instructions(), reason="needs FMA")
@pytest.mark.parametrize(
    ("after", "words"),
    [
        ("-ffast-math", "expected IEEE arithmetic, got an option such as -ffast-math"),
        (
            "-O1 -fexpensive-optimizations -mfma -ffp-contract=fast",
            "refused: expected normals with CRC-32 0xe64fef91, got",
        ),
        ('$(case "$*" in *-shared*) echo -ffast-math;; esac)', "refused: expected subnormal"),
    ],
    ids=["everywhere", "contraction", "linking"],
)
def test_what_a_compiler_adds_itself_is_refused(
    tmp_path: Path, wrapper: Path, after: str, words: str
) -> None:
    wrapper.write_text(f"{wrapper.read_text().rstrip()} {after}\n")
    options = "-DCMAKE_BUILD_TYPE=None"
    text = build(tmp_path / "build", options, fails=True, CXX=wrapper)
    assert words in text
    # What was refused stays refused: nothing is taken for finished.
    assert words in build(tmp_path / "build", options, fails=True, CXX=wrapper)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "flags", "named"),
    [
        ("CUDAFLAGS", "-O2 --use_fast_math", "use_fast_math"),
        ("NVCC_APPEND_FLAGS", "-prec-div false", "prec-div false"),
    ],
)
def test_options_of_nvcc_that_change_arithmetic_are_refused(
    tmp_path: Path, variable: str, flags: str, named: str
) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    text = build(
        tmp_path / "build", "-DDIFFFLOW_CUDA=ON", fails=True, **{variable: flags}, CXX="c++"
    )
    words = " ".join(text.split())
    assert f"expected options that keep IEEE arithmetic, got {named}; leave it out" in words


# --- compilers -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif("avx2" not in build_info()["instructions"], reason="of x86")
def test_an_engine_that_does_not_compile_is_left_out(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    crash = 'echo "PLEASE submit a \\"bug\\" report" >&2; kill -SEGV $$'
    cxx = compiler(
        tmp_path, f'case "$*" in *-mavx512bf16*) test -e {broken} && {{ {crash}; }};; esac'
    )
    folder, options = tmp_path / "build", "-DCMAKE_BUILD_TYPE=None"
    text = build(folder, options, CXX=cxx)
    assert "being built WITHOUT its code for avx512bf16: the compiler failed on it" in text
    found = facts(folder)
    assert found["instructions"] == ["avx512", "avx2", "portable"]
    assert found["instructions_left_out"] == dict.fromkeys(
        ("amxbf16", "avx512bf16"), "PLEASE submit a 'bug' report"
    )
    assert found["refusal"] == (
        "instructions: this build has no 'avx512bf16': PLEASE submit a 'bug' report"
    )
    # Our own tests would rather see the error; and what was left out is tried again.
    strict = (options, "-DDIFFFLOW_WERROR=ON")
    failing = "CMakeFiles/cpu_instructions.dir/csrc/fused/cpu/avx512bf16.cpp.o"
    text = build(tmp_path / "strict", *strict, fails=True, target=failing, CXX=cxx)
    assert re.search(rf"^FAILED: .*{failing}", text, re.M)
    broken.unlink()
    assert "WITHOUT its code" not in build(folder, options, CXX=cxx)
    assert facts(folder)["instructions_left_out"] == {}


def test_this_build_has_all_engines() -> None:
    assert not build_info()["instructions_left_out"] or "Clang 16" in build_info()["compiler"]


def other_compilers() -> dict[str, Path]:
    """GCC and clang on PATH, but for the one that has built the module under test."""
    default = os.environ.get("CXX") or "c++"
    known = {Path(shutil.which(default) or default).resolve()}
    found = {}
    for folder in os.environ["PATH"].split(":"):
        for path in sorted(Path(folder).glob("*++*")):
            if re.fullmatch(r"(g|clang)\+\+(-\d+)?", path.name) and path.resolve() not in known:
                known.add(path.resolve())
                found[path.name] = path
    return found


NONE = pytest.param(None, marks=pytest.mark.skip(reason="needs a second g++ or clang++ on PATH"))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(other_compilers()) or [NONE])
def test_every_compiler_builds_a_sound_module(tmp_path: Path, name: str) -> None:
    build(tmp_path / "build", CXX=other_compilers()[name])
    package = tmp_path / "diffflow_ext"
    ignore = shutil.ignore_patterns("_core.*", "__pycache__")
    shutil.copytree(ROOT / "diffflow_ext", package, ignore=ignore)
    shutil.copy2(module_in(tmp_path / "build"), package)
    doctor = subprocess.run(
        [sys.executable, "-m", "diffflow_ext", "doctor"], cwd=tmp_path, check=False, text=True,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert f"build compiler: {'Clang' if 'clang' in name else 'GNU'}" in doctor.stdout
    assert "losses as the adjoint's to" in doctor.stdout
    assert "3 of 3 known answers of Philox4x32-10 hold" in doctor.stdout
    assert bytes.fromhex(facts(tmp_path / "build")["normals"]) == float32_normals()
