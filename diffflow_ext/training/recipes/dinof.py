"""DiNof: a score network up to the cutoff, a flow beyond; nothing couples their training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from diffflow_ext.functional.noise import NoiseKey
from diffflow_ext.models.dinof import DiNof
from diffflow_ext.processes.linear import process_by_name

from .base import Estimator, EvaluationSettings, Part, Recipe, ode_estimator
from .networks import build_flow, build_net

__all__ = ["DiNofRecipe"]


ODE_STEPS = 100


class DiNofRecipe(Recipe[DiNof]):
    """Trains score and flow side by side, each on its own loss."""

    sampler_options = ("sampler", "corrector_steps", "snr", "last_step", "solver")

    def build(self) -> DiNof:
        """Returns the untrained model."""
        config, shape = self.config, self.event_shape
        ends = ("sigma_min", "sigma_max") if config.process == "ve" else ("beta_min", "beta_max")
        process = process_by_name(config.process, **{name: getattr(config, name) for name in ends})
        net = build_net(config, shape)
        flow = None if config.flow == "none" else build_flow(config, shape)
        weight: Any = config.loss_weight
        return DiNof(net, flow, process, config.t_cutoff, loss_weight=weight)

    def split(self) -> Sequence[Part]:
        """Returns the score and, but for a Gaussian, the flow."""
        config, module = self.config, self.module
        score = Part(
            "score",
            list(module.score_parameters()),
            lambda x0, step, offset: module.score_loss(
                x0, self.key(step), sample_offset=offset
            ).mean(),
            config.learning_rate,
            config.clip_norm,
        )
        if config.flow == "none":
            return [score]
        flow = Part(
            "flow",
            list(module.flow_parameters()),
            lambda x0, step, offset: module.flow_loss(
                x0, self.key(step), sample_offset=offset
            ).mean(),
            config.flow_learning_rate,
            config.flow_clip_norm,
            autocast=False,
        )
        return [score, flow]

    def each(self, x0: Tensor, step: int, offset: int) -> Tensor:
        """Returns the losses of score and flow together."""
        at = (x0, self.key(step))
        loss = self.module.score_loss(*at, sample_offset=offset)
        if self.config.flow == "none":
            return loss
        return loss + self.module.flow_loss(*at, sample_offset=offset)

    def draw(
        self,
        shape: tuple[int, ...],
        key: NoiseKey,
        *,
        num_steps: int | None = None,
        sample_offset: int = 0,
        **options: Any,
    ) -> Tensor:
        """Returns samples of the flow that the diffusion took back to the data."""
        return self.module.sample(shape, num_steps, key, sample_offset=sample_offset, **options)

    def estimators(self, settings: EvaluationSettings) -> list[Estimator]:
        """Returns the density of the ODE; the model has no other."""

        def ode(x: Tensor, num_steps: int, key: NoiseKey, offset: int) -> Tensor:
            return self.module.log_prob(x, num_steps, key, sample_offset=offset)

        return [ode_estimator(ode, ODE_STEPS, settings.ode_n)] if settings.ode_n else []

    def num_steps(self, num_steps: int | None = None) -> int:
        """Returns the steps of the sampler: by default 1000 for the whole time of the process."""
        default = max(round(1000 * self.config.t_cutoff), 1)
        return default if num_steps is None else num_steps
