"""Models with an exact density: normalizing flows and FFJORD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffflow_ext.engines.ode.solver import EXACT_DIMENSIONS
from diffflow_ext.figures.paths import Paths
from diffflow_ext.flows import FFJORD
from diffflow_ext.flows.prior import FlowPrior, StandardNormal
from diffflow_ext.functional.noise import NoiseKey, normal

from ..config.fields import FFJORDConfig, FlowConfig
from .base import NATS, Configuration, Curve, Estimator, EvaluationSettings, Objective, Recipe
from .networks import build_flow, build_perceptron

# The exact divergence costs a vector-Jacobian product for each dimension.
MAX_EXACT_TRAINING = 4
#: States of a path that are kept.
PATH_STATES = 61


class DensityRecipe(Recipe[FlowPrior, Configuration]):
    """Trains a density by maximum likelihood."""

    title: ClassVar[str] = "exact density"

    @property
    def curve(self) -> Curve:
        """The loss, which is -log p."""
        return Curve("nll", "-log p", NATS)

    def make_objectives(self) -> Sequence[Objective]:
        """Returns one objective, without autocast: log-determinants need more than 8 bits."""
        return self.one_objective(
            lambda x0, step, offset: -self.module.log_prob(x0).mean(), autocast=False
        )

    def sample_losses(self, x0: Tensor, step: int, offset: int) -> Tensor:
        """Returns -log p of each sample."""
        return -self.module.log_prob(x0)

    def draw(
        self,
        shape: tuple[int, ...],
        key: NoiseKey,
        *,
        num_steps: int | None = None,
        sample_offset: int = 0,
        **options: Any,
    ) -> Tensor:
        """Returns samples of the flow."""
        device = next(self.module.parameters()).device
        return self.module.sample(shape, key, sample_offset=sample_offset, device=device)

    def estimators(self, settings: EvaluationSettings) -> list[Estimator]:
        """Returns the density."""

        def exact(x: Tensor, key: NoiseKey, offset: int) -> Tensor:
            return self.module.log_prob(x)

        return [Estimator("exact", self.title, exact)]

    def reading(self, step: int, loss: float) -> dict[str, float]:
        """Returns the loss, which is -log p."""
        return {"nll": loss}


class FlowRecipe(DensityRecipe[FlowConfig]):
    """Trains a normalizing flow by maximum likelihood."""

    def build(self) -> FlowPrior:
        """Returns the untrained flow."""
        return FlowPrior(build_flow(self.config.network, self.event_shape))


class FFJORDRecipe(DensityRecipe[FFJORDConfig]):
    """Trains the velocity of a continuous flow by maximum likelihood.

    In more than a few dimensions training estimates the divergence, as published; the evaluation
    computes it exactly up to EXACT_DIMENSIONS.
    """

    title = "density, adaptive solver"
    # Steps of the solver and probes of the divergence are those of a whole batch.
    separable = False

    def build(self) -> FlowPrior:
        """Returns the untrained continuous flow."""
        model, few = self.config.model, self.event_shape[0] <= MAX_EXACT_TRAINING
        net = build_perceptron(self.config.network, self.event_shape)
        divergence = "exact" if few else "hutchinson"
        return FlowPrior(FFJORD(net, rtol=model.rtol, atol=model.atol, divergence=divergence))

    def estimators(self, settings: EvaluationSettings) -> list[Estimator]:
        """Returns the density, with keyed probes if the divergence is estimated."""
        flow = self.module.flow
        exact = self.event_shape[0] <= EXACT_DIMENSIONS

        def density(x: Tensor, key: NoiseKey, offset: int) -> Tensor:
            flow.divergence = "exact" if exact else "hutchinson"
            return flow.log_prob(x, None if exact else _probes(x, key, offset))

        return [Estimator("exact", self.title, density)]

    def paths(self, x0: Tensor, key: NoiseKey) -> Paths:
        """Returns states of the ODE at even times, from data to noise and from noise to data."""
        flow, shape = self.module.flow, tuple(x0.shape)
        times = torch.linspace(0.0, flow.t_end, PATH_STATES, dtype=torch.float64)
        z = StandardNormal().sample(shape, key, dtype=x0.dtype, device=x0.device)
        reverse = flow.path(z, times.flip(0).tolist()).flip(0)
        return Paths(flow.path(x0, times.tolist()), reverse, times)


def _probes(x: Tensor, key: NoiseKey, offset: int) -> Tensor:
    shape = tuple(x.shape)
    draws = normal(shape, key, purpose="hutchinson", sample_offset=offset, device=x.device)
    return torch.where(draws > 0, 1.0, -1.0).to(x.dtype)
