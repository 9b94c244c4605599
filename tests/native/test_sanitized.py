"""The compiled engines under AddressSanitizer and UBSan: every function, odd sizes, memory of exact size.

Parts of an engine's scratch memory end at walls there, see csrc/fused/cpu/arena.h. Planted
bugs show that accesses out of bounds, or out of a part, do not pass.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import CSRC, TESTS, compile_cpp

SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fopenmp")
#: Headers of GCC 12 leave the masked-out operand of intrinsics undefined, and warn of it.
AVX512 = ("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma", "-Wno-uninitialized",
          "-Wno-maybe-uninitialized")  # fmt: skip
#: Engines and their options, as in CMakeLists.txt.
PORTABLE = {"portable": ()}
X86 = {
    **PORTABLE,
    "avx2": ("-mavx2", "-mfma"),
    "avx512": AVX512,
    "avx512bf16": (*AVX512, "-mavx512bf16"),
}
CALLS_OF_AN_ENGINE = 6 * 22


@dataclass(frozen=True)
class Bug:
    """A wrong line in a file of csrc/fused/cpu."""

    file: str
    right: str
    wrong: str


BUGS = {
    "too little scratch memory": Bug("tiles.h", "i < work.threads; ++i) carve",
                                     "i < work.threads / 2; ++i) carve"),
    "a part too small": Bug("mlp.h", "width > outer ? width", "width < outer ? width"),
    "a tangent past its layer": Bug("ode.h", "rows * width);", "rows * width + kLanes);"),
    "cosines without a bound": Bug("embedding.h", "{of_cosine, width, width, 2 * width, false}",
                                   "{of_cosine, width, 2 * width, 2 * width, false}"),
    "a row too many": Bug("regression.h", "m < rows.count; ++m) {\n    float*",
                          "m <= rows.count; ++m) {\n    float*"),
}  # fmt: skip


def probe(folder: Path, engines: dict[str, tuple[str, ...]], bug: Bug | None = None) -> Path:
    """tests/native/engines_probe.cpp with some engines, built from a copy of csrc."""
    csrc = folder / "csrc"
    shutil.copytree(CSRC, csrc)
    if bug is not None:
        path = csrc / "fused" / "cpu" / bug.file
        source = path.read_text()
        assert source.count(bug.right) == 1, "the place to change is gone"
        path.write_text(source.replace(bug.right, bug.wrong))
    common = ("-O1", *SANITIZERS, "-Wno-unknown-pragmas", f"-I{csrc}")
    if len(engines) > 1:
        common += ("-DDIFFFLOW_X86",)
    units = {csrc / "fused" / "cpu" / f"{name}.cpp": flags for name, flags in engines.items()}
    units[TESTS / "native" / "engines_probe.cpp"] = ()

    def compiled(unit: tuple[Path, tuple[str, ...]]) -> Path:
        return compile_cpp([unit[0]], folder / f"{unit[0].stem}.o", ["-c", *common, *unit[1]])

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compiled, units.items()))
    return compile_cpp(objects, folder / "probe", SANITIZERS)


def run(program: Path) -> subprocess.CompletedProcess[str]:
    env = {"ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run(
        [str(program)], capture_output=True, text=True, check=False, timeout=120, env=env
    )


def test_the_portable_engine_stays_in_its_memory(tmp_path: Path) -> None:
    done = run(probe(tmp_path, PORTABLE))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{CALLS_OF_AN_ENGINE} calls\n"


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="engines of x86")
def test_all_engines_stay_in_their_memory(tmp_path: Path) -> None:
    done = run(probe(tmp_path, X86))
    assert done.returncode == 0, done.stderr
    calls = int(done.stdout.split()[0])
    assert calls in {CALLS_OF_AN_ENGINE * engines for engines in range(1, 5)}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_named(tmp_path: Path, name: str) -> None:
    done = run(probe(tmp_path, PORTABLE, BUGS[name]))
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
