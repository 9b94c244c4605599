"""The compiled engines under AddressSanitizer and UBSan, on odd sizes and memory of exact size.

Parts of an engine's scratch memory end at walls there, see csrc/fused/cpu/arena.h. Planted
bugs show that accesses out of bounds, or out of a part, do not pass.
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
from helpers import AVX512, CSRC, OPTIONS_OF, TESTS, compile_cpp
from planted import Bug, copy_with, run

SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fopenmp")
#: Engines and their options, as in CMakeLists.txt.
Engines = dict[str, tuple[str, ...]]
PORTABLE: Engines = {"portable": ()}
X86: Engines = {
    **OPTIONS_OF,
    "avx512bf16": (*AVX512, "-mavx512bf16"),
    # Its tile loads and stores are assembly, which AddressSanitizer does not see.
    "amxbf16": (*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
}
CALLS_OF_AN_ENGINE = 6 * 22


CPU = "fused/cpu/"
BUGS = {
    "too little scratch memory": Bug(CPU + "tiles.h", "i < work.threads; ++i) carve",
                                     "i < work.threads / 2; ++i) carve"),
    "a part too small": Bug(CPU + "mlp.h", "width > outer ? width", "width < outer ? width"),
    "a tangent past its layer": Bug(CPU + "ode.h", "rows * width);", "rows * width + kLanes);"),
    "cosines without a bound": Bug(CPU + "embedding.h",
                                   "{of_cosine, width, width, 2 * width, false}",
                                   "{of_cosine, width, 2 * width, 2 * width, false}"),
    "a row too many": Bug(CPU + "regression.h", "m < rows.count; ++m) {\n    const float* delta",
                          "m <= rows.count; ++m) {\n    const float* delta"),
}  # fmt: skip

COMMON = ("-O1", *SANITIZERS, "-Wno-unknown-pragmas")
Build = Callable[[Path, tuple[str, ...]], Path]


@pytest.fixture(scope="session")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Compiles sources as they are, each once."""
    folder = tmp_path_factory.mktemp("sanitized")
    count = itertools.count()

    @cache
    def build(source: Path, flags: tuple[str, ...]) -> Path:
        to = folder / f"{source.stem}{next(count)}.o"
        return compile_cpp([source], to, ["-c", *COMMON, f"-I{CSRC}", *flags])

    return build


def probe(folder: Path, unchanged: Build, engines: Engines, bug: Bug | None = None) -> Path:
    """tests/native/engines_probe.cpp with some engines, built from a copy of csrc with a bug."""
    define = ("-DDIFFFLOW_X86",) if len(engines) > 1 else ()
    units = {CSRC / "fused" / "cpu" / f"{n}.cpp": (*define, *f) for n, f in engines.items()}
    # Of the ops only the tables are there: no probe calls them.
    no_ops = (*define, '-DDIFFFLOW_LEFT_OUT="not built"')
    ops = [(CSRC / "ops" / f"{n}.cpp", no_ops) for n in engines if "bf16" not in n]
    others = [*ops, (TESTS / "native" / "engines_probe.cpp", define)]
    with ThreadPoolExecutor() as pool:
        if bug is None:
            objects = list(pool.map(lambda unit: unchanged(*unit), [*units.items(), *others]))
        else:
            engine = copy_with(folder, bug) / "fused" / "cpu" / "portable.cpp"
            objects = [compile_cpp([engine], folder / "portable.o", ["-c", *COMMON])]
            objects += [unchanged(*unit) for unit in others]
    return compile_cpp(objects, folder / "probe", SANITIZERS)


X86_ALONE = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="of x86")


@pytest.mark.parametrize(
    "engines", [PORTABLE, pytest.param(X86, marks=[pytest.mark.slow, X86_ALONE])], ids=len
)
def test_engines_stay_in_their_memory(tmp_path: Path, unchanged: Build, engines: Engines) -> None:
    done = run(probe(tmp_path, unchanged, engines))
    assert done.returncode == 0, done.stderr
    calls = int(done.stdout.split()[0])
    assert calls in {CALLS_OF_AN_ENGINE * n for n in range(1, len(engines) + 1)}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_named(tmp_path: Path, unchanged: Build, name: str) -> None:
    done = run(probe(tmp_path, unchanged, PORTABLE, BUGS[name]))
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
