"""The velocity of an ordinary differential equation, as networks and coefficients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..network import Network, call_network


@dataclass(frozen=True)
class ProbabilityFlow:
    r"""The velocity :math:`v(t, x) = c_x x + \sum_j c_j n_j(t, x)`.

    Arguments:
        nets: One or two networks, called as ``net(t, x)`` with t of shape ().
        coefficients: Returns :math:`(c_x, c_1)` or :math:`(c_x, c_1, c_2)` at a time.
    """

    nets: tuple[Network, ...]
    coefficients: Callable[[float], tuple[float, ...]]

    def values(self, t: float, x: Tensor) -> list[Tensor]:
        """Returns the value of each network at a time and a state."""
        time = torch.tensor(t, dtype=x.dtype, device=x.device)
        return [call_network("probability_flow", "net(t, x)", net, time, x) for net in self.nets]

    def velocity(self, t: float, x: Tensor) -> Tensor:
        """Returns v(t, x), in the dtype of x."""
        return x * self.coefficients(t)[0] + self.network_part(t, self.values(t, x), x.dtype)

    def network_part(self, t: float, values: list[Tensor], dtype: torch.dtype) -> Tensor:
        """Returns the sum of the networks' terms, in the dtype of the state."""
        weights = self.coefficients(t)[1:]
        terms = [value.to(dtype) * c for value, c in zip(values, weights, strict=True)]
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]
