"""DiNof: a score network up to the cutoff and a flow there, trained independently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from diffflow_ext.figures.paths import Paths
from diffflow_ext.functional.noise import NoiseKey
from diffflow_ext.models.dinof import DiNof
from diffflow_ext.processes.linear import process_by_name

from ..config.fields import DiNofConfig
from .base import (
    NOISE_ERROR,
    Curve,
    Estimator,
    EvaluationSettings,
    Objective,
    Recipe,
    ode_estimator,
)
from .networks import build_flow, build_net
from .paths import linear_marginal, linear_share, paths_of

ODE_STEPS = 100


class DiNofRecipe(Recipe[DiNof, DiNofConfig]):
    """Trains score and flow at the same time, each on its own loss."""

    sampler_options = ("sampler", "corrector_steps", "snr", "last_step", "solver")

    @property
    def curve(self) -> Curve:
        """The sum of both losses."""
        flow = "" if self.config.network.flow == "none" else " + -log p of the flow [nats]"
        weighted = "" if self.config.model.loss_weight == "variance" else "weighted "
        return Curve("loss", f"{weighted}{NOISE_ERROR}{flow}")

    def build(self) -> DiNof:
        """Returns the untrained model."""
        model, network, shape = self.config.model, self.config.network, self.event_shape
        ends = ("sigma_min", "sigma_max") if model.process == "ve" else ("beta_min", "beta_max")
        process = process_by_name(model.process, **{name: getattr(model, name) for name in ends})
        net = build_net(network, shape, conditions=self.conditions)
        flow = None if network.flow == "none" else build_flow(network, shape, self.conditions)
        return DiNof(net, flow, process, model.t_cutoff, loss_weight=model.loss_weight)

    def make_objectives(self) -> Sequence[Objective]:
        """Returns the score and, but for a Gaussian, the flow."""
        optimiser, module = self.config.optimiser, self.module
        score = Objective(
            "score",
            list(module.score_parameters()),
            lambda x0, step, offset: module.score_loss(
                x0, self.key(step), **self._options(x0, step, offset)
            ).mean(),
            optimiser.learning_rate,
            optimiser.clip_norm,
        )
        if self.config.network.flow == "none":
            return [score]
        flow = Objective(
            "flow",
            list(module.flow_parameters()),
            lambda x0, step, offset: module.flow_loss(
                x0, self.key(step), **self._options(x0, step, offset)
            ).mean(),
            optimiser.flow_learning_rate,
            optimiser.flow_clip_norm,
            autocast=False,
        )
        return [score, flow]

    def _options(self, x0: Tensor, step: int, offset: int) -> dict[str, Any]:
        return {"context": self.context(step, offset, len(x0), x0), "sample_offset": offset}

    def sample_losses(self, x0: Tensor, step: int, offset: int) -> Tensor:
        """Returns the losses of score and flow together."""
        key, options = self.key(step), self._options(x0, step, offset)
        loss = self.module.score_loss(x0, key, **options)
        if self.config.network.flow == "none":
            return loss
        return loss + self.module.flow_loss(x0, key, **options)

    def draw(
        self,
        shape: tuple[int, ...],
        key: NoiseKey,
        *,
        num_steps: int | None = None,
        sample_offset: int = 0,
        **options: Any,
    ) -> Tensor:
        """Returns samples."""
        context = self.context(0, sample_offset, shape[0])
        return self.module.sample(
            shape, num_steps, key, context=context, sample_offset=sample_offset, **options
        )

    def estimators(self, settings: EvaluationSettings) -> list[Estimator]:
        """Returns the density of the ODE; the model has no other."""

        def ode(x: Tensor, num_steps: int, key: NoiseKey, offset: int) -> Tensor:
            return self.module.log_prob(x, num_steps, key, **self._options(x, 0, offset))

        return [ode_estimator(ode, ODE_STEPS, settings.ode_n)] if settings.ode_n else []

    def num_steps(self, num_steps: int | None = None) -> int:
        """Returns the steps of the sampler: by default 1000 for the whole time of the process."""
        default = max(round(1000 * self.config.model.t_cutoff), 1)
        return default if num_steps is None else num_steps

    def paths(self, x0: Tensor, key: NoiseKey) -> Paths:
        """Returns states of both processes."""
        shape, module = tuple(x0.shape), self.module
        marginal = linear_marginal(module.process, x0)
        steps, share = self.num_steps() or 1, linear_share(module.process)
        return paths_of(
            module.eps_net, lambda: self.draw(shape, key), marginal, share, x0, key, steps
        )
