"""The real CUDA kernels, executed on the host: they agree with the CPU loops bit for bit.

csrc/ops/*.cu are compiled against cuda_host.h and linked with the package's own bindings, so that
ops run on "device 0" without a GPU, in every schedule of the emulation. Planted
bugs show that wrong kernels do not pass.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ENGINES, ops_with, same_bits
from host_device import HostDevice, poisoned_memory
from kernel_calls import (
    ELEMENTWISE,
    KEY,
    REDUCTIONS,
    TYPES,
    Arguments,
    Call,
    Make,
    call_adjoint_step,
    pairs,
)
from planted import SCHEDULES, Bug, answer, build_probe

from diffflow_ext.functional.noise import launch_philox_words, noise_dot

pytestmark = pytest.mark.usefixtures("one_thread")
# Groups of 1, 2, 4, 8 and 32 lanes, 32 lanes that take two and eight turns, whole blocks; one row
# and several blocks of rows; one, two and three segments of a row.
SHORT = [(1, 1), (3, 2), (300, 3), (2, 7), (5, 4, 3), (33, 29), (5, 130), (2, 1024)]
EMPTY = [(0, 3), (3, 0), (0,)]
LONG = [(2, 1025), (1, 3001), (3, 8192), (2, 8197), (2, 20_000)]

# --- comparing -----------------------------------------------------------------------------------


def assert_device_equals_cpu(host: HostDevice, call: Call, schedules: Any) -> None:
    """The emulated device, the CPU of the same build, and the installed core: the same bits.

    The builds differ in their optimisation, and the installed core has several sets of
    instructions, which must not show either.
    """
    with poisoned_memory():
        expected = call()
        for instructions in ENGINES:
            with ops_with(instructions):
                installed = call()
            pairs = zip(installed, expected, strict=True)
            assert all(same_bits(a, b) for a, b in pairs), instructions
        with host.running(-1):
            here = call()
        for schedule in schedules:
            with host.running(0, schedule):
                there = call()
            for part, value in enumerate(expected):
                assert same_bits(there[part], value), f"result {part}, schedule {schedule}"
    assert all(same_bits(a, b) for a, b in zip(here, expected, strict=True))
    assert all(not value.isnan().any() for value in expected if value is not None)


# --- every kernel --------------------------------------------------------------------------------


def cases(kernels: list[Make], shapes: list[tuple[int, ...]]) -> list[Any]:
    return [
        pytest.param(make, shape, id=f"{make.__name__}-{shape}")
        for make, shape in itertools.product(kernels, shapes)
    ]


@pytest.mark.parametrize(
    ("make", "shape"),
    [*cases(ELEMENTWISE, [*EMPTY, *SHORT, LONG[-1]]), *cases(REDUCTIONS, [*EMPTY, *SHORT, *LONG])],
)
def test_kernels(host: HostDevice, make: Make, shape: tuple[int, ...]) -> None:
    """All schedules where a block shares memory: reductions of rows of over 1,024 elements."""
    for types, shift in itertools.product(pairs(make), (0, 1)):
        shares = make in REDUCTIONS and shape in LONG and types == TYPES[0]
        # In order, reversed and shuffled are enough elsewhere.
        schedules = SCHEDULES if shares else (0, 1, 4)
        assert_device_equals_cpu(host, make(Arguments(shape, types, shift)), schedules)


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 6), (2, 1028)], ids=str)
def test_adjoint_step_with_every_set_of_absent_tensors(
    host: HostDevice, shape: tuple[int, ...], types: tuple[torch.dtype, torch.dtype]
) -> None:
    some = list(itertools.product((False, True), repeat=3))
    places = [*itertools.product(("first", "inner"), some), ("last", some[0]), ("only", some[0])]
    combinations = [
        (*place, *flags)
        for place in places
        for flags in itertools.product((False, True), repeat=2)
    ]
    call = call_adjoint_step(Arguments(shape, types), combinations)
    assert_device_equals_cpu(host, call, (0, 4))


def test_philox_words(host: HostDevice) -> None:
    counter, key = torch.randint(2**32, (700, 4)), torch.randint(2**32, (700, 2))
    with poisoned_memory():
        expected = launch_philox_words(counter, key)
        for schedule in (0, 1, 4):
            with host.running(0, schedule):
                assert torch.equal(launch_philox_words(counter, key), expected)


def test_a_failed_launch_is_an_error(host: HostDevice) -> None:
    with (
        host.running(1),
        pytest.raises(RuntimeError, match="cudaSetDevice: invalid device ordinal"),
    ):
        noise_dot(torch.ones(2, 3), KEY, 0, 0, 0)
    with host.running(0):
        assert noise_dot(torch.zeros(2, 3), KEY, 0, 0, 0).tolist() == [0.0, 0.0]


def test_rows_beyond_the_grid_are_refused(host: HostDevice) -> None:
    """The second dimension of a grid counts segments; nothing is read before the refusal."""
    target = (0, 0, 0, 1, 65_536 * 8192)
    with pytest.raises(RuntimeError, match="at most 536,862,720 elements a sample"):
        host.core.noise_dot(target, (1, 0, 0, 0, 0, 0), 0, 0, 0)


# --- planted bugs --------------------------------------------------------------------------------


LOOPS = "ops/loop_cuda.cuh"
BARRIER = "    __syncthreads();\n    for (int warp"
BUGS = {
    "missing barrier": Bug(LOOPS, BARRIER, "    for (int warp"),
    "one slot for all warps": Bug(LOOPS, "warp_sums[lane / kWarp] =", "warp_sums[lane % kWarp] ="),
    "partials in the wrong order": Bug(
        LOOPS, "[sample * segments + blockIdx.y] =", "[blockIdx.y * shape.samples + sample] ="
    ),
    "warps in the reverse order": Bug(
        LOOPS, "warp_sums[lane / kWarp] =", "warp_sums[kBlock / kWarp - 1 - lane / kWarp] ="
    ),
    "parts are not awaited": Bug(
        LOOPS, "  __syncthreads();\n  if (lane >= team", "  if (lane >= team"
    ),
}
MORE_BUGS = {
    "every lane writes": Bug(LOOPS, "|| lane != 0) return;", ") return;"),
    "a fold too few": Bug(LOOPS, "lanes / 2; half > 0;", "lanes / 2; half > 1;"),
    "only the first segment": Bug(LOOPS, "segment = blockIdx.y", "segment = 0 * blockIdx.y"),
    "wrong remainder": Bug(LOOPS, "index - nth * row.by()", "index - nth * (row.by() - 1)"),
    "rows that overlap": Bug(LOOPS, "int64_t>(gap) * nth", "int64_t>(gap + 1) * nth"),
    "a part of a quad too short": Bug(LOOPS, "whole ? 4 : size", "whole ? 4 : size - 1"),
}
#: Launches that tensors of these tests are too small for.
LARGE = {
    "rows side by side": Bug(LOOPS, "int64_t{1} << 17", "0"),
    "many launches of whole rows": Bug(LOOPS, "int64_t{1} << 30", "600"),
    "many launches for each row": Bug(LOOPS, "int64_t{1} << 30", "7"),
}
MEMORY_BUGS = {
    "reads past the row": Bug("ops/quad.h", "left >= 4;", "left >= 1;"),
    "wide access anywhere": Bug("ops/quad.h", "aligned && full};", "full};"),
}
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def verdicts(folder: Path, bug: Bug | None, *options: str) -> list[str]:
    """What the probe says in each schedule."""
    probe = build_probe(folder, "loops_probe.cpp", bug, "-O0", *options)
    return [answer(probe, schedule) for schedule in SCHEDULES]


@pytest.mark.parametrize(
    "name", [*BUGS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_BUGS)]
)
def test_a_planted_bug_is_caught(tmp_path: Path, name: str) -> None:
    found = verdicts(tmp_path, {**BUGS, **MORE_BUGS}[name])
    assert any(verdict.startswith(("differs", "error")) for verdict in found), found
    if name == "missing barrier":
        # Which is why kernels are run in all schedules.
        assert "equal" in found


@pytest.mark.parametrize("limit", LARGE.values(), ids=LARGE)
def test_launches_of_large_tensors(tmp_path: Path, limit: Bug) -> None:
    """Limits that decide how work is cut are lowered, so that small tensors meet them."""
    assert verdicts(tmp_path, limit) == ["equal"] * len(SCHEDULES)


def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    assert verdicts(tmp_path, None, *SANITIZED) == ["equal"] * len(SCHEDULES)


@pytest.mark.slow
@pytest.mark.parametrize("bug", MEMORY_BUGS.values(), ids=MEMORY_BUGS)
def test_sanitizers_find_a_planted_bug(tmp_path: Path, bug: Bug) -> None:
    found = answer(build_probe(tmp_path, "loops_probe.cpp", bug, *SANITIZED), 0)
    assert "AddressSanitizer" in found or "runtime error" in found
