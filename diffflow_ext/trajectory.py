r"""Whole paths in one call: the fused engine for perceptrons on the CPU.

Samples do not interact. A tile of some forty samples is carried through all steps of the forward
SDE and back through the adjoint by one thread, with the networks' weights and activations in its
cache; what `adjoint` does step by step over the whole batch happens here without leaving the
compiled code. Noise, losses and gradients are those of :mod:`diffflow_ext.adjoint`: the same
normals to the bit, the same formulas, sums in another order.

Networks take part by a method ``perceptron_at(t)``, defined beside their ``forward``, as that of
:meth:`diffflow_ext.nets.FourierMLP.perceptron_at`. Gradients of the weights are added up in the
order of the tiles, whose size depends on the batch alone: results do not depend on the number of
threads.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function

from . import _backend, _checks
from ._first_order import first_order
from ._sweeps import PathProblem
from .noise import PURPOSES, NoiseKey
from .priors import StandardNormal

__all__ = [
    "Engine",
    "EngineChoice",
    "check_engine",
    "choose_engine",
    "fused_loss",
    "fused_mean_loss",
    "fused_path",
    "fused_sample",
]

#: Who computes a loss: the fused engine, the adjoint for any networks, or the faster that fits.
Engine = Literal["auto", "fused", "autograd"]

#: Codes of csrc/trajectory/problem.h.
_ACTIVATIONS = {"gelu": 0, "silu": 1, "tanh": 2}
_LAST_STEPS = {"noisy": 0, "mean": 1, "tweedie": 2}
#: Bounds of the engines.
MAX_DEPTH, MAX_WIDTH, MAX_DIM = 16, 1024, 1024
#: Bytes of activations that a thread keeps; with more, it evaluates the drift a second time.
KEPT_BYTES = 32 * 2**20
#: Scratch memory up to this size is kept for the next call.
SCRATCH_BYTES = 128 * 2**20
#: Samples of a tile at most, and the number that its size is a multiple of.
_TILE, _ROWS = 40, 8
#: Vectors are at most 16 floats wide, and layers are padded to pairs of them.
_PADDING = 32


class EngineChoice(NamedTuple):
    """Which engine computes, and why not the fused one; "" where it does."""

    name: Literal["fused", "autograd"]
    reason: str


# --- which engine --------------------------------------------------------------------------------


def check_engine(op: str, engine: object) -> None:
    """Refuses a name that no engine has."""
    _checks.one_of(op, "engine", engine, Engine)


def choose_engine(op: str, engine: Engine, p: PathProblem, x0: Tensor) -> EngineChoice:
    """Returns the engine of a call.

    Raises:
        ValueError: If "fused" is asked for and cannot be had.
    """
    if engine == "autograd":
        return EngineChoice("autograd", "engine='autograd' was asked for")
    reason = _obstacle(p, x0)
    if reason and engine == "fused":
        raise ValueError(f"{op}: engine='fused' is not possible here: {reason}; take 'auto'")
    return EngineChoice("autograd" if reason else "fused", reason)


def _obstacle(p: PathProblem, x0: Tensor) -> str:
    """Returns why the fused engine cannot do this, "" if it can."""
    reason = data_obstacle(x0) or _call_obstacle(p)
    for name, net in (("drift", p.drift), ("score", p.score)):
        if reason:
            return reason
        found = network_obstacle(net, x0.shape[1])
        reason = found and f"the {name} {found}"
    return reason


def _call_obstacle(p: PathProblem) -> str:
    normal = isinstance(p.prior, StandardNormal) and p.prior.scale == 1
    if p.prior is not None and not normal:
        return "its density at the noise end is N(0, I), and there is another prior"
    if p.checkpoint_every == 0:
        return "checkpoint_every=0 asks for the graph of every step"
    return ""


def data_obstacle(x0: Tensor) -> str:
    """Returns why the engine cannot take data, "" if it can."""
    if x0.device.type != "cpu":
        return f"it runs on the CPU, and the data are on {x0.device}"
    if torch.is_autocast_enabled("cpu") and engine_name() is None:
        return "autocast is on, and this processor has no engine for its dtype"
    if torch.compiler.is_compiling() or type(x0) not in (Tensor, nn.Parameter):
        return "the call is being traced, or the data are no plain tensor"
    if x0.dtype != torch.float32 or x0.dim() != 2:
        return f"it takes float32 vectors, got {x0.dtype} of shape {tuple(x0.shape)}"
    if not 1 <= x0.shape[1] <= MAX_DIM or not x0.shape[0]:
        return f"it takes 1 to {MAX_DIM} components of at least one sample, got {tuple(x0.shape)}"
    return ""


def network_obstacle(net: Any, dim: int) -> str:
    """Returns why the engine cannot take a network, "" if it can."""
    defined_by = next((c for c in type(net).__mro__ if "forward" in vars(c)), None)
    if not isinstance(net, nn.Module) or "perceptron_at" not in vars(defined_by or object):
        return f"is no network with perceptron_at(t), such as nets.FourierMLP, but {_named(net)}"
    for part in net.modules():
        if part is not net and type(part) not in (nn.Linear, nn.ModuleList):
            return f"has a part of type {_named(part)}"
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks:
            return f"has hooks on {_named(part)}, which would not be called"
    for parameter in net.parameters():
        plain = type(parameter) in (Tensor, nn.Parameter)
        if not plain or parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            return (
                f"has parameters that are no plain float32 tensors on the CPU: {parameter.dtype}"
            )
    return _size_obstacle(net, dim)


def _size_obstacle(net: Any, dim: int) -> str:
    if net.dim != dim:
        return f"takes vectors of {net.dim} components, and the data have {dim}"
    if net.activation not in _ACTIVATIONS:
        return f"has the activation {net.activation!r}; there are {', '.join(_ACTIVATIONS)}"
    if net.width > MAX_WIDTH or net.depth > MAX_DEPTH:
        return f"is wider than {MAX_WIDTH} or deeper than {MAX_DEPTH}"
    return ""


def _named(value: object) -> str:
    return type(value).__name__


# --- calls of the core ---------------------------------------------------------------------------


@functools.cache
def _engines() -> list[str]:
    return _backend.core.engines()


def engine_name() -> str | None:
    """Returns the set of instructions that is used now, None where there is none.

    "avx512", "avx2" or "portable"; under autocast to bfloat16 "avx512bf16", which rounds the
    factors of the hidden layers and of their gradients to bfloat16 and sums in float32.
    """
    if not torch.is_autocast_enabled("cpu"):
        return next(name for name in _engines() if name != "avx512bf16")
    bf16 = torch.get_autocast_dtype("cpu") == torch.bfloat16
    return "avx512bf16" if bf16 and "avx512bf16" in _engines() else None


def tile_size(samples: int) -> int:
    """Returns the samples of a tile: an even number of tiles of like size, 40 at most."""
    tiles = 2 * math.ceil(samples / (2 * _TILE))
    return min(_TILE, _ROWS * math.ceil(samples / tiles / _ROWS))


def described(activation: str, tensors: Sequence[Tensor]) -> tuple[int, int, list[int]]:
    """Returns the core's form of a network: width, activation, addresses."""
    addresses = [tensor.data_ptr() for tensor in tensors]
    return tensors[0].shape[1], _ACTIVATIONS[activation], addresses


@dataclass
class _Call:
    """One call of the core: a problem, its networks at all times, and their addresses."""

    p: PathProblem
    shape: tuple[int, int]
    names: tuple[str, str]
    counts: tuple[int, int]
    instructions: str

    def sizes(self, width: int, depth: int, threads: int) -> tuple[Any, ...]:
        samples, dim = self.shape
        tile = tile_size(samples)
        padded = math.ceil(width / _PADDING) * _PADDING
        kept = 8 * (self.p.num_steps + 1) * (depth + 1) * tile * padded
        return samples, dim, self.p.num_steps, tile, kept <= KEPT_BYTES, threads


def fused_mean_loss(p: PathProblem, x0: Tensor, g: Tensor, weight: Tensor | None) -> Tensor:
    """Returns sum_b weight_b L_b (weight None: the mean); its gradients are found on the way."""
    each = _uniform(x0) if weight is None else weight
    call, tensors = _prepared(p, x0)
    return _MeanLoss.apply(call, each, x0, g, *tensors)  # pyright: ignore[reportReturnType]


def fused_loss(p: PathProblem, x0: Tensor, g: Tensor) -> Tensor:
    """Returns L for each sample; the backward pass walks the paths again."""
    call, tensors = _prepared(p, x0)
    return _Loss.apply(call, x0, g, *tensors)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def fused_path(p: PathProblem, x0: Tensor, g: Tensor, *, keep: bool) -> Tensor:
    """Returns the ends of forward paths, or all states, shape (N+1, B, dim)."""
    call, tensors = _prepared(p, x0)
    states = x0.new_empty((p.num_steps + 1, *x0.shape))
    core = _Core(call, x0, g, tensors, gradients=False, purpose="forward")
    addresses = [0, x0.data_ptr(), 0, states.data_ptr(), 0, 0]
    _backend.core.trajectory_loss(*core.arguments, addresses, [], [])
    return states if keep else states[-1].clone()


def fused_sample(
    p: PathProblem,
    x_last: Tensor,
    g: Tensor,
    stochasticity: float,
    last_step: str,
    states: Tensor | None,
) -> Tensor:
    """Returns x_0 of reverse paths from x_N; writes all states where asked."""
    call, tensors = _prepared(p, x_last)
    with torch.no_grad():
        first = torch.empty_like(x_last)
        core = _Core(call, x_last, g, tensors, gradients=False, purpose="reverse")
        _backend.core.trajectory_sample(
            *core.arguments,
            [x_last.data_ptr(), first.data_ptr(), _address(states)],
            float(stochasticity),
            _LAST_STEPS[last_step],
        )
    return first


def _uniform(x0: Tensor) -> Tensor:
    return torch.full((x0.shape[0],), 1.0 / x0.shape[0])


def _prepared(p: PathProblem, x0: Tensor) -> tuple[_Call, list[Tensor]]:
    """Returns a call and the tensors of both networks, which carry graphs."""
    instructions = engine_name()
    assert instructions is not None
    with torch.autocast("cpu", enabled=False):
        drift, score = (net.perceptron_at(p.times) for net in (p.drift, p.score))  # pyright: ignore
    parts = drift.tensors(), score.tensors()
    call = _Call(
        p,
        (x0.shape[0], x0.shape[1]),
        (drift.activation, score.activation),
        (len(parts[0]), len(parts[1])),
        instructions,
    )
    return call, parts[0] + parts[1]


class _Core:
    """The arguments of the core, and what must live until it returns."""

    def __init__(
        self,
        call: _Call,
        x: Tensor,
        g: Tensor,
        tensors: Sequence[Tensor],
        *,
        gradients: bool,
        purpose: str,
    ) -> None:
        p = call.p
        alive = [tensor.detach().contiguous() for tensor in tensors]
        drift, score = alive[: call.counts[0]], alive[call.counts[0] :]
        dt = torch.tensor(p.steps, dtype=torch.float32)
        at = g.detach().to(torch.float32).contiguous()
        mlps = [described(*pair) for pair in zip(call.names, (drift, score), strict=True)]
        width = max(mlp[0] for mlp in mlps)
        depth = (max(call.counts) - 4) // 2
        sizes = call.sizes(width, depth, torch.get_num_threads())
        room = _backend.core.trajectory_scratch(call.instructions, sizes, *mlps, gradients)
        scratch = scratch_memory(room)
        assert isinstance(p.key, NoiseKey)
        noise = (p.key.seed & (2**64 - 1), p.key.stream, PURPOSES[purpose], p.sample_offset)
        self.arguments = (
            call.instructions,
            sizes,
            *mlps,
            (dt.data_ptr(), at.data_ptr(), aligned_start(scratch)),
            noise,
        )
        self._alive = (alive, dt, at, scratch, x)


def _run_loss(
    call: _Call,
    weight: Tensor | None,
    x0: Tensor,
    g: Tensor,
    tensors: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """Returns the losses, and with weights the gradients of x0, g and all tensors."""
    cost = x0.new_empty(x0.shape[0])
    grads: list[Tensor] = []
    if weight is not None:
        grads = [torch.empty_like(x0), torch.empty(g.shape, dtype=torch.float64)]
        grads += [torch.empty(t.shape, dtype=torch.float32) for t in tensors]
        weight = weight.detach().to(torch.float32).contiguous()
    core = _Core(call, x0, g, tensors, gradients=weight is not None, purpose="forward")
    of_nets = [grad.data_ptr() for grad in grads[2:]]
    want_g = weight is not None and call.p.learned_g
    addresses = [
        _address(weight),
        x0.data_ptr(),
        cost.data_ptr(),
        0,
        grads[0].data_ptr() if grads else 0,
        grads[1].data_ptr() if want_g else 0,
    ]
    _backend.core.trajectory_loss(
        *core.arguments, addresses, of_nets[: call.counts[0]], of_nets[call.counts[0] :]
    )
    return cost, grads


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


_kept = threading.local()


def scratch_memory(size: int) -> Tensor:
    """Lends memory of this thread: touching fresh pages at every call costs small batches."""
    kept: Tensor | None = getattr(_kept, "scratch", None)
    if kept is None or kept.numel() < size:
        kept = torch.empty(size, dtype=torch.uint8)
        _kept.scratch = kept if size <= SCRATCH_BYTES else None
    return kept


def aligned_start(memory: Tensor) -> int:
    """Returns the first address in scratch memory that a vector may lie at."""
    return (memory.data_ptr() + 63) // 64 * 64


# --- autograd ------------------------------------------------------------------------------------


class _MeanLoss(Function):
    """Weighted sum of losses; forward finds the gradients too, backward scales them."""

    @staticmethod
    def forward(
        ctx: Any, call: _Call, weight: Tensor, x0: Tensor, g: Tensor, *tensors: Tensor
    ) -> Tensor:
        wanted = any(ctx.needs_input_grad[2:])
        cost, grads = _run_loss(call, weight if wanted else None, x0, g, tensors)
        ctx.save_for_backward(*grads)
        ctx.dtype = g.dtype
        return (cost.double() * weight).sum().to(cost.dtype)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        return None, None, *_as_wanted(ctx, ctx.saved_tensors, 2, grad)


class _Loss(Function):
    """Loss of each sample; backward runs the paths again with its weights."""

    @staticmethod
    def forward(ctx: Any, call: _Call, x0: Tensor, g: Tensor, *tensors: Tensor) -> Tensor:
        ctx.call, ctx.dtype = call, g.dtype
        ctx.save_for_backward(x0, g, *tensors)
        return _run_loss(call, None, x0, g, tensors)[0]

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        x0, g, *tensors = ctx.saved_tensors
        _, grads = _run_loss(ctx.call, grad, x0, g, tensors)
        return None, *_as_wanted(ctx, grads, 1, None)


def _as_wanted(
    ctx: Any, grads: Sequence[Tensor], skipped: int, factor: Tensor | None
) -> list[Tensor | None]:
    """Returns gradients where they are wanted, g's in its own dtype, scaled."""
    out: list[Tensor | None] = []
    for i, grad in enumerate(grads):
        if not ctx.needs_input_grad[skipped + i]:
            out.append(None)
            continue
        value = grad.to(ctx.dtype) if i == 1 else grad
        out.append(value if factor is None else value * factor)
    return out
