"""The real CUDA kernels, executed on the host: they agree with the CPU loops bit for bit.

csrc/ops/*.cu are compiled against cuda_host.h and linked with the package's own bindings, so that
ops run on "device 0" without a GPU, in every schedule of the emulation. Planted
bugs show that wrong kernels do not pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import same_bits
from host_device import HostDevice, poisoned_memory
from planted import SCHEDULES, Bug, answer, build_probe
from torch import Tensor

from diffflow_ext import NoiseKey
from diffflow_ext.functional import PURPOSES
from diffflow_ext.functional import core as functional_core
from diffflow_ext.functional.adjoint import AdjointState, adjoint_step
from diffflow_ext.functional.affine import launch_affine_step
from diffflow_ext.functional.noise import (
    launch_normal,
    launch_philox_words,
    noise_dot,
    noise_energy,
    noise_source,
)
from diffflow_ext.functional.perturb import launch_perturb
from diffflow_ext.functional.residual import (
    backward_residual_vjp,
    launch_backward_residual,
    launch_residual_cost,
    residual_cost_vjp,
)
from diffflow_ext.functional.steps import launch_em_step, launch_reverse_step

pytestmark = pytest.mark.usefixtures("one_thread")
KEY = NoiseKey(seed=0x0123456789ABCDEF, stream=7)
DT, DT_NEXT, G = 0.05, 0.07, 0.7
STEP, OFFSET = 11, 2**32 - 1000
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
#: The pairs that there are kernels for, in the order of their codes.
TYPES = [(F32, F32), (F32, BF16), (F32, F16), (F64, F64)]
# Groups of 1, 2, 4, 8 and 32 lanes, 32 lanes that take two and eight turns, whole blocks; one row
# and several blocks of rows; one, two and three segments of a row.
SHORT = [(1, 1), (3, 2), (300, 3), (2, 7), (5, 4, 3), (33, 29), (5, 130), (2, 1024)]
EMPTY = [(0, 3), (3, 0), (0,)]
LONG = [(2, 1025), (1, 3001), (3, 8192), (2, 8197), (2, 20_000)]

# --- comparing -----------------------------------------------------------------------------------


Result = tuple[Tensor | None, ...]
Call = Callable[[], Result]


def assert_device_equals_cpu(host: HostDevice, call: Call, schedules: Any) -> None:
    """The emulated device, the CPU of the same build, and the installed core: the same bits.

    The builds differ in their optimisation, which must not show either.
    """
    with poisoned_memory():
        expected = call()
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


@dataclass
class Arguments:
    """Random arguments of one shape and pair of types; `shift` elements off an aligned address."""

    shape: tuple[int, ...]
    types: tuple[torch.dtype, torch.dtype]
    shift: int = 0

    def state(self) -> Tensor:
        return self._placed(torch.randn(self.shape, dtype=self.types[0]))

    def network(self) -> Tensor:
        return self._placed(torch.randn(self.shape).to(self.types[1]))

    def column(self) -> Tensor:
        return torch.rand(self.shape[0], dtype=self.types[0]) + 0.1

    def scalar(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=self.types[0])

    def _placed(self, x: Tensor) -> Tensor:
        store = torch.empty(x.numel() + self.shift, dtype=x.dtype)
        return store[self.shift :].view(x.shape).copy_(x)


def each(*calls: Call) -> Call:
    """One call for several, so that their arguments are drawn once."""
    return lambda: tuple(value for call in calls for value in call())


def single(function: Callable[..., Tensor], *arguments: Any) -> Call:
    return lambda: (function(*arguments),)


def normal(a: Arguments) -> Call:
    def draw(key: Any) -> Call:
        out = torch.empty(a.shape, dtype=a.types[0])
        noise = (key, PURPOSES["dsm"], STEP, OFFSET)
        return lambda: (launch_normal(out.fill_(torch.nan), *noise).clone(),)

    return each(draw(KEY), draw(KEY.to_tensor()))


def em_step(a: Arguments) -> Call:
    x, f, out = a.state(), a.network(), a.state()
    noise = (STEP, OFFSET)
    dt, g = a.scalar(DT), a.scalar(G)
    return each(
        single(launch_em_step, x, f, DT, G, KEY, *noise),
        single(launch_em_step, x, f, dt, g, KEY.to_tensor(), *noise),
        lambda: (launch_em_step(x, f, DT, G, KEY, *noise, out=out.fill_(torch.nan)).clone(),),
    )


def residual_tensors(a: Arguments) -> tuple[Tensor, ...]:
    return a.state(), a.state(), a.network(), a.network()


def backward_residual(a: Arguments) -> Call:
    rows = residual_tensors(a)
    return each(
        single(launch_backward_residual, *rows, DT, G),
        single(launch_backward_residual, *rows, a.scalar(DT), a.scalar(G)),
    )


def call_backward_residual_vjp(a: Arguments) -> Call:
    grad = a.state()
    return lambda: backward_residual_vjp(grad, DT, G)


def reverse_step(a: Arguments) -> Call:
    _, x_next, f, s = residual_tensors(a)
    rest = (x_next, f, s, DT, G, KEY, STEP)
    return each(*(single(launch_reverse_step, *rest, c, OFFSET) for c in (0.0, 0.5, 1.0)))


def affine_step(a: Arguments) -> Call:
    """With and without a second network; no noise, noise, and all factors in memory."""
    x, first, second = a.state(), a.network(), a.network()
    in_memory = [a.scalar(value) for value in (0.9, DT, -G, 0.3)]
    numbers, noise = (0.9, DT, -G), (PURPOSES["langevin"], STEP, OFFSET)
    return each(
        *(
            each(
                single(launch_affine_step, x, first, b, *numbers, 0.0, None, *noise),
                single(launch_affine_step, x, first, b, *numbers, 0.3, KEY, *noise),
                single(launch_affine_step, x, first, b, *in_memory, KEY.to_tensor(), *noise),
            )
            for b in (None, second)
        )
    )


def perturb(a: Arguments) -> Call:
    x0, alpha, sigma = a.state(), a.column(), a.column()

    def silent() -> Result:
        """Without writing the noise, which only the core can be asked for."""
        x_t = torch.empty_like(x0)
        functional_core.core.perturb(
            functional_core.target(x0),
            noise_source(KEY, PURPOSES["dsm"], STEP, OFFSET),
            *(x0.data_ptr(), alpha.data_ptr(), sigma.data_ptr(), 1, x_t.data_ptr(), 0),
        )
        return (x_t,)

    return each(
        lambda: launch_perturb(x0, alpha, sigma, KEY, STEP, OFFSET),
        lambda: launch_perturb(x0, alpha[:1], sigma[:1], KEY, STEP, OFFSET),
        silent,
    )


def call_noise_dot(a: Arguments) -> Call:
    return single(noise_dot, a.state(), KEY, 1, STEP, OFFSET)


def call_noise_energy(a: Arguments) -> Call:
    x, previous = a.state(), a.column()
    return each(
        single(noise_energy, x, KEY, STEP, OFFSET),
        single(noise_energy, x, KEY.to_tensor(), STEP, OFFSET, previous),
    )


def residual_cost(a: Arguments) -> Call:
    rows, previous = residual_tensors(a), a.column()
    return each(
        single(launch_residual_cost, *rows, DT, G),
        single(launch_residual_cost, *rows, a.scalar(DT), a.scalar(G), previous),
    )


def call_residual_cost_vjp(a: Arguments) -> Call:
    rows, grad = residual_tensors(a), a.column()
    return lambda: residual_cost_vjp(grad, *rows, DT, G)


def call_adjoint_step(a: Arguments, combinations: Any = None) -> Call:
    """All `combinations` of (place, parts that exist, weights, learned g), or one full one."""
    x_prev, x, f, s = a.state(), a.state(), a.network(), a.network()
    local, parts = a.state(), (a.state(), a.state(), a.state())
    weights = a.column()

    def one(place: str, present: tuple[bool, ...], weighted: bool, learned: bool) -> Call:
        start, end = place in ("first", "only"), place in ("last", "only")
        chosen = (p if there else None for p, there in zip(parts, present, strict=True))
        after = None if end else AdjointState(local, *chosen)
        return lambda: adjoint_step(
            None if start else x_prev,
            x,
            f,
            None if start else s,
            after,
            weight=weights if weighted else 0.4,
            dt=DT,
            dt_next=DT_NEXT,
            g=a.scalar(G) if learned else G,
            key=KEY,
            step=STEP,
            sample_offset=OFFSET,
            want_grad_g=learned,
        )

    full = (("inner", (True, True, True), True, learned) for learned in (False, True))
    return each(*(one(*combination) for combination in combinations or full))


ELEMENTWISE = [
    *(normal, em_step, backward_residual, call_backward_residual_vjp),
    *(reverse_step, affine_step, perturb),
]
REDUCTIONS = [
    call_noise_dot,
    call_noise_energy,
    residual_cost,
    call_residual_cost_vjp,
    call_adjoint_step,
]
#: Kernels of the state alone: their bits do not depend on a network's type.
OF_STATE = (normal, call_backward_residual_vjp, perturb, call_noise_dot, call_noise_energy)
Make = Callable[[Arguments], Call]


def pairs(make: Make) -> list[tuple[torch.dtype, torch.dtype]]:
    return [TYPES[0], TYPES[3]] if make in OF_STATE else TYPES


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
BUGS = {
    "missing barrier": Bug(LOOPS, "    __syncthreads();\n", ""),
    "one slot for all warps": Bug(LOOPS, "[threadIdx.x / kWarp] =", "[threadIdx.x % kWarp] ="),
    "partials in the wrong order": Bug(
        LOOPS, "[sample * segments + segment] =", "[segment * shape.samples + sample] ="
    ),
    "other lanes than the CPU": Bug(
        LOOPS, "lane = threadIdx.x % lanes;", "lane = lanes - 1 - threadIdx.x % lanes;"
    ),
}
MORE_BUGS = {
    "every lane writes": Bug(LOOPS, "if (!inside || lane != 0) return;", "if (!inside) return;"),
    "return before the shuffles": Bug(LOOPS, "  if (inside) {", "  if (!inside) return;\n  {"),
    "a fold too few": Bug(LOOPS, "lanes / 2; half > 0;", "lanes / 2; half > 1;"),
    "only the first segment": Bug(LOOPS, "segment = blockIdx.y", "segment = 0 * blockIdx.y"),
    "wrong stride of blocks": Bug(
        LOOPS, "kBlock + threadIdx.x; index", "kWarp + threadIdx.x; index"
    ),
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


def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    assert verdicts(tmp_path, None, *SANITIZED) == ["equal"] * len(SCHEDULES)


@pytest.mark.slow
@pytest.mark.parametrize("bug", MEMORY_BUGS.values(), ids=MEMORY_BUGS)
def test_sanitizers_find_a_planted_bug(tmp_path: Path, bug: Bug) -> None:
    found = answer(build_probe(tmp_path, "loops_probe.cpp", bug, *SANITIZED), 0)
    assert "AddressSanitizer" in found or "runtime error" in found
