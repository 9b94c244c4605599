"""The PTX that nvcc makes of every CUDA kernel, executed on the CPU.

Host emulation (test_ops_host.py, test_paths_host.py) compiles the sources with g++, and never sees
what is written for nvcc alone: inline PTX, intrinsics, what the compiler makes of them. Here
ptx_runtime.cpp interprets nvcc's own output, with the checks of memory of ptx_memory.h. Planted
changes of single instructions show that wrong code does not pass.

It does not show what ptxas makes of the PTX, nor times.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from device_graphs import CapturedOnCpu, FreedMemory, Graph, stand_in
from graph_steps import batch, grid_of, model
from helpers import same_bits
from kernel_calls import Make
from ptx_checks import (
    CASES,
    ERRORS,
    KEY,
    OPS,
    Case,
    Check,
    Results,
    distance,
    engine,
    op_checks,
    path_check,
    run_paths,
    truth,
)
from ptx_device import Instruction, Misuse, PtxDevice, run_in_child
from torch import Tensor

from diffflow_ext.engines.fused.workspace import Rounding
from diffflow_ext.functional.noise import noise_dot

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
# As in test_ops_host.py: groups of 1 to 32 lanes, whole blocks; one segment of a row and several,
# up to 7, of which the last kernel adds four at a time.
SHAPES = [(1, 1), (3, 2), (300, 3), (2, 7), (33, 29), (5, 130), (2, 1024), (2, 1025), (3, 8192)]
LONG = [(2, 8197), (1, 50_001)]
Checks = dict[str, list[Check]]


@pytest.fixture(scope="module")
def ptx(ptx_core: Path) -> PtxDevice:
    return PtxDevice.load(ptx_core)


def passes(ptx: PtxDevice, check: Check, **settings: int) -> bool:
    with ptx.running(**settings):
        return check.agrees(check.run())


# --- every kernel --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", OPS, ids=lambda make: make.__name__)
def test_ops_equal_those_of_the_cpu(ptx: PtxDevice, make: Make) -> None:
    for check in op_checks(make, [*SHAPES, *LONG]):
        assert passes(ptx, check), check.name
        assert ptx.launches, check.name


@pytest.mark.parametrize("make", OPS, ids=lambda make: make.__name__)
def test_order_and_approximations_do_not_show(ptx: PtxDevice, make: Make) -> None:
    for check in op_checks(make, [(300, 3), *LONG]):
        assert passes(ptx, check, order=1, inexact=1), check.name


@pytest.mark.parametrize("rounding", ERRORS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_paths_are_near_float64(ptx: PtxDevice, case: Case, rounding: Rounding) -> None:
    expected = truth(case)

    def run(key: Any = KEY, **settings: int) -> Results:
        with ptx.running(**settings):
            found = run_paths(case, rounding, key)
        assert distance(found, expected) <= ERRORS[rounding], settings
        return found

    first = run()
    # As tensor cores truncate their sums, and approximations are off by two units.
    run(inexact=1)
    same = [run(junk=0), run(order=5, multiprocessors=1), run(multiprocessors=7)]
    for found in [*same, run(KEY.to_tensor())]:
        assert all(same_bits(a, b) for a, b in zip(found, first, strict=True))


@pytest.mark.parametrize("rounding", ERRORS)
def test_weights_that_are_streamed_give_the_same_bits(ptx: PtxDevice, rounding: Rounding) -> None:
    found = []
    for limits in ({}, {"shared_limit": 30_000}):
        with ptx.running(**limits):
            found.append(run_paths(CASES[0], rounding))
    assert all(same_bits(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("rounding", ERRORS)
def test_paths_have_the_noise_of_single_steps(ptx: PtxDevice, rounding: Rounding) -> None:
    """Without drift the states are data and noise, in the same operations."""
    case = CASES[0]
    sde = case.sde()
    with torch.no_grad():
        sde.drift.output.weight.zero_()
        sde.drift.output.bias.zero_()
    expected = sde.path(case.data(), case.grid(), KEY)
    states = torch.empty_like(expected)
    with ptx.running():
        engine(sde, case.data(), case, rounding, KEY).forward(case.data(), states)
    assert same_bits(states, expected)


@pytest.fixture(scope="module")
def check_of(ptx: PtxDevice) -> Checks:
    """Of each kernel the checks that launch it; all pass."""
    torch.manual_seed(0)
    shapes = [(3, 8), (3, 9), (300, 3), (5, 130), *LONG]
    checks = [check for make in OPS for check in op_checks(make, shapes)]
    checks += [path_check(case, rounding) for case in CASES[:5] for rounding in ERRORS]
    out: Checks = {}
    for check in checks:
        assert passes(ptx, check), check.name
        for kernel in {launch.kernel for launch in ptx.launches}:
            out.setdefault(kernel, []).append(check)
    return out


def test_no_kernel_is_left_out(ptx: PtxDevice, check_of: Checks) -> None:
    assert check_of.keys() == ptx.kernels().keys()
    code = [at for kernel in check_of for at in ptx.instructions(kernel)]
    share = sum(at.runs > 0 for at in code) / len(code)
    assert share > 0.85, f"{share:.1%} of {len(code)} instructions ran"


# --- planted bugs --------------------------------------------------------------------------------


def without(_: str) -> str:
    return ""


def swapped(text: str) -> str:
    """A pair of bfloat16 values in the wrong order."""
    return re.sub(r"(%\w+), (%\w+)$", r"\2, \1", text)


def other_fragment(text: str) -> str:
    """Words 1 and 2 of the left factor: lower rows in the place of later columns."""
    return re.sub(r"(\}, \{%\w+, )(%\w+), (%\w+)(, %\w+\})", r"\1\3, \2\4", text, count=1)


def half(text: str) -> str:
    """The first half of a wide store."""
    words = re.findall(r"%\w+", text.partition("{")[2])
    kept = words[: len(words) // 2]
    narrow = re.sub(r"\.v\d", f".v{len(kept)}" if len(kept) > 1 else "", text)
    return re.sub(r"\{.*\}", f"{{{', '.join(kept)}}}", narrow)


#: What is changed, and how.
BUGS: dict[str, tuple[str, Callable[[str], str]]] = {
    "a swapped pair": (r"cvt\.rn\.bf16x2", swapped),
    "a swapped fragment": (r"mma\.sync", other_fragment),
    "half of a wide store": (r"st\.global(\.wb)?\.v", half),
    "half of a wide store to shared memory": (r"st\.shared\.v", half),
}


def ran(ptx: PtxDevice, kernel: str, pattern: str) -> Iterator[Instruction]:
    return (at for at in ptx.instructions(kernel) if at.runs > 0 and re.search(pattern, at.text))


def is_caught(ptx: PtxDevice, kernel: str, texts: dict[int, str], check_of: Checks) -> bool:
    with ptx.replaced(kernel, texts):
        for check in check_of[kernel]:
            try:
                if not passes(ptx, check):
                    return True
            except Misuse:
                return True
    return False


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(ptx: PtxDevice, check_of: Checks, bug: str) -> None:
    """In each kernel that has such an instruction, in the first of them."""
    pattern, change = BUGS[bug]
    first = {kernel: next(ran(ptx, kernel, pattern), None) for kernel in check_of}
    wrong = {kernel: {at.place: change(at.text)} for kernel, at in first.items() if at is not None}
    assert wrong
    survivors = [kernel for kernel in wrong if not is_caught(ptx, kernel, wrong[kernel], check_of)]
    assert survivors == []


def test_missing_barriers_are_caught(ptx: PtxDevice, check_of: Checks) -> None:
    """Each by itself. Whole paths have a few more than they need, at the ends of loops."""
    places = [(kernel, at) for kernel in check_of for at in ran(ptx, kernel, r"bar\.sync")]
    caught = [is_caught(ptx, kernel, {at.place: ""}, check_of) for kernel, at in places]
    assert sum(caught) > 0.8 * len(places), f"{sum(caught)} of {len(places)}"
    needed = [one for one, (kernel, _) in zip(caught, places, strict=True) if "reduce" in kernel]
    assert needed
    assert all(needed)


# --- checks of the interpreter -------------------------------------------------------------------

#: Changes of a kernel that adds rows by whole blocks, and what is said of each.
WRONG: dict[str, tuple[str, Callable[[str], str], str]] = {
    "far": (r"ld\.global\.v4", lambda text: text.replace("]", "+16384]"), "out of bounds"),
    "odd": (r"ld\.global\.v4", lambda text: text.replace("]", "+4]"), "misaligned"),
    "no barrier": (r"bar\.sync", without, "race in shared memory"),
    "one place": (r"%tid\.x", lambda text: text.replace("%tid.x", "0"), "race in global memory"),
    "some threads": (r"bar\.sync", lambda text: f"@%tid.x {text}", "some threads never reach"),
    "nothing stored": (r"st\.shared", without, "shared memory is read before it is written"),
}


def add_rows(ptx: PtxDevice, **settings: int) -> tuple[str, Tensor]:
    """Runs the kernel; returns its name, and the sums."""
    with ptx.running(**settings):
        sums = noise_dot(torch.ones(2, 1028), KEY, 1, 0, 0)
    return ptx.launches[0].kernel, sums


@pytest.mark.parametrize("name", WRONG)
def test_wrong_accesses_are_reported(ptx: PtxDevice, name: str) -> None:
    pattern, change, words = WRONG[name]
    kernel, _ = add_rows(ptx)
    wrong = {at.place: change(at.text) for at in ran(ptx, kernel, pattern)}
    with ptx.replaced(kernel, wrong), pytest.raises(Misuse, match=words):
        add_rows(ptx)
    add_rows(ptx)


def test_undefined_bits_of_tf32_show(ptx: PtxDevice) -> None:
    """They are the lowest 13; in right kernels they do not, see above."""
    kernel, _ = add_rows(ptx)
    *_, last = ran(ptx, kernel, r"^add\.rn\.f32")
    rounded = re.sub(r"add\.rn(.*), %\w+$", r"cvt.rna.tf32\1", last.text)
    with ptx.replaced(kernel, {last.place: rounded}):
        plain, junk = (add_rows(ptx, junk=junk)[1].view(torch.int32) for junk in (0, 1))
    assert not (plain & 0x1FFF).any()
    assert (junk & 0x1FFF).all()


def test_unknown_instructions_are_refused(ptx: PtxDevice) -> None:
    kernel, _ = add_rows(ptx)
    with (
        pytest.raises(ValueError, match=r"does not know add\.rn\.ftz\.f32"),
        ptx.replaced(kernel, {0: "add.rn.ftz.f32 %f1, %f2, %f3"}),
    ):
        pass


def test_a_graph_reads_memory_when_it_is_replayed(ptx: PtxDevice) -> None:
    """A loss and its gradients, with the noise of the key that is in memory then."""
    sde, x0, key = CASES[0].sde(), CASES[0].data(), KEY.to_tensor()
    grid = CASES[0].grid()

    def step(key: Any) -> Results:
        loss = sde.mean_loss(x0, grid, key, engine="autograd")
        return loss.detach(), *torch.autograd.grad(loss, list(sde.parameters()))

    with ptx.running(stream=7, is_cuda=True):
        with Graph(ptx.recording) as graph:
            found = step(key)
        assert {launch.stream for launch in ptx.launches} == {7}
        for stream in (3, 4):
            key[1] = stream
            graph.replay()
            expected = step(KEY.at(stream))
            assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))


READERS = {"kernel": lambda x: noise_dot(x, KEY, 1, 0, 0), "torch": lambda x: 2 * x}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_graph_does_not_keep_what_it_reads(
    ptx: PtxDevice, read: Callable[[Tensor], Tensor]
) -> None:
    x = torch.ones(2, 8)
    with ptx.running():
        with Graph(ptx.recording) as graph:
            _result = read(x)
    with ptx.running(fresh=False):
        graph.replay()
    del x
    with pytest.raises((Misuse, FreedMemory)), ptx.running(fresh=False):
        graph.replay()


def captured_steps() -> list[Tensor]:
    """Losses and weights of training steps of which the last ones are replays."""
    sde = model()
    adam = torch.optim.Adam(sde.parameters())
    loss = partial(sde.mean_loss, engine="autograd")
    step = CapturedOnCpu(loss, sde, adam, KEY, warm_up=1)
    results = [step.step(batch(i), grid_of(i)) for i in range(4)]
    assert step.num_captures == 1
    return [torch.stack(result) for result in results] + [p.detach() for p in sde.parameters()]


def test_captured_steps_are_those_of_the_cpu(ptx: PtxDevice) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        expected = captured_steps()
    with pytest.MonkeyPatch.context() as patch, ptx.running(is_cuda=True):
        stand_in(patch, ptx.recording)
        found = captured_steps()
        assert ptx.launches
    assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))


CHILD = """
import torch
from ptx_device import PtxDevice
from diffflow_ext import DiffFlowSDE, NoiseKey, TimeGrid, build_info
from diffflow_ext.nets import FourierMLP

sde = DiffFlowSDE(FourierMLP(2, 16, 1), FourierMLP(2, 16, 1), diffusion=0.5)
x0, grid = torch.randn(6, 2), TimeGrid.power(3, 1.0)

def step():
    loss = sde.mean_loss(x0, grid, NoiseKey(1), engine="autograd")
    return [loss, *torch.autograd.grad(loss, list(sde.parameters()))]

expected, device = step(), PtxDevice.of_this_process()
with device.running():
    found = step()
    assert device.launches
assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
with device.running(is_cuda=True):
    assert x0.is_cuda
assert not x0.is_cuda
print(build_info()["cuda"])
"""


def test_a_child_has_the_device_in_its_core(ptx_core: Path, tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    assert run_in_child(ptx_core, script) == "True\n"
