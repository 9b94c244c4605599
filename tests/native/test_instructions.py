"""The ops of each set of instructions have the same bits, whatever the shape and the threads."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import CSRC, ENGINES, LANES, OPTIONS_OF, TESTS, compile_cpp, ops_with, same_bits
from kernel_calls import ELEMENTWISE, REDUCTIONS, Arguments, Call, Make, Result, pairs

from diffflow_ext import NoiseKey, functional
from diffflow_ext.functional.core import core

PROBE = TESTS / "native" / "lanes_probe.cpp"
# Rows of part of a quad, whole quads, tails of each size, more than a warp, chunks and segments.
ELEMENTS = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 64, 784, 1030, 8197)


def lanes_probe(folder: Path, name: str) -> ctypes.CDLL:
    flags = ("-O2", "-shared", "-fPIC", f"-DDF_NAMESPACE={name}", f"-DDF_LANES={LANES[name]}")
    return ctypes.CDLL(str(compile_cpp([PROBE], folder / "probe.so", [*flags, *OPTIONS_OF[name]])))


@pytest.mark.parametrize("name", ENGINES)
def test_all_radii_and_angles_are_as_defined(tmp_path: Path, name: str) -> None:
    probe = lanes_probe(tmp_path, name).probe_differences
    probe.restype = ctypes.c_int64
    assert probe() == 0


def test_square_roots_of_a_gpu_are_right_for_all_radii(tmp_path: Path) -> None:
    """Any guess of 2^-23.3 is good enough; of the 2^-22.9 that PTX promises, one radius is left.

    Its guess is one among three neighbours. The square root of nvcc has the same steps, see
    test_sass.py.
    """
    probe = lanes_probe(tmp_path, ENGINES[0]).probe_wrong_roots
    probe.restype, probe.argtypes = ctypes.c_int64, (ctypes.c_double,)
    assert probe(2**-23.3) == 0
    assert probe(2**-22.9) == 1


def result(call: Call, instructions: str, threads: int = 1) -> Result:
    torch.set_num_threads(threads)
    with ops_with(instructions):
        return call()


@pytest.mark.usefixtures("same_threads")
@pytest.mark.parametrize("make", [*ELEMENTWISE, *REDUCTIONS], ids=lambda make: make.__name__)
def test_bits_depend_neither_on_instructions_nor_on_threads(make: Make) -> None:
    """What is right, tests/native/test_ops_host.py says of single quads and of some shapes."""
    for elements, types, shift in itertools.product(ELEMENTS, pairs(make), (0, 1)):
        samples = 2 if elements > 1000 else 37 if elements > 8 else 3000
        call = make(Arguments((samples, elements), types, shift))
        expected = result(call, "portable")
        for name, threads in itertools.product(ENGINES, (1, 2)):
            found = zip(result(call, name, threads), expected, strict=True)
            assert all(same_bits(a, b) for a, b in found), (elements, types, shift, name, threads)


@pytest.mark.usefixtures("same_threads")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_draw_does_not_know_its_neighbours(op_instructions: str, threads: int) -> None:
    """Samples one by one, as the lanes of a vector never hold them, and past 2^32 quads."""
    torch.set_num_threads(threads)
    for elements in ELEMENTS:
        options = {"purpose": "dsm", "step": 2**24 - 1}
        key, offset = NoiseKey(2**63 + 5, 2**32 - 1), 2**32 - 600
        batch = functional.normal((600, elements), key, sample_offset=offset, **options)
        for row in (0, 1, 255, 599):
            alone = functional.normal((1, elements), key, sample_offset=offset + row, **options)
            assert same_bits(batch[row : row + 1], alone)


def test_the_fastest_set_is_used_unless_another_is_named() -> None:
    assert core.op_instructions() == core.instructions()[0]
    for name in ENGINES:
        with ops_with(name):
            assert core.op_instructions() == name
    assert core.op_instructions() == core.instructions()[0]
    with pytest.raises(ValueError, match=r"expected a set that this build .* got 'mmx'"):
        core.use_op_instructions("mmx")


@pytest.mark.parametrize("folder", ["ops", "fused/cpu"])
def test_the_portable_source_needs_no_header_of_a_processor(folder: str) -> None:
    command = ["g++", "-std=c++17", "-M", str(CSRC / folder / "portable.cpp")]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "simd.h" in found
    assert "intrin.h" not in found


@pytest.mark.parametrize("folder", ["ops", "fused/cpu"])
def test_the_portable_source_is_right_for_arm(folder: str) -> None:
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("needs aarch64-linux-gnu-g++")
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    source = str(CSRC / folder / "portable.cpp")
    subprocess.run([compiler, *options, "-fsyntax-only", source], check=True)
