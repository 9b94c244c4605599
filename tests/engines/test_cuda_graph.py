"""Training steps for CUDA graphs: everything but the capture itself, on the CPU.

A stand-in for a GPU finds what a capture would refuse: tensors on torch's `meta` device, which has
shapes and no values, pass for a GPU's; the kernels do nothing; and every operation that torch
dispatches is looked at.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import replace_everywhere
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffflow_ext import DiffFlowSDE, GeometricDiffusion, NoiseKey, TimeGrid
from diffflow_ext.engines import CapturedStep, GridBuffer
from diffflow_ext.engines.fused import paths_cuda
from diffflow_ext.engines.network import Autocast
from diffflow_ext.engines.problem import build_problem
from diffflow_ext.functional.checks import check_device
from diffflow_ext.functional.core import build_info, core, device_and_stream
from diffflow_ext.nets import FourierMLP, UNet
from diffflow_ext.processes import grids

KEY = NoiseKey(3, 10)
CPU, META = torch.device("cpu"), torch.device("meta")


def model(device: torch.device = CPU) -> DiffFlowSDE:
    torch.manual_seed(0)
    nets = FourierMLP(2, 16, 1), FourierMLP(2, 16, 1)
    return DiffFlowSDE(*nets, GeometricDiffusion(0.3, 0.6, learnable=True)).to(device)


def grid_of(i: int, num_steps: int = 4) -> TimeGrid:
    return TimeGrid.stratified(num_steps, t_end=1.0, key=NoiseKey(8, i))


def batch(i: int) -> Tensor:
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(i))


def decay(i: int) -> float:
    return min(0.9, (1 + i) / (10 + i))


# --- the same bits as a plain loop ---------------------------------------------------------------

Trained = tuple[list[Tensor], list[Tensor]]


def tensors(sde: DiffFlowSDE, ema: AveragedModel, adam: torch.optim.Adam) -> list[Tensor]:
    moments = [v for state in adam.state.values() for v in state.values()]
    values = [*sde.state_dict().values(), *ema.state_dict().values(), *moments]
    return [value.clone() for value in values]


def plain_loop(steps: int, grid: Callable[[int], TimeGrid], engine: str) -> Trained:
    sde = model()
    ema, adam = AveragedModel(sde), torch.optim.Adam(sde.parameters())
    found = []
    for i in range(steps):
        adam.zero_grad()
        loss = sde.mean_loss(batch(i), grid(i), KEY.at(10 + i), engine=engine)  # pyright: ignore
        loss.backward()
        norm = nn.utils.clip_grad_norm_(sde.parameters(), 0.5)
        for group in adam.param_groups:
            group["lr"] = 1e-2 / (1 + i)
        adam.step()
        ema.multi_avg_fn = get_ema_multi_avg_fn(decay(i))
        ema.update_parameters(sde)
        found.append(torch.stack([loss.detach(), norm]).double())
    return found, tensors(sde, ema, adam)


def run_steps(
    kind: type[CapturedStep], steps: int, grid: Callable[[int], TimeGrid], engine: str
) -> tuple[Trained, CapturedStep]:
    sde = model()
    ema, adam = AveragedModel(sde), torch.optim.Adam(sde.parameters())

    def loss(x0: Tensor, times: TimeGrid, key: Tensor) -> Tensor:
        return sde.mean_loss(x0, times, key, engine=engine)  # pyright: ignore

    step = kind(loss, sde, adam, KEY, ema=ema, clip=0.5, warm_up=2)
    results = []
    for i in range(steps):
        step.set_learning_rates([1e-2 / (1 + i)])
        results.append(step.step(batch(i), grid(i), decay=decay(i)))
    # Only now: a result must not be overwritten by the next.
    found = [torch.stack(result) for result in results]
    return (found, tensors(sde, ema, adam)), step


def assert_same(actual: Trained, expected: Trained) -> None:
    for a, b in zip([*actual[0], *actual[1]], [*expected[0], *expected[1]], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("engine", ["auto", "autograd"])
def test_steps_on_the_cpu_are_those_of_a_plain_loop(engine: str) -> None:
    trained, step = run_steps(CapturedStep, 6, grid_of, engine)
    assert_same(trained, plain_loop(6, grid_of, engine))
    assert step.num_captures == 0
    assert step.stream == 16


class Replay:
    """Stands for a captured graph: it does again what was done at the capture."""

    def __init__(self, run: Callable[[], Tensor], place: Any) -> None:
        self.run, self.place = run, place

    def replay(self) -> None:
        self.place.values.copy_(self.run())


class Emulated(CapturedStep):
    """The bookkeeping of captures and replays, without a device."""

    eager = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.uses_graphs = True

    def _eager(self, place: Any) -> Tensor:
        self.eager += 1
        return self._run(place.x0, place.grid)

    def _capture(self, place: Any) -> None:
        place.values = torch.zeros(2, dtype=torch.float64)
        place.graph = Replay(lambda: self._run(place.x0, place.grid), place)
        self.num_captures += 1


def test_one_capture_for_each_number_of_steps() -> None:
    counts = [4, 4, 4, 4, 7, 7, 7, 7, 4, 7]

    def grid(i: int) -> TimeGrid:
        return grid_of(i, counts[i])

    trained, step = run_steps(Emulated, len(counts), grid, "autograd")
    assert_same(trained, plain_loop(len(counts), grid, "autograd"))
    assert step.num_captures == 2
    assert step.eager == 4  # pyright: ignore
    step.step(batch(0)[:3], grid_of(0))
    assert step.eager == 5  # pyright: ignore


def test_each_step_has_fresh_noise_and_a_stream_can_be_named() -> None:
    seen: list[list[int]] = []

    def loss(x0: Tensor, times: TimeGrid, key: Tensor) -> Tensor:
        seen.append(key.tolist())
        return sde.mean_loss(x0, times, key)

    sde = model()
    step = Emulated(loss, sde, torch.optim.SGD(sde.parameters(), lr=0.0), KEY)
    x0, grid = batch(0), grid_of(0)
    losses = [float(step.step(x0, grid).loss) for _ in range(5)]
    losses += [float(step.step(x0, grid, stream=12).loss), float(step.step(x0, grid).loss)]
    assert seen == [[3, stream] for stream in (10, 11, 12, 13, 14, 12, 13)]
    assert len(set(losses)) == 5
    assert losses[5:] == losses[2:4]
    assert losses[0] == pytest.approx(float(sde.mean_loss(x0, grid, KEY).detach()), rel=1e-6)


def test_unclipped_gradients_are_measured_too() -> None:
    sde = model()
    step = CapturedStep(sde, sde, torch.optim.SGD(sde.parameters(), lr=0.0), KEY)
    norm = step.step(batch(0), grid_of(0)).grad_norm
    grads = [p.grad.flatten() for p in sde.parameters() if p.grad is not None]
    assert float(norm) == pytest.approx(float(torch.cat(grads).norm()), rel=1e-6)


def test_bad_arguments() -> None:
    sde = model()
    adam = torch.optim.Adam(sde.parameters())
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, "expected 1 <= warm_up", {"warm_up": 0}),
        (TypeError, "expected clip to be a number", {"clip": "1"}),
        (ValueError, "use_buffers=False", {"ema": AveragedModel(sde, use_buffers=True)}),
    ]
    for error, text, options in cases:
        with pytest.raises(error, match=text):
            CapturedStep(sde, sde, adam, KEY, **options)
    with pytest.raises(ValueError, match=r"0 <= stream < 2\^32"):
        CapturedStep(sde, sde, adam, KEY).step(batch(0), grid_of(0), stream=-1)


# --- grids in memory -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("every", [1, 3])
def test_a_grid_in_memory_gives_the_bits_of_a_grid(dtype: torch.dtype, every: int) -> None:
    sde = model().to(dtype)
    buffer = GridBuffer(grid_of(0), CPU, dtype)
    for i in range(3):
        buffer.write(grid_of(i))
        results = []
        for grid in (buffer, grid_of(i)):
            for fn in (sde.loss, sde.mean_loss):
                x0 = batch(i).to(dtype).requires_grad_()
                loss = fn(x0, grid, KEY, engine="autograd", checkpoint_every=every).sum()
                results.append((loss, *torch.autograd.grad(loss, [x0, *sde.parameters()])))
        for a, b in zip((*results[0], *results[1]), (*results[2], *results[3]), strict=True):
            assert torch.equal(a, b)


def test_a_grid_in_memory_may_change_before_the_backward_pass() -> None:
    sde, buffer, grads = model(), GridBuffer(grid_of(0), CPU), []
    for other in (0, 1):
        buffer.write(grid_of(0))
        loss = sde.loss(batch(0), buffer, KEY, engine="autograd").sum()
        buffer.write(grid_of(other))
        grads.append(torch.autograd.grad(loss, list(sde.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_batched_scores_of_a_grid_in_memory() -> None:
    sde = model()
    sde.score_memory = 10**9
    buffer, losses = GridBuffer(grid_of(5), CPU), []
    for grid in (buffer, grid_of(5)):
        loss = sde.mean_loss(batch(0), grid, KEY, engine="autograd")
        losses.append((loss, *torch.autograd.grad(loss, list(sde.parameters()))))
    for a, b in zip(*losses, strict=True):
        # The root of a step length is taken in float32 in memory, in float64 otherwise.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_kernels_for_whole_paths_get_the_lengths_of_either_grid() -> None:
    sde, grid = model(), grid_of(5)
    expected = torch.tensor(grid.steps(), dtype=torch.float32)
    for given in (grid, GridBuffer(grid, CPU)):
        p, _, _ = build_problem("test", sde.drift, sde.score, batch(0), given)
        assert torch.equal(paths_cuda._step_lengths(p, CPU), expected)


def test_refusals_of_a_grid_in_memory() -> None:
    buffer = GridBuffer(grid_of(0), CPU)
    assert buffer == buffer
    assert buffer != GridBuffer(grid_of(0), CPU)
    assert len({buffer: 1, GridBuffer(grid_of(0), CPU): 2}) == 2
    with pytest.raises(ValueError, match="expected a grid of 4 steps, got 5"):
        buffer.write(grid_of(0, 5))
    with pytest.raises(ValueError, match="the shortest step"):
        GridBuffer(TimeGrid.from_times([0.0, 1e-42, 1.0]), CPU)
    with pytest.raises(ValueError, match=r"states of torch.float32 on cpu, got torch.float64"):
        model().double().mean_loss(batch(0).double(), buffer, KEY)


# --- what a capture would refuse -----------------------------------------------------------------

#: Operations whose result, or its size, depends on values: the host would have to wait for them.
WAITING = {
    "_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique2",
    "_unique2", "item", "allclose", "bincount",
}  # fmt: skip
#: Draws from torch's generators: a replay would not repeat them where the gradient needs it.
DRAWING = {"normal_", "uniform_", "bernoulli_", "bernoulli", "randn", "rand", "randint",
           "native_dropout", "random_", "randperm", "rand_like", "randn_like"}  # fmt: skip


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

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: None


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes `meta` tensors pass for a GPU's, in the middle of a capture."""
    grids._device_times.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "is_cuda", property(lambda x: x.device == META), raising=False)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        replace_everywhere(patch, core, NoKernels())
        replace_everywhere(patch, device_and_stream, lambda x: (0, 0))
        replace_everywhere(patch, build_info, lambda: {"cuda": True})
        replace_everywhere(patch, check_device, lambda op, name, x: None)
        patch.setattr("diffflow_ext.engines.adjoint.replay._states", lambda device: ())
        off = Autocast("cpu", False, torch.bfloat16)
        patch.setattr(Autocast, "current", lambda device_type: off)
        patch.setattr(torch, "autocast", lambda *a, **k: contextlib.nullcontext())
        patch.setattr(Tensor, "pin_memory", lambda x: x)
        adam = importlib.import_module("torch.optim.adam")
        patch.setattr(adam, "_get_capturable_supported_devices", lambda *a, **k: ["meta"])
        yield
    grids._device_times.cache_clear()


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
@pytest.mark.parametrize("memory", [None, 10**6])
@pytest.mark.parametrize(
    "options", [{}, {"checkpoint_every": 3}, {"activation_memory": 10**6}, {"checkpoint_every": 0}]
)
def test_a_step_asks_nothing_of_the_host(options: dict[str, Any], memory: int | None) -> None:
    sde = model(META)
    sde.score_memory = memory
    x0 = torch.empty(6, 2, device=META)
    seen = pretend_step(sde, loss_of(sde, **options), x0, GridBuffer(grid_of(0), META))
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
    x0, grid = torch.empty(2, 1, 8, 8, device=META), GridBuffer(grid_of(0, 2), META)
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
    x0, grid = torch.empty(6, 2, device=META), GridBuffer(grid_of(0), META)
    for options in ({}, {"weight": weight}):
        assert pretend_step(sde, loss_of(sde, **options), x0, grid) > 300


@pytest.mark.usefixtures("pretended_gpu")
def test_a_grid_that_was_used_before_needs_nothing_of_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sde, x0, grid = model(META), torch.empty(6, 2, device=META), grid_of(0)
    with pytest.raises(RuntimeError, match="must be on the device before a CUDA graph"):
        pretend_step(sde, loss_of(sde), x0, grid)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        grids._device_times(grid, META, torch.float32)
    assert pretend_step(sde, loss_of(sde), x0, TimeGrid(grid.times)) > 300


def test_what_a_device_remembers_of_a_grid_is_never_handed_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grids, "_device_times", lambda grid, device, dtype: kept)
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
