"""A training step as one CUDA graph: one launch instead of one for each kernel.

With small networks a GPU waits for Python. Replaying a captured graph avoids that, but repeats the
same operations on the same addresses: everything that changes from step to step must be in device
memory. Here these are the data, the times of the grid, the stream of the noise (which the graph
increments), the learning rates and the decay of averaged weights.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from diffflow_ext.functional.checks import (
    checked_count,
    checked_finite,
    checked_positive_number,
    checked_steps,
)
from diffflow_ext.functional.core import copied_to
from diffflow_ext.functional.noise import NoiseKey
from diffflow_ext.processes.grids import TimeGrid

#: Called with data, grid and key; the key is a tensor on the device of the data.
Loss = Callable[[Tensor, TimeGrid, Tensor], Tensor]


class GridBuffer(TimeGrid):
    """A grid whose times and step lengths kernels read from device memory.

    It serves as the :class:`TimeGrid` of a loss. A graph captured with it uses the times written
    by :meth:`write` at each replay.

    Arguments:
        grid: The initial times, which fix the number of steps.
        device: The device of the kernels.
        dtype: The dtype of the states, float32 or float64.

    Raises:
        ValueError: If the dtype cannot hold a step length.
    """

    def __init__(
        self, grid: TimeGrid, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(grid.times)
        memory = torch.empty(2, grid.num_steps + 1, dtype=dtype, device=device)
        object.__setattr__(self, "memory", memory)
        self.write(grid)

    memory: Tensor
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def write(self, grid: TimeGrid) -> None:
        """Replaces the times, without waiting for the device.

        Raises:
            ValueError: If `grid` has another number of steps.
        """
        if grid.num_steps != self.num_steps:
            raise ValueError(
                f"GridBuffer.write: expected a grid of {self.num_steps} steps, got "
                f"{grid.num_steps}; make another buffer for it"
            )
        lengths = checked_steps("GridBuffer.write", grid.steps(), self.memory)
        object.__setattr__(self, "times", grid.times)
        padded = torch.tensor([*lengths, 1.0], dtype=torch.float64)
        rows = torch.stack([grid.times, padded]).to(self.memory.dtype)
        self.memory.copy_(copied_to(rows, self.memory.device))

    def times_on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Returns a copy of the times, made on the device."""
        self._require(device, dtype)
        return self.memory[0].clone()

    def steps_on(self, device: torch.device, dtype: torch.dtype) -> Sequence[float | Tensor]:
        """Returns copies of the step lengths, each a tensor of one element."""
        self._require(device, dtype)
        return self.memory[1, :-1].clone().unbind()

    def _require(self, device: torch.device, dtype: torch.dtype) -> None:
        own = self.memory
        if (device, dtype) != (own.device, own.dtype):
            raise ValueError(
                f"GridBuffer: expected states of {own.dtype} on {own.device}, got {dtype} on "
                f"{device}; make another buffer for them"
            )


class StepResult(NamedTuple):
    """The loss of a training step and the norm of its gradient, float64, shape ()."""

    loss: Tensor
    grad_norm: Tensor


class CapturedStep:
    r"""Loss, gradient, clipping, optimiser and averaged weights, replayed as one CUDA graph.

    On a GPU the first `warm_up` steps with each number of grid steps (and each shape of the data)
    run without a graph; the next one is captured and all later ones are replays. Nothing waits for
    the device: check that the result is finite before you save anything. On the CPU the same code
    runs without a graph.

    A graph needs a loss that depends only on its arguments: its noise comes from the key, not from
    torch's generators (dropout), and it has no `.item()` and no `if` on a tensor's value. Where
    that is not so, a warning says why, and this and all later steps run without a graph. Numbers
    of Python that change from step to step cannot be noticed: a replay has the old ones. So it is
    with a context that the loss hands on; write each batch's into one tensor, with `copy_`.

    Arguments:
        loss: Maps data, grid and key to a loss of shape (), such as
            ``lambda x0, grid, key: sde.mean_loss(x0, grid, key)``. Enter autocast inside.
        model: The module whose weights are averaged, on its device.
        optimizer: On a GPU an optimiser with the option `capturable`, such as Adam. It is set
            here, and learning rates become tensors; change them by :meth:`set_learning_rates`.
        key: The seed of the noise, and the stream of the first step; each step uses the next.
        ema: Averaged weights, torch's AveragedModel of `model`, which changes by
            :math:`\bar w \leftarrow \bar w + (1 - \text{decay})(w - \bar w)`; the first time
            :math:`\bar w = w`.
        clip: The largest norm of the gradient; a larger gradient is scaled down to it.
        warm_up: Steps before a capture, at least 1.

    Raises:
        ValueError: If the optimiser cannot be captured, or an argument is out of its range.

    Example:
        >>> from diffflow_ext.models import DiffFlowSDE
        >>> from diffflow_ext.nets import FourierMLP
        >>> sde = DiffFlowSDE(FourierMLP(2), FourierMLP(2), diffusion=0.5)
        >>> adam = torch.optim.Adam(sde.parameters(), lr=1e-3)
        >>> step = CapturedStep(sde, sde, adam, NoiseKey(0), clip=1.0)
        >>> result = step.step(torch.randn(64, 2), TimeGrid.power(10, t_end=1.0))
        >>> result.loss.shape
        torch.Size([])
    """

    def __init__(
        self,
        loss: Loss,
        model: nn.Module,
        optimizer: Optimizer,
        key: NoiseKey,
        *,
        ema: AveragedModel | None = None,
        clip: float | None = None,
        warm_up: int = 3,
    ) -> None:
        self.loss, self.model, self.optimizer, self.ema = loss, model, optimizer, ema
        self.clip = None if clip is None else checked_positive_number("CapturedStep", "clip", clip)
        self.warm_up = checked_count("CapturedStep", "warm_up", warm_up, 1, 2**31)
        self.parameters: list[Tensor] = [p for g in optimizer.param_groups for p in g["params"]]
        self.device = self.parameters[0].device
        self.seed, self.stream = key.seed, key.stream
        self.key = key.to_tensor(self.device)
        #: The weight of the new weights in the average, 1 - decay.
        self.share = torch.zeros((), dtype=torch.float64, device=self.device)
        self.averaged = 0 if ema is None else int(ema.n_averaged)
        self.uses_graphs = self.device.type == "cuda"
        self.num_captures = 0
        self._runs: Counter[Hashable] = Counter()
        self._slots: dict[Hashable, _Slot] = {}
        if ema is not None and (ema.use_buffers or ema.avg_fn or ema.multi_avg_fn):
            raise ValueError(
                "CapturedStep: expected ema=AveragedModel(model) without use_buffers and without "
                "functions of its own; give the decay to step()"
            )
        if self.uses_graphs:
            _make_capturable(optimizer, self.device)
            # By default it would be one of the current device, which may be another one.
            self._side = torch.cuda.Stream(self.device)
            self._pool = torch.cuda.graph_pool_handle()

    def set_learning_rates(self, rates: Sequence[float]) -> None:
        """Sets the learning rate of each group of parameters, without waiting for the device."""
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if not checked_finite("CapturedStep", "the learning rate", rate) >= 0:
                raise ValueError(f"CapturedStep: expected learning rates >= 0, got {rate}")
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def step(
        self,
        x0: Tensor,
        grid: TimeGrid | None = None,
        *,
        stream: int | None = None,
        decay: float = 0.999,
    ) -> StepResult:
        """Takes a training step; returns its loss and the norm of its gradient.

        Arguments:
            x0: The data, shape (B, *event), on the device of the model.
            grid: The times; None if the loss does not use them.
            stream: The stream of the noise. Default: the one after the last step's.
            decay: The decay of the averaged weights.
        """
        self._set_stream(self.stream if stream is None else stream)
        self.share.fill_(1.0 if self.averaged == 0 else 1 - decay)
        values = self._graphed(x0, grid) if self.uses_graphs else self._run(x0, grid)
        self.stream += 1
        if self.ema is not None:
            self.averaged += 1
            self.ema.n_averaged += 1
        return StepResult(*values.unbind())

    def _set_stream(self, stream: int) -> None:
        if NoiseKey(self.seed, stream).stream != self.stream:
            self.key[1].fill_(stream)
            self.stream = stream

    # --- one step, in a graph or not -------------------------------------------------------------

    def _run(self, x0: Tensor, grid: TimeGrid | None) -> Tensor:
        """Takes a step; returns the loss and the norm of the gradient."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(x0, grid, self.key)  # pyright: ignore[reportArgumentType]
        loss.backward()
        norm = self._clip_gradients()
        self.optimizer.step()
        self._average()
        self.key[1].add_(1)
        return torch.stack([loss.detach().double(), norm.double()])

    def _clip_gradients(self) -> Tensor:
        if self.clip is not None:
            return torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))  # pyright: ignore

    @torch.no_grad()
    def _average(self) -> None:
        """Updates the averaged weights; AveragedModel's own update waits for the device."""
        if self.ema is None:
            return
        for average, new in zip(self.ema.parameters(), self.model.parameters(), strict=True):
            average.lerp_(new, self.share.to(average.dtype))
        for average, new in zip(self.ema.module.buffers(), self.model.buffers(), strict=True):
            average.copy_(new)

    # --- graphs ----------------------------------------------------------------------------------

    def _graphed(self, x0: Tensor, grid: TimeGrid | None) -> Tensor:
        name = (None if grid is None else grid.num_steps, tuple(x0.shape), x0.dtype)
        slot = self._slots.get(name)
        if slot is None:
            slot = self._slots[name] = _Slot(x0, grid)
        slot.write(x0, grid)
        if slot.graph is None:
            if self._runs[name] < self.warm_up:
                self._runs[name] += 1
                return self._eager(slot)
            self._capture(slot)
        if slot.graph is None:
            return self._run(x0, grid)
        assert slot.values is not None
        slot.graph.replay()
        return slot.values.clone()

    def _eager(self, slot: _Slot) -> Tensor:
        """Runs a step in a side stream, which torch requires of steps before a capture."""
        before = self._generators()
        current = torch.cuda.current_stream(self.device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            values = self._run(slot.x0, slot.grid)
        current.wait_stream(self._side)
        values.record_stream(current)
        if any(not torch.equal(a, b) for a, b in zip(before, self._generators(), strict=True)):
            self._give_up(
                "the loss draws from torch's generators (dropout, torch.randn, a missing key), "
                "and a replay would not draw what its gradient needs; make its noise from the key"
            )
        return values

    def _give_up(self, reason: str) -> None:
        warnings.warn(f"CapturedStep: goes on without a CUDA graph: {reason}", stacklevel=2)
        self.uses_graphs = False

    def _generators(self) -> tuple[Tensor, Tensor]:
        return torch.get_rng_state(), torch.cuda.get_rng_state(self.device)

    def _capture(self, slot: _Slot) -> None:
        # Gradients must be allocated in the graph's memory. All graphs can share one pool, because
        # no graph reads memory of another.
        self.optimizer.zero_grad(set_to_none=True)
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._side):
                slot.values = self._run(slot.x0, slot.grid)
        except RuntimeError as error:
            torch.cuda.set_stream(current)  # torch does not if the end of the capture failed.
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            self._give_up(
                f"the step cannot be captured: {error}; look for .item(), copies from the host "
                "and sizes that depend on values"
            )
            return
        slot.graph = graph
        self.num_captures += 1


class _Slot:
    """The memory of a graph's data, grid and result."""

    def __init__(self, x0: Tensor, grid: TimeGrid | None) -> None:
        self.x0 = torch.empty_like(x0)
        self.grid = None if grid is None else GridBuffer(grid, x0.device, x0.dtype)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.values: Tensor | None = None

    def write(self, x0: Tensor, grid: TimeGrid | None) -> None:
        self.x0.copy_(x0)
        if self.grid is not None and grid is not None:
            self.grid.write(grid)


def _make_capturable(optimizer: Optimizer, device: torch.device) -> None:
    """Moves the values that an optimiser reads in each step into device memory."""
    for group in optimizer.param_groups:
        if "capturable" not in group:
            raise ValueError(
                f"CapturedStep: expected an optimiser that knows `capturable`, such as Adam, got "
                f"{type(optimizer).__name__}"
            )
        group["capturable"] = True
        if not isinstance(group["lr"], Tensor) or group["lr"].device != device:
            group["lr"] = torch.tensor(float(group["lr"]), device=device)
    # Uncaptured steps are intended, so torch should not warn of them.
    optimizer._warned_capturable_if_run_uncaptured = True  # pyright: ignore
    for state in optimizer.state.values():
        if isinstance(state.get("step"), Tensor):
            state["step"] = state["step"].to(device)
