"""DDPM: a network that predicts the noise of a fixed diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from diffflow_ext.figures.paths import Paths
from diffflow_ext.functional.noise import NoiseKey
from diffflow_ext.models.ddpm import DDPM

from ..config.fields import DDPMConfig
from .base import (
    NOISE_ERROR,
    Curve,
    Estimator,
    EvaluationSettings,
    Objective,
    Recipe,
    ode_estimator,
)
from .networks import build_net
from .paths import linear_marginal, linear_share, paths_of

# All T terms of the bound cost T evaluations; images get an unbiased estimate from fewer.
IMAGE_TERMS = 100
ODE_STEPS = 100


class DDPMRecipe(Recipe[DDPM, DDPMConfig]):
    """Trains the network on the simplified loss."""

    sampler_options = ("sampler", "eta", "variance", "clip", "last_step")

    @property
    def curve(self) -> Curve:
        """The loss."""
        return Curve("loss", NOISE_ERROR)

    def build(self) -> DDPM:
        """Returns the untrained model."""
        config = self.config
        net = build_net(config.network, self.event_shape, conditions=self.conditions)
        return DDPM(net, config.model.noise_schedule, config.model.timesteps)

    def make_objectives(self) -> Sequence[Objective]:
        """Returns one objective."""
        return self.one_objective(
            lambda x0, step, offset: self.module.mean_loss(
                x0,
                self.key(step),
                context=self.context(step, offset, len(x0), x0),
                sample_offset=offset,
            )
        )

    def sample_losses(self, x0: Tensor, step: int, offset: int) -> Tensor:
        """Returns the square error of each sample's noise."""
        context = self.context(step, offset, len(x0), x0)
        return self.module.loss(x0, self.key(step), context=context, sample_offset=offset)

    def draw(
        self,
        shape: tuple[int, ...],
        key: NoiseKey,
        *,
        num_steps: int | None = None,
        sample_offset: int = 0,
        **options: Any,
    ) -> Tensor:
        """Returns samples; predictions of images are clipped to their range."""
        options.setdefault("clip", self.is_image)
        context = self.context(0, sample_offset, shape[0])
        return self.module.sample(
            shape, num_steps, key, context=context, sample_offset=sample_offset, **options
        )

    def estimators(self, settings: EvaluationSettings) -> list[Estimator]:
        """Returns the variational bound of the ancestral sampler and the density of the ODE."""
        total = self.config.model.timesteps
        terms = min(IMAGE_TERMS, total) if self.is_image else None

        def bound(x: Tensor, key: NoiseKey, offset: int) -> Tensor:
            context = self.context(0, offset, len(x))
            return self.module.elbo(x, key, context=context, timesteps=terms, sample_offset=offset)

        def ode(x: Tensor, num_steps: int, key: NoiseKey, offset: int) -> Tensor:
            context = self.context(0, offset, len(x))
            return self.module.log_prob(x, num_steps, key, context=context, sample_offset=offset)

        estimators = [Estimator("bound", f"bound, {terms or total} of {total} terms", bound)]
        if settings.ode_n:
            estimators.append(ode_estimator(ode, ODE_STEPS, settings.ode_n))
        return estimators

    def num_steps(self, num_steps: int | None = None) -> int:
        """Returns the steps of the sampler: by default all."""
        return self.config.model.timesteps if num_steps is None else num_steps

    def paths(self, x0: Tensor, key: NoiseKey) -> Paths:
        """Returns states of both processes."""
        shape, module = tuple(x0.shape), self.module
        marginal = linear_marginal(module.process, x0)
        steps, share = self.num_steps() or 1, linear_share(module.process)
        return paths_of(
            module.eps_net, lambda: self.draw(shape, key), marginal, share, x0, key, steps
        )
