"""Memory: nothing is read before it is written, and none is lost in thousands of steps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz_targets import TARGETS
from helpers import gradients, replace_everywhere, same_bits
from host_device import poisoned_memory
from op_cases import DTYPES, MAKE, Dtypes, dtype_id
from torch import Tensor

from diffflow_ext import DiffFlowSDE, GeometricDiffusion, NoiseKey, TimeGrid, functional
from diffflow_ext.functional.core import core
from diffflow_ext.nets import FourierMLP

KEY = NoiseKey(7, 3)
Results = list[Tensor]


def alike(compute: Callable[[], Results]) -> None:
    """Results are the same bits whether fresh memory holds NaN or what was there before."""
    expected = compute()
    with poisoned_memory():
        actual = compute()
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert same_bits(a, b) if a.is_floating_point() else torch.equal(a, b)
        assert not a.isnan().any()


def with_gradients(call: Callable[..., Any], arguments: dict[str, Any]) -> Results:
    leaves = {
        name: value.clone().requires_grad_()
        for name, value in arguments.items()
        if isinstance(value, Tensor) and value.is_floating_point() and name != "weight"
    }
    values = call(**{**arguments, **leaves})
    results = values if isinstance(values, tuple) else (values,)
    tensors = [value for value in results if isinstance(value, Tensor)]
    first = tensors[0] if tensors else torch.zeros(())
    if first.requires_grad and leaves:
        grads = torch.autograd.grad(first.sum(), list(leaves.values()), allow_unused=True)
        return [*tensors, *(grad for grad in grads if grad is not None)]
    return tensors


@pytest.mark.parametrize("name", TARGETS)
def test_public_functions_read_no_unwritten_memory(name: str) -> None:
    target = TARGETS[name]

    def compute() -> Results:
        torch.manual_seed(0)
        return with_gradients(target.call, target.good())

    alike(compute)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (5, 4), (2, 9000), (3, 2, 4, 4)], ids=str)
@pytest.mark.parametrize("dtypes", [DTYPES[0], DTYPES[2]], ids=dtype_id)
@pytest.mark.parametrize("name", MAKE)
def test_ops_of_many_shapes(name: str, dtypes: Dtypes, shape: tuple[int, ...]) -> None:
    case = MAKE[name](shape, dtypes, True)
    alike(lambda: list(gradients(case.op, case.inputs).values()))


@pytest.mark.parametrize("engine", ["fused", "autograd"])
@pytest.mark.parametrize(("samples", "dim", "width"), [(1, 1, 3), (17, 2, 16), (70, 5, 33)])
def test_paths_of_many_sizes(engine: Any, samples: int, dim: int, width: int) -> None:
    torch.manual_seed(2)
    nets = [FourierMLP(dim, width=width, depth=2) for _ in range(2)]
    sde = DiffFlowSDE(*nets, GeometricDiffusion(0.5, 1.0, learnable=True))
    grid, x0 = TimeGrid.power(3, 1.0), torch.randn(samples, dim)

    def compute() -> Results:
        sde.zero_grad()
        leaf = x0.clone().requires_grad_()
        mean = sde.mean_loss(leaf, grid, KEY, engine=engine)
        each = sde.loss(leaf, grid, KEY, engine=engine)
        (mean + each.sum()).backward()
        grads = [p.grad.clone() for p in sde.parameters() if p.grad is not None]
        assert leaf.grad is not None
        paths = [sde.encode(x0, grid, KEY), sde.path(x0, grid, KEY)]
        return [mean.detach(), each.detach(), leaf.grad, *grads, *paths]

    alike(compute)


def test_a_result_that_is_not_written_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(2, 3)

    class Idle:
        def em_step(self, *arguments: Any) -> None:
            return None

    replace_everywhere(monkeypatch, core, Idle())
    with pytest.raises(AssertionError):
        alike(lambda: [functional.em_step(x, x, dt=0.1, g=1.0, key=KEY, step=0)])


# --- growth --------------------------------------------------------------------------------------

STEPS = """
import sys, torch
from diffflow_ext import DiffFlowSDE, GeometricDiffusion, NoiseKey, TimeGrid
from diffflow_ext.nets import FourierMLP

engine, leaked = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
nets = [FourierMLP(2, width=16, depth=2) for _ in range(2)]
sde = DiffFlowSDE(*nets, GeometricDiffusion(0.5, 1.0, learnable=True))
optimiser = torch.optim.Adam(sde.parameters(), 1e-4)
x0, kept = torch.randn(32, 2), []

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

for step in range(2000):
    grid = TimeGrid.stratified(3, 1.0, key=NoiseKey(1, step))
    optimiser.zero_grad()
    sde.mean_loss(x0, grid, NoiseKey(0, step), engine=engine).backward()
    optimiser.step()
    if leaked:  # The list itself grows too, in pieces that the system does not get back.
        kept.append(b"x" * leaked)
    if step == 499:
        before = resident()
print(resident() - before)
"""


def growth(engine: str, leaked: int = 0) -> int:
    """Bytes by which a process grows from step 500 to step 2,000."""
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", STEPS, engine, str(leaked)],
        capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("engine", ["fused", "autograd"])
def test_memory_is_flat_over_two_thousand_steps(engine: str) -> None:
    # A tensor like the batch, 256 bytes, kept at each of the 1,500 steps would be 375 KiB.
    assert growth(engine) < 350 * 2**10


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_leak_of_the_size_of_a_batch_shows() -> None:
    assert growth("fused", leaked=256) > 350 * 2**10
