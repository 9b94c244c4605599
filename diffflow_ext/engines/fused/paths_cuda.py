"""Whole paths of perceptrons on a GPU: four launches, and products for the weights' gradients.

See csrc/fused/gpu/paths.h. A block takes 16 samples through all steps with one network's weights
in shared memory. Deltas and activations of every step are written to device memory, where torch's
matrix products compute the gradients of the weights. Batches that need too much memory are split;
each sample keeps its noise.

**Memory.** Losses with gradients keep two numbers for each sample, time, layer and unit of both
networks, as many as autograd's graph of all steps: 500 MB in float32 for 2,000 samples, 30 steps
and two networks of width 128 with three hidden layers, 250 MB in bfloat16. A batch is split so
that they stay below :data:`KEPT_BYTES`. Of float32, TF32 and bfloat16 only the last takes less;
``engine="autograd"`` stores states instead.

**Networks.** The widest ones with three hidden layers after the first, on states of 2 components,
by shared memory of a block; in parentheses the widest whose weights stay there, so that no layer
is read again for its product:

====================================  ===============  =========
Card                                  float32, TF32    bfloat16
====================================  ===============  =========
99 KiB (sm_86, sm_89, sm_120)         128 (80)         192 (112)
163 KiB (A100, sm_80)                 176 (96)         256 (144)
227 KiB (H100, sm_90; B200, sm_100)   208 (128)        256 (176)
====================================  ===============  =========

Each component takes memory too: with 63 of them it is 64, 112 and 144 units in float32, and 80,
144 and 192 in bfloat16.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.functional.core import address, build_info, core, device_and_stream
from diffflow_ext.functional.noise import PURPOSES, noise_source
from diffflow_ext.processes.grids import numbers_on

from ..problem import PathProblem, normal_cost
from .workspace import Parts, Rounding

#: Most bytes of activations and deltas at a time.
KEPT_BYTES = 2 * 2**30
#: Samples of a block, and units of a warp.
_ROWS = 16
#: The first version of torch whose bmm can return float32 sums of bfloat16 factors.
_SUMS_IN_FLOAT32 = (2, 9)


def obstacle(drift: Parts, score: Parts, dim: int, rounding: Rounding, device: int) -> str:
    """Returns why networks do not fit the kernels of a device, "" if they do."""
    if not build_info()["cuda"]:
        return "this build has no CUDA kernels"
    units, hidden = core.gpu_paths_limits()
    for name, net in (("drift", drift), ("score", score)):
        if net.width > units or net.depth > hidden:
            return f"{name}: it is wider than {units} or has more than {hidden} hidden layers"
        need, limit = _shared_bytes(net, dim, rounding), core.gpu_paths_shared_limit(device)
        if need > limit:
            return (
                f"{name}: {net.width} units in {rounding} take {need} bytes of shared memory, and "
                f"a block of {core.gpu_paths_card(device)} has {limit}"
                f"{_ways_out(net, dim, rounding, limit)}"
            )
    return ""


def _shared_bytes(net: Parts, dim: int, rounding: Rounding, width: int | None = None) -> int:
    """Returns the least shared memory that a block needs, for another width if one is given."""
    products = getattr(core.Products, rounding)
    return core.gpu_paths_shared_bytes(width or net.width, net.depth, dim, products)


def _ways_out(net: Parts, dim: int, rounding: Rounding, limit: int) -> str:
    """Returns what would fit instead."""
    narrower = range(_ROWS, net.width, _ROWS)
    fits = [w for w in narrower if _shared_bytes(net, dim, rounding, w) <= limit]
    ways = [f"{fits[-1]} units fit"] if fits else []
    if rounding != "bfloat16" and _shared_bytes(net, dim, "bfloat16") <= limit:
        ways.append(f"all {net.width} fit under torch.autocast to bfloat16")
    return "; " + ", ".join([*ways, "engine='autograd' takes any network"])


def _step_lengths(p: PathProblem, device: torch.device) -> Tensor:
    """Returns the lengths of all steps on a device."""
    tensors = [step for step in p.steps if isinstance(step, Tensor)]
    if tensors:
        return torch.stack(tensors)
    return numbers_on(device, torch.float32, tuple(p.steps))  # pyright: ignore[reportArgumentType]


@dataclass
class GpuRun:
    """One call: a problem, its networks without graphs, and g at all times."""

    p: PathProblem
    drift: Parts
    score: Parts
    rounding: Rounding
    g: Tensor

    def loss(self, weight: Tensor | None, x0: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """Returns the losses, and with weights the gradients of x0, g and all tensors."""
        costs: list[Tensor] = []
        of_x0: list[Tensor] = []
        sums: list[Tensor | None] = []
        size = self._part_size(x0)
        with torch.autocast(x0.device.type, enabled=False):
            for first in range(0, x0.shape[0], size):
                part = Part(self, x0[first : first + size], first, keep=weight is not None)
                costs.append(part.cost())
                if weight is None:
                    continue
                x0_grad, grads = part.gradients(weight[first : first + size])
                of_x0.append(x0_grad)
                sums = list(map(_plus, sums, grads)) if sums else grads
        return _joined(costs), [_joined(of_x0), *sums] if sums else []

    def path(self, x0: Tensor) -> Tensor:
        """Returns all states, shape (N+1, B, dim)."""
        return Part(self, x0, 0, keep=False, states_only=True).states

    def _part_size(self, x0: Tensor) -> int:
        """Returns the number of samples of a part."""
        item = 2 if self.rounding == "bfloat16" else 4
        units = sum(_padded(net) * (net.depth + 1) for net in (self.drift, self.score))
        sample_bytes = 2 * item * (self.p.num_steps + 1) * units
        return min(x0.shape[0], max(1, KEPT_BYTES // sample_bytes // _ROWS) * _ROWS)


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else a + b


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _padded(net: Parts) -> int:
    return math.ceil(net.width / _ROWS) * _ROWS


@dataclass
class _Trace:
    """Activations of one network, (depth + 1, times, samples, units); deltas replace slopes.

    Sums of deltas over the samples of each tile have the shape (depth + 1, times, tiles, units).
    """

    values: Tensor
    slopes: Tensor
    tile_sums: Tensor

    def addresses(self) -> Any:
        """Returns the core's form."""
        trace = core.GpuTrace()
        trace.values, trace.slopes = address(self.values), address(self.slopes)
        trace.sums = address(self.tile_sums)
        return trace

    @staticmethod
    def of(net: Parts, times: int, x: Tensor, rounding: Rounding) -> _Trace:
        dtype = torch.bfloat16 if rounding == "bfloat16" else torch.float32
        tiles = math.ceil(x.shape[0] / _ROWS)
        shape, sums = ((net.depth + 1, times, rows, _padded(net)) for rows in (x.shape[0], tiles))
        values, slopes = x.new_empty(shape, dtype=dtype), x.new_empty(shape, dtype=dtype)
        return _Trace(values, slopes, x.new_empty(sums))

    def gradients(self, net: Parts, x: Tensor, cotangents: Tensor) -> list[Tensor]:
        """Returns the gradients of the tensors of a network, its embedding only at these times."""
        width, deltas, values = net.width, self.slopes, self.values
        hidden = _products(deltas[1:], values[:-1]).sum(1)[:, :width, :width]
        sums = self.tile_sums.sum(2)[..., :width]
        return [
            sums[0],
            _products(deltas[0], x).sum(0)[:width],
            _products(cotangents, values[-1]).sum(0)[:, :width],
            cotangents.sum((0, 1)),
            *hidden,
            *sums[1:].sum(1),
        ]


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Returns sum_b a_..bm b_..bn, (..., m, n), in float32."""
    shape, (a, b) = a.shape[:-2], (t.flatten(0, -3) for t in (a, b))
    if a.dtype != b.dtype or not (a.is_cuda and _torch_version() >= _SUMS_IN_FLOAT32):
        a, b = a.float(), b.float()
    options = {} if a.dtype == torch.float32 else {"out_dtype": torch.float32}
    return torch.bmm(a.transpose(1, 2), b, **options).unflatten(0, shape)  # pyright: ignore


@functools.cache
def _torch_version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split(".")[:2])


class Part:
    """Consecutive samples of a batch: their paths, and the results of the kernels."""

    def __init__(
        self, run: GpuRun, x0: Tensor, first: int, *, keep: bool, states_only: bool = False
    ) -> None:
        self.run = run
        self.x0 = x0.detach().contiguous()
        self.steps = _step_lengths(run.p, x0.device)
        n, (samples, dim) = run.p.num_steps, x0.shape
        self.states = x0.new_empty((n + 1, samples, dim))
        self.drifts = None if states_only else x0.new_empty((n + 1, samples, dim))
        self.residuals = None if states_only else x0.new_empty((n, samples, dim))
        self.costs = None if states_only else x0.new_empty((n, samples))
        self.traces: tuple[_Trace, _Trace] | None = None
        if keep:
            drift = _Trace.of(run.drift, n + 1, x0, run.rounding)
            self.traces = drift, _Trace.of(run.score, n, x0, run.rounding)
        self.grad_g = x0.new_empty((n + 1, samples)) if keep and run.p.learned_g else None
        self.problem = self._core_problem(first)
        self.launch("forward")
        if not states_only:
            self.launch("residuals")

    def cost(self) -> Tensor:
        """Returns the losses of the samples."""
        assert self.costs is not None
        total = self.costs.sum(0, dtype=torch.float64)
        total += normal_cost(self.states[-1].double())
        return total.to(self.x0.dtype)

    def gradients(self, weight: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """Returns the gradient of x0, and those of g, if it is learned, and of all tensors."""
        weight = weight.detach().to(torch.float32).contiguous()
        self.of_drifts, self.of_scores = map(torch.empty_like, (self.states, self.states[1:]))
        grad_scores, grad_x0 = torch.empty_like(self.of_scores), torch.empty_like(self.x0)
        problem = self.problem
        problem.weight, problem.grad_x0 = address(weight), address(grad_x0)
        problem.cotangents_f = address(self.of_drifts)
        problem.cotangents_s = address(self.of_scores)
        problem.grad_scores = address(grad_scores)
        self._alive = weight, grad_scores, grad_x0
        self.launch("score")
        self.launch("backward")
        return grad_x0, self.sums()

    def sums(self) -> list[Tensor | None]:
        """Returns the gradients of g, if it is learned, and of all tensors from the traces."""
        assert self.traces is not None
        drift, score = self.traces
        drift_grads = drift.gradients(self.run.drift, self.states, self.of_drifts)
        score_grads = score.gradients(self.run.score, self.states[1:], self.of_scores)
        # The score is not evaluated at the first time.
        score_grads[0] = torch.cat([torch.zeros_like(score_grads[0][:1]), score_grads[0]])
        grad_g = None if self.grad_g is None else self.grad_g.sum(1, dtype=torch.float64)
        return [grad_g, *drift_grads, *score_grads]

    def _core_problem(self, first: int) -> Any:
        """Returns the core's form of all but the gradients."""
        run, problem = self.run, core.GpuPathsProblem()
        problem.samples, problem.dim = self.x0.shape
        problem.num_steps = run.p.num_steps
        problem.drift, problem.score = run.drift.mlp(), run.score.mlp()
        problem.dt, problem.g, problem.x0 = map(address, (self.steps, run.g, self.x0))
        sample_offset = run.p.sample_offset + first
        problem.noise = noise_source(run.p.key, PURPOSES["forward"], 0, sample_offset)
        problem.states, problem.drifts = address(self.states), address(self.drifts)
        problem.residuals, problem.costs = address(self.residuals), address(self.costs)
        if self.traces is not None:
            drift, score = self.traces
            problem.drift_trace, problem.score_trace = drift.addresses(), score.addresses()
        problem.grad_g = address(self.grad_g)
        return problem

    def launch(self, phase: str) -> None:
        """Queues one of the four kernels."""
        products = getattr(core.Products, self.run.rounding)
        kernel, launch = getattr(core.Phase, phase), device_and_stream(self.x0)
        core.run_gpu_paths(kernel, products, self.problem, *launch)
