"""The divergence of a velocity along a path, by vector-Jacobian products."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffflow_ext.functional.noise import signs

from ..adjoint.backward import explained_graphs
from ..fused.ode import Probes
from .velocity import ProbabilityFlow


class Trace:
    """Evaluates networks along a path and integrates the divergence.

    It is exact without a key; with one it is Hutchinson's estimate with random signs. With
    `graph`, values and total are differentiable.
    """

    def __init__(
        self, ode: ProbabilityFlow, x: Tensor, how: Probes, *, graph: bool = False
    ) -> None:
        self.ode, self.graph = ode, graph
        self.key, self.num_probes, self.sample_offset = how
        self.dimensions = math.prod(x.shape[1:])
        self.total = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        self.latest = self.total
        self.probes: list[Tensor] = []
        self._like = torch.empty_like(x)
        self.at_step(0)

    def at_step(self, step: int) -> None:
        """Draws the probes of a step; its stages share them to keep the order of the solver."""
        if self.key is None:
            return
        first = step * self.num_probes
        self.probes = [
            signs(self._like, self.key, first + i, self.sample_offset)
            for i in range(self.num_probes)
        ]

    def values(self, t: float, x: Tensor, weight: float) -> list[Tensor]:
        """Returns the networks' values; adds `weight` times the divergence to the total."""
        with torch.enable_grad():
            leaf = x if self.graph else x.detach().requires_grad_()
            values = self.ode.values(t, leaf)
            field = self.ode.network_part(t, values, x.dtype)
        constant = self.dimensions * self.ode.coefficients(t)[0]
        self.latest = torch.full_like(self.total, constant)
        if field.requires_grad:
            self.latest = self.latest + self._divergence(field, leaf)
        else:
            self._check_constant(t, leaf, field)
        self.total = self.total + weight * self.latest
        return values if self.graph else [value.detach() for value in values]

    def _check_constant(self, t: float, leaf: Tensor, field: Tensor) -> None:
        """Refuses a network that depends on x but has no graph."""
        with torch.no_grad():
            moved = leaf + 0.1
            other = self.ode.network_part(t, self.ode.values(t, moved), leaf.dtype)
        if not torch.equal(other, field):
            raise RuntimeError(
                "probability_flow: expected net(t, x) to be differentiable in x, got a tensor "
                "without a graph; a network must not detach x or run under no_grad"
            )

    def _divergence(self, field: Tensor, leaf: Tensor) -> Tensor:
        if self.key is None:
            return self._exact(field, leaf)
        total = torch.zeros_like(self.total)
        for i, probe in enumerate(self.probes):
            product = self._vjp(field, leaf, probe, keep=i + 1 < len(self.probes))
            products = (product * probe).reshape(len(total), self.dimensions)
            total = total + products.sum(1, dtype=torch.float64)
        return total / len(self.probes)

    def _exact(self, field: Tensor, leaf: Tensor) -> Tensor:
        total = torch.zeros_like(self.total)
        unit = torch.zeros(field.shape, dtype=field.dtype, device=field.device)
        columns = unit.view(unit.shape[0], self.dimensions)
        for i in range(self.dimensions):
            columns[:, i] = 1.0
            cotangent = unit.clone() if self.graph else unit  # A graph keeps it.
            product = self._vjp(field, leaf, cotangent, keep=i + 1 < self.dimensions)
            total = total + product.reshape(columns.shape)[:, i]
            columns[:, i] = 0.0
        return total

    def _vjp(self, field: Tensor, leaf: Tensor, cotangent: Tensor, *, keep: bool) -> Tensor:
        with explained_graphs("log_prob"):
            (product,) = torch.autograd.grad(
                field, leaf, cotangent, retain_graph=keep or self.graph, create_graph=self.graph,
                allow_unused=True,
            )  # fmt: skip
        # torch's own zeros would be another leaf that requires a gradient.
        return torch.zeros_like(leaf) if product is None else product
