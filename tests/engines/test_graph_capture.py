"""What a capture in a CUDA graph would refuse is found on the CPU.

Tensors on torch's `meta` device, which has shapes and no values, pass for a GPU's; the kernels do
nothing; and every operation that torch dispatches is looked at.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from graph_steps import CPU, KEY, META, grid_of, model
from helpers import replace_everywhere
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffflow_ext import DiffFlowSDE, TimeGrid
from diffflow_ext.engines import CapturedStep, GridBuffer
from diffflow_ext.engines.adjoint.replay import random_states
from diffflow_ext.engines.autocast import Autocast
from diffflow_ext.functional.checks import check_device
from diffflow_ext.functional.core import build_info, core, device_and_stream
from diffflow_ext.nets import FourierMLP, UNet
from diffflow_ext.processes import grids

#: Operations whose result, or its size, depends on values: the host would have to wait for them.
WAITING = {
    "_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique2",
    "_unique2", "item", "allclose", "bincount",
}  # fmt: skip
#: Draws from torch's generators: a replay would not repeat them where the gradient needs it.
DRAWING = {"normal_", "uniform_", "bernoulli_", "bernoulli", "randn", "rand", "randint",
           "native_dropout", "random_", "randperm", "rand_like", "randn_like"}  # fmt: skip

#: By their number of steps, made here: kernels of a pretended GPU compute nothing.
GRIDS = {n: grid_of(0, n) for n in (2, 4)}


class Refused(AssertionError):
    """An operation that a capture would not take."""


class Capture(TorchDispatchMode):
    """Refuses what a CUDA graph could not hold, where `meta` passes for the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        inputs = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)]
        result = func(*args, **(kwargs or {}))
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        on_device = [t for t in (*inputs, *outputs) if t.device == META]
        # Arithmetic takes a number that lies on the host as an argument of the kernel.
        host = [t for t in (*inputs, *outputs) if t.device == CPU and (t.dim() or "cop" in name)]
        self.seen += len(on_device) > 0
        if on_device and (name in WAITING or name in DRAWING or host):
            raise Refused(f"{func} of {[(t.device.type, tuple(t.shape)) for t in inputs]}")
        if name == "index" and any(t.dtype == torch.bool for t in inputs if t.device == META):
            raise Refused(f"{func} with a mask")
        return result


class NoNumbers(TorchFunctionMode):
    """Refuses torch.tensor(numbers, device=...), whose copy is hidden from the mode above."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and result.device == META:
            if not isinstance(args[0], Tensor):
                raise Refused(f"{func} of {args[0]}")
        return result


class NoKernels:
    """Kernels that do nothing: `meta` tensors have no memory."""

    def num_segments(self, elements: int) -> int:
        return 2

    def __getattr__(self, name: str) -> Callable[..., SimpleNamespace]:
        return lambda *args: SimpleNamespace()


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes `meta` tensors pass for a GPU's, in the middle of a capture."""
    grids._cached.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "is_cuda", property(lambda x: x.device == META), raising=False)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        replace_everywhere(patch, core, NoKernels())
        replace_everywhere(patch, device_and_stream, lambda x: (0, 0))
        replace_everywhere(patch, build_info, lambda: {"cuda": True})
        replace_everywhere(patch, check_device, lambda op, name, x: None)
        replace_everywhere(patch, random_states, lambda device: ())
        off = Autocast("cpu", False, torch.bfloat16)
        patch.setattr(Autocast, "current", lambda device_type: off)
        patch.setattr(torch, "autocast", lambda *a, **k: contextlib.nullcontext())
        patch.setattr(Tensor, "pin_memory", lambda x: x)
        adam = importlib.import_module("torch.optim.adam")
        patch.setattr(adam, "_get_capturable_supported_devices", lambda *a, **k: ["meta"])
        yield
    grids._cached.cache_clear()


def pretend_step(sde: nn.Module, loss: Any, x0: Tensor, grid: TimeGrid | None) -> int:
    """Takes a step to settle and one under the eye of `Capture`."""
    adam = torch.optim.Adam(sde.parameters())
    adam.param_groups[0].update(capturable=True, lr=torch.zeros((), device=META))
    ema = AveragedModel(sde)
    step = CapturedStep.__new__(CapturedStep)
    vars(step).update(
        loss=loss, model=sde, optimizer=adam, ema=ema, clip=1.0,
        parameters=list(sde.parameters()), key=KEY.to_tensor(META),
        share=torch.zeros((), dtype=torch.float64, device=META),
    )  # fmt: skip
    step._run(x0, grid)
    with NoNumbers(), Capture() as capture:
        step._run(x0, grid)
    return capture.seen


def loss_of(sde: DiffFlowSDE, **options: Any) -> Any:
    return lambda x0, grid, key: sde.mean_loss(x0, grid, key, **options)


@pytest.mark.usefixtures("pretended_gpu")
@pytest.mark.parametrize("scores", [1, 3])
@pytest.mark.parametrize("options", [{}, {"checkpoint_every": 3}, {"checkpoint_every": 0}])
def test_a_step_asks_nothing_of_the_host(options: dict[str, Any], scores: int) -> None:
    sde = model(META)
    sde.scores_per_call = scores
    x0 = torch.empty(6, 2, device=META)
    seen = pretend_step(sde, loss_of(sde, **options), x0, GridBuffer(GRIDS[4], META))
    assert seen > 300


class Lowered(nn.Module):
    """A network that computes in bfloat16."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.bfloat16()

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(t, x.bfloat16())


@pytest.mark.usefixtures("pretended_gpu")
def test_a_step_of_unets_in_bfloat16_asks_nothing_of_the_host() -> None:
    nets = (UNet(1, 8, base=8, mults=(1, 2), blocks=1, attention=(4,)) for _ in range(2))
    sde = DiffFlowSDE(*map(Lowered, nets)).to(META)
    x0, grid = torch.empty(2, 1, 8, 8, device=META), GridBuffer(GRIDS[2], META)
    assert pretend_step(sde, loss_of(sde), x0, grid) > 1000


class Logistic(nn.Module):
    """A prior."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def log_prob(self, x: Tensor) -> Tensor:
        return (-x * self.scale - 2 * nn.functional.softplus(-x * self.scale)).sum(1)

    def sample(self, n: int) -> Tensor:
        return torch.zeros(n, 2)


@pytest.mark.usefixtures("pretended_gpu")
def test_a_step_with_a_prior_asks_nothing_of_the_host() -> None:
    nets = FourierMLP(2, 16, 1), FourierMLP(2, 16, 1)
    sde = DiffFlowSDE(*nets, prior=Logistic()).to(META)
    weight = torch.empty(6, device=META)
    x0, grid = torch.empty(6, 2, device=META), GridBuffer(GRIDS[4], META)
    for options in ({}, {"weight": weight}):
        assert pretend_step(sde, loss_of(sde, **options), x0, grid) > 300


@pytest.mark.usefixtures("pretended_gpu")
def test_a_grid_that_was_used_before_needs_nothing_of_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sde, x0, grid = model(META), torch.empty(6, 2, device=META), GRIDS[4]
    with pytest.raises(RuntimeError, match="must be on the device before a CUDA graph"):
        pretend_step(sde, loss_of(sde), x0, grid)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        grid.times_on(META, torch.float32)
    assert pretend_step(sde, loss_of(sde), x0, TimeGrid(grid.times)) > 300


@pytest.mark.usefixtures("pretended_gpu")
def test_what_a_captured_graph_reads_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph has its address alone, and the cache forgets it after other grids."""
    capturing = [False]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    numbers = (0.0, 0.25, 1.0)
    of_the_graph = weakref.ref(grids.numbers_on(META, torch.float32, numbers))
    capturing[0] = True
    grids.numbers_on(META, torch.float32, numbers)
    capturing[0] = False
    plain = weakref.ref(grids.numbers_on(META, torch.float32, (0.0, 0.5, 1.0)))
    for n in range(2, 100):
        grids.numbers_on(META, torch.float32, tuple(range(n)))
    gc.collect()
    assert plain() is None
    assert of_the_graph() is not None


def test_what_a_device_remembers_of_a_grid_is_never_handed_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grids, "_cached", lambda device, dtype, numbers: kept)
    kept = torch.zeros(5, device=META)
    assert grid_of(0).times_on(META, torch.float32) is not kept
    grid = grid_of(0)
    grid.times_on(CPU, torch.float64).zero_()
    assert grid == grid_of(0)


BREAKERS: dict[str, Callable[[Tensor], object]] = {
    "reads a value": lambda x: float(x.sum()),
    "asks for truth": lambda x: bool((x > 0).all()),
    "selects by a mask": lambda x: x[x > 0],
    "copies from the host": lambda x: x + torch.ones(6, 2).to(META),
    "makes a number on the host": lambda x: x * torch.as_tensor(2.0, device=META),
    "copies to the host": lambda x: x.to("cpu"),
    "draws": nn.functional.dropout,
    "draws normals": torch.randn_like,
}


@pytest.mark.usefixtures("pretended_gpu")
@pytest.mark.parametrize("breaker", BREAKERS.values(), ids=BREAKERS)
def test_the_eye_finds_what_breaks_a_capture(breaker: Callable[[Tensor], object]) -> None:
    x = torch.empty(6, 2, device=META)
    with pytest.raises((Refused, RuntimeError, NotImplementedError)), NoNumbers(), Capture():
        breaker(x)
