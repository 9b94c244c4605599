"""NFDM: a diffusion with a learned forward process, trained on one bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.figures.paths import Paths
from diffflow_ext.functional.noise import NoiseKey
from diffflow_ext.models.nfdm import NFDM
from diffflow_ext.processes.linear import LogSNR

from ..config.fields import NFDMConfig
from .base import NATS, Curve, Estimator, EvaluationSettings, Objective, Recipe, ode_estimator
from .networks import build_forward_net, build_net
from .paths import paths_of

#: Times at which the bound of a sample is evaluated.
BOUND_TIMES = 100
ODE_STEPS = 100


class NFDMRecipe(Recipe[NFDM, NFDMConfig]):
    """Trains the prediction, and a learned forward process with it."""

    sampler_options = ("stochasticity", "clip")

    @property
    def curve(self) -> Curve:
        """The bound, or the loss if that has a penalty too."""
        if self.config.model.straightness:
            return Curve("loss", "bound on -log p + penalty", "nats per dimension")
        return Curve("bound", "bound on -log p", NATS)

    def build(self) -> NFDM:
        """Returns the untrained model."""
        model, network, shape = self.config.model, self.config.network, self.event_shape
        conditions = self.conditions
        net, forward_net = build_net(network, shape, conditions=conditions), None
        if model.forward == "learned":
            assert model.time_functions is not None
            forward_net = build_forward_net(network, shape, model.time_functions, conditions)
        assert model.log_snr_start is not None
        process = LogSNR(model.log_snr_start, model.log_snr_end)
        return NFDM(net, forward_net, process, straightness=model.straightness)

    def make_objectives(self) -> Sequence[Objective]:
        """Returns one objective, the bound in nats per dimension."""
        return self.one_objective(
            lambda x0, step, offset: (
                self.module.mean_loss(x0, self.key(step), **self._options(x0, step, offset))
                / self._dimensions
            )
        )

    def _options(self, x0: Tensor, step: int, offset: int) -> dict[str, Any]:
        return {"context": self.context(step, offset, len(x0), x0), "sample_offset": offset}

    @property
    def _dimensions(self) -> int:
        return math.prod(self.event_shape)

    def sample_losses(self, x0: Tensor, step: int, offset: int) -> Tensor:
        """Returns the bound of each sample, in nats per dimension."""
        loss = self.module.loss(x0, self.key(step), **self._options(x0, step, offset))
        return loss / self._dimensions

    def reading(self, step: int, loss: float) -> dict[str, float]:
        """Returns the bound on -log p in nats, unless the loss has a penalty too."""
        return {} if self.config.model.straightness else {"bound": loss * self._dimensions}

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
        num_steps = self.num_steps(num_steps)
        context = self.context(0, sample_offset, shape[0])
        return self.module.sample(
            shape, num_steps, key, context=context, sample_offset=sample_offset, **options
        )

    def estimators(self, settings: EvaluationSettings) -> list[Estimator]:
        """Returns the bound and the density of the ODE."""

        def bound(x: Tensor, key: NoiseKey, offset: int) -> Tensor:
            return self.module.elbo(x, key, timesteps=BOUND_TIMES, **self._options(x, 0, offset))

        def ode(x: Tensor, num_steps: int, key: NoiseKey, offset: int) -> Tensor:
            return self.module.log_prob(x, num_steps, key, **self._options(x, 0, offset))

        estimators = [Estimator("bound", f"bound, {BOUND_TIMES} times", bound)]
        if settings.ode_n:
            estimators.append(ode_estimator(ode, ODE_STEPS, settings.ode_n))
        return estimators

    def num_steps(self, num_steps: int | None = None) -> int:
        """Returns the steps of the sampler."""
        return self.config.model.num_steps if num_steps is None else num_steps

    def paths(self, x0: Tensor, key: NoiseKey) -> Paths:
        """Returns states of both processes."""
        shape, module = tuple(x0.shape), self.module
        context = self.context(0, 0, len(x0))
        process = module.forward_process
        process = process if context is None else process.given(context)
        known = process.coefficients(x0)

        def marginal(t: Tensor) -> tuple[Tensor, Tensor]:
            at = process.at(t.to(x0.dtype), x0, known)
            return at.mean, at.scale

        def noise_share(t: Tensor, t_next: Tensor) -> Tensor:
            # As in `NFDM.sample`.
            fresh = [module.squared_g(s) / marginal(s)[1].square() for s in (t, t_next)]
            return torch.exp(-0.25 * (t_next - t) * (fresh[0] + fresh[1]))

        steps = self.num_steps()
        return paths_of(
            module.net, lambda: self.draw(shape, key), marginal, noise_share, x0, key, steps
        )
