"""The host emulation of CUDA, cuda_host.h: right kernels run exactly, planted bugs are seen.

Kernels are in emulator_selftest.cu; each test runs one of them in a process of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from helpers import compile_cpp
from planted import SCHEDULES, answer, run

SOURCE = Path(__file__).parent / "emulator_selftest.cu"
VARIANTS = {
    "O1": ["-O1"],
    "O2": ["-O2"],
    "sanitized": ["-O1", "-g", "-fsanitize=address,alignment", "-fno-sanitize-recover=all"],
}


@dataclass(frozen=True)
class Selftest:
    """The program of one build variant."""

    program: Path

    def values(self, case: str, schedule: int = 0) -> list[float]:
        kind, *words = answer(self.program, case, schedule).split()
        assert kind == "values", words
        return [math.nan if "nan" in word else float.fromhex(word) for word in words]

    def error(self, case: str, schedule: int = 0) -> str:
        kind, _, words = answer(self.program, case, schedule).partition(" ")
        assert kind == "error", words
        return words


Build = Callable[[str], Selftest]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    folder = tmp_path_factory.mktemp("cuda_host")
    options = ["-x", "c++", "-DDIFFFLOW_CUDA_ON_HOST", "-Wno-unknown-pragmas"]

    @cache
    def built(variant: str) -> Selftest:
        flags = [*options, *VARIANTS[variant]]
        return Selftest(compile_cpp([SOURCE], folder / variant, flags))

    return built


@pytest.fixture(scope="session")
def selftest(build: Build) -> Selftest:
    return build("O2")


def line_of(text: str) -> str:
    """`file:line` of the one source line that holds `text`."""
    lines = SOURCE.read_text().splitlines()
    (number,) = [i for i, line in enumerate(lines, start=1) if text in line]
    return f"{SOURCE.name}:{number}"


def reduction_reference() -> list[float]:
    """The kernel's own order of addition: a butterfly in each warp, then the warps in order."""
    lanes = (np.float32(1) / np.arange(1, 5 * 128 + 1, dtype=np.float32)).reshape(5, 4, 32)
    for half in (16, 8, 4, 2, 1):
        lanes = lanes + lanes[..., np.arange(32) ^ half]
    total = np.zeros(5, dtype=np.float32)
    for warp in range(4):
        total = total + lanes[:, warp, 0]
    return total.tolist()


# Right kernels


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_block_reduction_is_exact(build: Build, variant: str, schedule: int) -> None:
    assert build(variant).values("reduce", schedule) == reduction_reference()


def shuffle_reference(width: int) -> list[float]:
    rows = []
    for lane in range(32):
        start, end = lane - lane % width, lane - lane % width + width
        up = lane - 3 if lane - 3 >= start else lane
        down = lane + 3 if lane + 3 < end else lane
        crossed = lane ^ 9 if lane ^ 9 < end else lane
        rows += [100 + source for source in (start + 5, up, down, crossed)]
    return rows


#: Results that are the same in every schedule.
EXACT = {
    "shuffles": shuffle_reference(32) + shuffle_reference(8),
    "votes": [0x0000AAAA, 1, 1, 0xAAAA0000, 0, 0],
    "poison": [2.0**32 - 1, 2.0**32 - 1, 8] * 3,
    "arguments": [1, 1, 1],
    "intrinsics": [(0xD2511F53 * 0xCD9E8D57) >> 32, 2.0**-23, 0, 2.0**-48, 1.5, 48],
    # cudaErrorInvalidConfiguration is 9, cudaErrorInvalidValue 1; nothing ran until the last.
    "limits": [9, 9, 9, 9, 9, 9, 9, 1, 0, 0, 1],
    "device": [0, 3, 3, 101, 0],
}


@pytest.mark.parametrize("case", EXACT)
def test_results_are_exact(selftest: Selftest, case: str) -> None:
    for schedule in SCHEDULES:
        assert selftest.values(case, schedule) == EXACT[case]


def test_every_index_runs_once_and_blocks_change_order(selftest: Selftest) -> None:
    orders = set()
    for schedule in SCHEDULES:
        total, *order = selftest.values("indices", schedule)
        assert total == sum(range(720))
        assert sorted(order) == list(range(0, 24, 2))
        orders.add(tuple(order))
    assert tuple(range(0, 24, 2)) in orders
    assert tuple(range(22, -2, -2)) in orders
    assert len(orders) >= 5


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_abandoned_launch_leaves_no_trace(build: Build, variant: str) -> None:
    for schedule in SCHEDULES:
        assert build(variant).values("recovery", schedule) == reduction_reference()


# Planted races: wrong in some schedules, and always in those named here


def test_missing_barrier_shows(selftest: Selftest) -> None:
    right = reduction_reference()
    runs = [selftest.values("missing_barrier", schedule) for schedule in SCHEDULES]
    assert all(math.isnan(value) for value in runs[0])
    assert sum(run != right for run in runs) >= 6


def test_missing_barrier_between_two_uses_shows(selftest: Selftest) -> None:
    """The order of threads hides it; depth first in any other order, it appears."""
    runs = [selftest.values("reuse_buffer", schedule) for schedule in SCHEDULES]
    assert runs[0] == [4]
    assert runs[1] == [31]
    assert sum(run != [4] for run in runs) >= 4


def test_missing_syncwarp_shows(selftest: Selftest) -> None:
    for schedule in SCHEDULES:
        assert any(math.isnan(value) for value in selftest.values("missing_syncwarp", schedule))


# Planted misuse: an error in every schedule


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("exit_before_shuffle", ["__shfl_xor_sync", "0xffffffff", "lane 8", "has exited"]),
        ("shuffle_beside_barrier", ["__shfl_xor_sync", "lane 7", "waits at __syncthreads"]),
        ("outside_of_mask", ["__shfl_sync", "0x0000ffff", "called by lane", "does not name"]),
        ("read_outside_of_mask", ["__shfl_down_sync", "lane 15 reads lane 16"]),
        ("partial_warp", ["__shfl_xor_sync", "lane 16", "lies outside the block"]),
        ("two_calls", ["__shfl_sync", "waits in another call"]),
        ("different_masks", ["__syncwarp", "deadlock", "other masks"]),
        ("bad_width", ["__shfl_sync", "width", "got 12"]),
        ("exit_before_barrier", ["divergent __syncthreads", "33 threads wait", "31 have exited"]),
        ("two_barriers", ["divergent __syncthreads", "thread (32, 0, 0) waits at"]),
        ("too_much_shared", ["DF_SHARED", "49152", "got 65536"]),
    ],
)
def test_misuse_is_refused(selftest: Selftest, case: str, words: list[str]) -> None:
    for schedule in SCHEDULES:
        error = selftest.error(case, schedule)
        assert [word for word in words if word not in error] == [], error


def test_errors_name_the_source_line(selftest: Selftest) -> None:
    assert line_of("value += __shfl_xor_sync") in selftest.error("exit_before_shuffle")


# Planted accesses that the sanitizers name, with the line of the kernel


@pytest.mark.parametrize(
    ("case", "report"),
    [
        ("global_overflow", "heap-buffer-overflow"),
        ("shared_overflow", "heap-buffer-overflow"),
        ("dynamic_overflow", "heap-buffer-overflow"),
        ("local_overflow", "stack-buffer-overflow"),
        ("misaligned", "misaligned address"),
    ],
)
def test_sanitizers_name_the_line(build: Build, case: str, report: str) -> None:
    done = run(build("sanitized").program, case, 3)
    assert done.returncode != 0
    assert report in done.stderr
    assert line_of(f"planted: {case}") in done.stderr
