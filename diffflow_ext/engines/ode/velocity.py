"""The velocity of an ordinary differential equation, as networks and coefficients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from diffflow_ext.functional.contexts import Context, checked_context, learned_tensors, leaves_of
from diffflow_ext.processes.grids import numbers_beside

from ..conditions import conditioned, network_of
from ..network import Network, call_network

Coefficients = Callable[[float], tuple[float, ...]]


@dataclass(frozen=True)
class ProbabilityFlow:
    r"""The velocity :math:`v(t, x) = c_x x + \sum_j c_j n_j(t, x)`.

    Arguments:
        nets: One or two networks, called as ``net(t, x)`` with t of shape ().
        coefficients: Returns :math:`(c_x, c_1)` or :math:`(c_x, c_1, c_2)` at a time.
        names: The networks' names in messages. Default: "net" for each.
        params: Tensors that get gradients besides the parameters of networks that are modules.
        learned: The coefficients with a graph, :math:`c_1` and :math:`c_2` as tensors of shape
            (). Default: they need no gradient.
        coefficients_at: The coefficients at several times by one call, which is the only time
            that a solver waits for a GPU. Default: `coefficients` at one time after the other.
        times: Tensors of the times at which the networks are called. Default: made in each call.
        context: What the networks are given besides t and x, as the caller has it.
        inner_context: The same without its graph, as the networks have it.
    """

    nets: tuple[Network, ...]
    coefficients: Coefficients
    names: tuple[str, ...] = ()
    params: tuple[Tensor, ...] = ()
    learned: Callable[[float], tuple[Any, ...]] | None = None
    coefficients_at: Callable[[Sequence[float]], Sequence[tuple[float, ...]]] | None = None
    times: Callable[[float], Tensor] | None = None
    context: Context | None = None
    inner_context: Context | None = None

    def given(self, op: str, context: Context | None, x: Tensor) -> ProbabilityFlow:
        """Returns the velocity of networks of t, x and a context, given that of the samples x."""
        context = checked_context(op, context, x)
        inner = leaves_of(context)
        nets = tuple(conditioned(net, inner) for net in self.nets)
        return replace(self, nets=nets, context=context, inner_context=inner)

    def parameters(self) -> list[Tensor]:
        """Returns the tensors that get gradients, without repetitions, and the context's."""
        return [*self._own_parameters(), *learned_tensors(self.context)]

    def inner_parameters(self) -> list[Tensor]:
        """Returns the same tensors as the networks have them."""
        return [*self._own_parameters(), *learned_tensors(self.inner_context)]

    def _own_parameters(self) -> list[Tensor]:
        modules = [net for net in map(network_of, self.nets) if isinstance(net, nn.Module)]
        own = [p for module in modules for p in module.parameters()]
        return list({id(p): p for p in [*own, *self.params]}.values())

    def with_graph(self) -> ProbabilityFlow:
        """Returns the same velocity with coefficients that have a graph."""
        return self if self.learned is None else replace(self, coefficients=self.learned)

    def at_times(self, times: Iterable[float], x: Tensor) -> ProbabilityFlow:
        """Returns the same velocity for states like x at these times alone.

        Its numbers are read and copied at once, not in each stage of a solver.
        """
        numbers = list(dict.fromkeys(times))
        rows = (
            [self.coefficients(t) for t in numbers]
            if self.coefficients_at is None
            else self.coefficients_at(numbers)
        )
        tensors = numbers_beside(x.device, x.dtype, numbers).unbind()
        return replace(
            self,
            coefficients=dict(zip(numbers, rows, strict=True)).__getitem__,
            times=dict(zip(numbers, tensors, strict=True)).__getitem__,
        )

    def values(self, t: float, x: Tensor) -> list[Tensor]:
        """Returns the value of each network at a time and a state."""
        time = self.times(t) if self.times else numbers_beside(x.device, x.dtype, t)
        names = self.names or ("net",) * len(self.nets)
        return [
            call_network("probability_flow", f"{name}(t, x)", net, time, x)
            for name, net in zip(names, self.nets, strict=True)
        ]

    def velocity(self, t: float, x: Tensor) -> Tensor:
        """Returns v(t, x), in the dtype of x."""
        return x * self.coefficients(t)[0] + self.network_part(t, self.values(t, x), x.dtype)

    def network_part(self, t: float, values: list[Tensor], dtype: torch.dtype) -> Tensor:
        """Returns the sum of the networks' terms, in the dtype of the state."""
        weights = self.coefficients(t)[1:]
        terms = [value.to(dtype) * c for value, c in zip(values, weights, strict=True)]
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]
