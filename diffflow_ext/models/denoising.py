"""Parts that the models share: checks, keys, time grids, and losses of predicted noise.

A network is called as ``eps_net(t, x)`` and predicts the noise in x; its score is -eps / sigma(t).
"""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffflow_ext.engines.choice import Engine
from diffflow_ext.engines.conditions import conditioned, guided
from diffflow_ext.engines.fused import regression
from diffflow_ext.engines.network import call_network
from diffflow_ext.functional.checks import (
    check_device,
    check_finite,
    checked_finite,
    checked_state,
    checked_weights,
    in_words,
)
from diffflow_ext.functional.contexts import Context, checked_context
from diffflow_ext.functional.memory import require_memory
from diffflow_ext.functional.noise import Key, NoiseKey, checked_key
from diffflow_ext.functional.sums import event_sum, weighted_sum
from diffflow_ext.functional.tensors import checked_tensor, refuse_tracing
from diffflow_ext.processes.grids import TimeGrid

#: Predicts noise from the time, shape () or (B,), and the state, shape (B, *event).
EpsNetwork = Callable[[Tensor, Tensor], Tensor]
_Method = TypeVar("_Method", bound=Callable[..., Any])


def eager(method: _Method) -> _Method:
    """Keeps a method out of compiled graphs, without importing torch's compiler before a call."""
    disabled: list[Callable[..., Any]] = []

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        refuse_tracing(method.__qualname__.replace("._", "."))
        if not disabled:
            disabled.append(torch.compiler.disable(method))
        return disabled[0](*args, **kwargs)

    return run  # pyright: ignore[reportReturnType]


def check_network(op: str, net: object, name: str = "eps_net") -> None:
    """Refuses a network that cannot be called."""
    if not callable(net):
        raise TypeError(
            f"{op}: expected {name} to be callable as {name}(t, x), got {in_words(net)}"
        )


def checked_data(op: str, x0: object, name: str = "x0") -> Tensor:
    """Returns data of shape (B, *event), float32 or float64 and finite."""
    x = checked_state(op, name, x0)
    check_finite(op, name, x)
    return x


def fixed_key(op: str, key: Key | None, device: torch.device) -> Key:
    """Returns the key; without one, a key drawn from torch's generator."""
    return NoiseKey.from_torch() if key is None else checked_key(op, key, device)


def checked_times(op: str, t: float | Tensor, x: Tensor) -> Tensor:
    """Returns times > 0 of shape () or (B,), where there is noise, beside the states x."""
    if isinstance(t, Tensor):
        t = checked_tensor(op, "t", t)
        check_device(op, "t", t)
        t = t.to(x)
    else:
        t = x.new_tensor(checked_finite(op, "t", t))
    if t.dim() and tuple(t.shape) != x.shape[:1]:
        raise ValueError(f"{op}: expected t of shape () or ({x.shape[0]},), got {tuple(t.shape)}")
    if not t.is_cuda and not bool((t > 0).all()):
        raise ValueError(f"{op}: expected t > 0, where noise is, got {t.tolist()}")
    return t


def given_context(
    op: str, net: EpsNetwork, context: Context | None, x: Tensor, guidance: float = 1.0
) -> EpsNetwork:
    """Returns a network of t and x, which has the context of the samples x if there is one."""
    context = checked_context(op, context, x)
    return conditioned(guided(op, "eps_net", net, context, guidance), context)


def network_output(
    op: str, net: EpsNetwork, t: float | Tensor, x: Tensor, name: str = "eps_net"
) -> Tensor:
    """Returns eps_net(t, x), checked; its dtype may be lower than that of x."""
    if not isinstance(t, Tensor):
        t = torch.tensor(t, dtype=x.dtype, device=x.device)
    return call_network(op, f"{name}(t, x)", net, t.to(x.dtype), x, dual=True)


def mean_square_error(
    op: str,
    net: EpsNetwork,
    t: Tensor,
    x_t: Tensor,
    eps: Tensor,
    engine: Engine,
    name: str = "eps_net",
) -> Tensor:
    """Returns |eps - eps_net(t, x_t)|^2 / d for each sample, t of shape (B,)."""
    call = regression.prepare(op, engine, net, t, x_t, name)
    if call is not None:
        return regression.square_error(call, x_t, eps)
    error = network_output(op, net, t, x_t, name).to(eps.dtype) - eps
    return event_sum(error.square()) / max(math.prod(eps.shape[1:]), 1)


def mean_square_error_of_batch(
    op: str,
    net: EpsNetwork,
    t: Tensor,
    x_t: Tensor,
    eps: Tensor,
    weight: Tensor | None,
    engine: Engine,
) -> Tensor:
    """Returns :func:`batch_mean` of :func:`mean_square_error`, in one pass if it is fused."""
    call = regression.prepare(op, engine, net, t, x_t)
    if call is None:
        return batch_mean(op, mean_square_error(op, net, t, x_t, eps, "autograd"), weight)
    weight = checked_weights(op, weight, x_t)
    if weight is None:
        weight = torch.full((len(x_t),), 1.0 / len(x_t), device="cpu")
    return regression.weighted_square_error(call, x_t, eps, weight)


def batch_mean(op: str, loss: Tensor, weight: Tensor | None) -> Tensor:
    """Returns the mean, or the weighted sum, over a batch, summed in float64."""
    weight = checked_weights(op, weight, loss)
    return weighted_sum(loss, 1.0 / max(loss.shape[0], 1) if weight is None else weight)


def zeros_beside(op: str, shape: tuple[int, ...], parameters: Iterable[Tensor]) -> Tensor:
    """Returns zeros on the device of the parameters, float64 if they are, else float32."""
    like = next((p for p in parameters if p.is_floating_point()), torch.empty(0))
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    size = math.prod(shape) * dtype.itemsize
    require_memory(op, f"shape={shape}", size, "ask for fewer at a time", like.device)
    return torch.zeros(shape, dtype=dtype, device=like.device)


def time_grid(
    op: str, grid: TimeGrid | int, t_start: float, t_end: float, power: float
) -> TimeGrid:
    """Returns a grid that ends at `t_end`, given such a grid or a number of steps.

    It starts at a time > 0, or at 0 if `t_start` is 0.
    """
    if not isinstance(grid, TimeGrid):
        if isinstance(grid, bool) or not isinstance(grid, numbers.Integral):
            raise TypeError(
                f"{op}: expected a TimeGrid or a number of steps, got {in_words(grid)}"
            )
        return TimeGrid.power(int(grid), t_end, t_start, power)
    starts = grid.t_start > 0 if t_start > 0 else grid.t_start == 0
    if not (starts and math.isclose(grid.t_end, t_end, rel_tol=1e-9)):
        first = f"a time > 0 (t_min is {t_start})" if t_start > 0 else "0"
        raise ValueError(f"{op}: expected a grid from {first} to {t_end}, got {grid}")
    return grid
