"""The loss as torch operators, for training steps that torch.compile records.

The compiler sees one opaque call for the forward and one for the backward sweep; inside, the
networks run as they are (they may be compiled themselves). Operators take tensors and numbers
only, so the model is found through a number: `register` gives one to each DiffFlowSDE.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _checks
from ._first_order import first_order
from ._operators import register_operator
from ._replay import Autocast
from ._sweeps import Cache, PathProblem, backward_sweep, simulate
from .adjoint import coefficients, mean_loss_and_gradients, new_cache
from .diffusion import check_positive, diffusion_values
from .grids import TimeGrid
from .noise import NoiseKey

if TYPE_CHECKING:
    from .sde import DiffFlowSDE

__all__ = ["mean_loss", "path_loss", "register"]

_MODELS: weakref.WeakValueDictionary[int, DiffFlowSDE] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()
#: Bytes of torch's random states: CPU, and CUDA on top.
_CPU_STATE, _CUDA_STATE = torch.get_rng_state().numel(), 16

_PROBLEM = (
    "int model, Tensor x0, Tensor times, Tensor g, Tensor[] params, Tensor key, "
    "SymInt sample_offset, int checkpoint_every, bool autocast, ScalarType autocast_dtype"
)


def register(sde: DiffFlowSDE) -> int:
    """Returns the number under which operators find a model."""
    number = next(_NUMBERS)
    _MODELS[number] = sde
    return number


def _problem(
    model: int,
    x0: Tensor,
    times: Tensor,
    g: Tensor,
    params: list[Tensor],
    key: Tensor,
    sample_offset: int,
    checkpoint_every: int,
    autocast: bool,
    autocast_dtype: torch.dtype,
) -> PathProblem:
    sde = _MODELS.get(model)
    if sde is None:
        raise RuntimeError("DiffFlowSDE: the model is gone; keep it alive until the backward pass")
    grid = TimeGrid(times.cpu())
    check_positive(g, grid.times)
    own = {id(p): p for p in sde.network_parameters() if p.requires_grad}
    return PathProblem(
        drift=sde.drift,
        score=sde.score,
        params=tuple(own.values()),
        times=grid.times.to(x0.device, x0.dtype),
        steps=grid.steps(),
        g=coefficients(g),
        key=key,
        sample_offset=sample_offset,
        checkpoint_every=checkpoint_every,
        learned_g=True,
        prior=sde.prior,
        autocast=Autocast(x0.device.type, autocast, autocast_dtype),
    )


def _autograd_is_on() -> bool:
    with torch.enable_grad():
        return (torch.ones((), requires_grad=True) * 1).requires_grad


def _with_autograd(run: Callable[[], Any], device: torch.device) -> Any:
    """Runs a sweep where autograd works.

    A compiled forward pass calls its operators with autograd switched off below the level that
    `torch.enable_grad` reaches. A fresh thread has it on. (A compiled backward pass does not do
    so, and must not wait for another thread: the engine's device thread would wait for itself.)
    """
    if _autograd_is_on():
        return run()
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def in_stream() -> Any:
        with torch.no_grad(), torch.cuda.stream(stream):
            return run()

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(in_stream).result()


def _dense(grads: list[Tensor | None], like: tuple[Tensor, ...]) -> list[Tensor]:
    return [
        torch.zeros_like(p) if grad is None else grad.to(p.dtype)
        for grad, p in zip(grads, like, strict=True)
    ]


def _run_mean_loss(
    weight: Tensor | None, *problem: Any
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    p, x0 = _problem(*problem), problem[1].detach().contiguous()
    each = 1.0 / max(x0.shape[0], 1) if weight is None else weight
    value, out = _with_autograd(lambda: mean_loss_and_gradients(p, each, x0), x0.device)
    return value, out.x0, out.g, _dense(out.params, p.params)


def _mean_loss_fake(
    weight: Tensor | None,
    model: int,
    x0: Tensor,
    times: Tensor,
    g: Tensor,
    params: list[Tensor],
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    return x0.new_empty(()), _blank(x0), _blank(g), [_blank(p) for p in params]


def _blank(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _kept(num_steps: int, every: int) -> list[int]:
    return sorted({*range(0, num_steps + 1, every), num_steps})


def _labels(num_steps: int) -> list[object]:
    """The order in which a forward sweep records random states."""
    labels: list[object] = [("drift", 0)]
    for k in range(1, num_steps + 1):
        labels += [("drift", k), ("score", range(k, k + 1))]
    return [*labels, "prior", None]


def _run_path_loss(*problem: Any) -> tuple[Tensor, Tensor, Tensor]:
    p, x0 = _problem(*problem), problem[1].detach().contiguous()
    cache = new_cache(x0)
    with torch.no_grad():
        loss = simulate(p, x0, cache, with_costs=True)
        assert loss is not None
    kept = [cache.states[k] for k in _kept(p.num_steps, p.checkpoint_every)]
    return loss, torch.stack(kept), cache.tape.pack()


def _path_loss_fake(
    model: int,
    x0: Tensor,
    times: Tensor,
    g: Tensor,
    params: list[Tensor],
    key: Tensor,
    sample_offset: int,
    checkpoint_every: int,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    n = times.shape[0] - 1
    width = _CPU_STATE + (_CUDA_STATE if x0.is_cuda else 0)
    states = x0.new_empty((len(_kept(n, checkpoint_every)), *x0.shape))
    random = torch.empty((len(_labels(n)), width), dtype=torch.uint8, device="cpu")
    return x0.new_empty(x0.shape[0]), states, random


def _run_path_loss_vjp(
    grad: Tensor, states: Tensor, random: Tensor, *problem: Any
) -> tuple[Tensor, Tensor, list[Tensor]]:
    p = _problem(*problem)
    kept = _kept(p.num_steps, p.checkpoint_every)
    blocks = [range(k, k + 1) for k in range(1, p.num_steps + 1)]
    cache = Cache(dict(zip(kept, states.unbind(), strict=True)), new_cache(states).tape, blocks)
    cache.tape.unpack(_labels(p.num_steps), random)
    out = backward_sweep(p, cache, grad.contiguous())
    assert out.g is not None
    return out.x0, out.g, _dense(out.params, p.params)


def _path_loss_vjp_fake(
    grad: Tensor,
    states: Tensor,
    random: Tensor,
    model: int,
    x0: Tensor,
    times: Tensor,
    g: Tensor,
    params: list[Tensor],
    *_: Any,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    return _blank(x0), _blank(g), [_blank(p) for p in params]


_mean_loss = register_operator(
    f"mean_loss(Tensor? weight, {_PROBLEM}) -> (Tensor, Tensor, Tensor, Tensor[])",
    _run_mean_loss,
    _mean_loss_fake,
)
_path_loss = register_operator(
    f"path_loss({_PROBLEM}) -> (Tensor, Tensor, Tensor)", _run_path_loss, _path_loss_fake
)
_path_loss_vjp = register_operator(
    f"path_loss_vjp(Tensor grad, Tensor states, Tensor random, {_PROBLEM})"
    " -> (Tensor, Tensor, Tensor[])",
    _run_path_loss_vjp,
    _path_loss_vjp_fake,
)


class _MeanLoss(Function):
    """Autograd of the operator; register_autograd would switch autograd off inside it."""

    @staticmethod
    def forward(
        ctx: Any, x0: Tensor, g: Tensor, weight: Tensor | None, rest: tuple[Any, ...], *params: Any
    ) -> Tensor:
        value, grad_x0, grad_g, grads = _mean_loss(weight, *_ordered(x0, g, params, rest))
        ctx.save_for_backward(grad_x0, grad_g, *grads)
        return value

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        grad_x0, grad_g, *grads = ctx.saved_tensors
        return grad_x0 * grad, grad_g * grad, None, None, *[each * grad for each in grads]


class _PathLoss(Function):
    @staticmethod
    def forward(ctx: Any, x0: Tensor, g: Tensor, rest: tuple[Any, ...], *params: Any) -> Tensor:
        loss, states, random = _path_loss(*_ordered(x0, g, params, rest))
        ctx.rest = rest
        ctx.save_for_backward(x0, g, states, random, *params)
        return loss

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        x0, g, states, random, *params = ctx.saved_tensors
        problem = _ordered(x0, g, params, ctx.rest)
        grad_x0, grad_g, grads = _path_loss_vjp(grad, states, random, *problem)
        return grad_x0, grad_g, None, *grads


def _ordered(x0: Tensor, g: Tensor, params: Any, rest: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the arguments in the order of _PROBLEM."""
    model, times, *others = rest
    return model, x0, times, g, list(params), *others


def _arguments(
    op: str,
    sde: DiffFlowSDE,
    x0: Tensor,
    grid: TimeGrid,
    key: NoiseKey | Tensor | None,
    sample_offset: int,
    checkpoint_every: int,
) -> tuple[Any, ...]:
    x0 = _checks.state(op, "x0", x0)
    if not isinstance(grid, TimeGrid):
        raise TypeError(f"{op}: expected grid to be a TimeGrid, got {type(grid).__name__}")
    g = diffusion_values(sde.diffusion, grid.times.to(x0.device, x0.dtype)).to(x0.device)
    params = [p for p in dict.fromkeys(sde.network_parameters()) if p.requires_grad]
    autocast = torch.is_autocast_enabled(x0.device.type)
    dtype = torch.get_autocast_dtype(x0.device.type)
    key = _traced_key(op, key, x0)
    every = max(_checks.count(op, "checkpoint_every", checkpoint_every, 0, 2**31), 1)
    return x0, g, (sde.number, grid.times, key, sample_offset, every, autocast, dtype), params


def _traced_key(op: str, key: NoiseKey | Tensor | None, x0: Tensor) -> Tensor:
    if key is None:
        seed = torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=x0.device)
        return torch.cat([seed, torch.zeros_like(seed)])
    if isinstance(key, NoiseKey):
        return key.to_tensor(x0.device)
    # A copy: the caller may write the next stream into the tensor before the backward pass.
    return _checks.key(op, key, x0.device).clone()  # pyright: ignore


def mean_loss(sde: DiffFlowSDE, *arguments: Any, weight: Tensor | None) -> Tensor:
    """DiffFlowSDE.mean_loss while a graph is traced."""
    x0, g, rest, params = _arguments("DiffFlowSDE.mean_loss", sde, *arguments)
    return _MeanLoss.apply(x0, g, weight, rest, *params)  # pyright: ignore[reportReturnType]


def path_loss(sde: DiffFlowSDE, *arguments: Any) -> Tensor:
    """DiffFlowSDE.loss while a graph is traced."""
    x0, g, rest, params = _arguments("DiffFlowSDE.loss", sde, *arguments)
    return _PathLoss.apply(x0, g, rest, *params)  # pyright: ignore[reportReturnType]
