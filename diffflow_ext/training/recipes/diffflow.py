"""DiffFlow: drift and score in one path loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffflow_ext.engines.conditions import conditioned
from diffflow_ext.figures.paths import Paths
from diffflow_ext.functional.noise import NoiseKey
from diffflow_ext.models.diffflow import DiffFlowSDE
from diffflow_ext.nets import NoiseScore
from diffflow_ext.processes.diffusion import ConstantDiffusion, GeometricDiffusion
from diffflow_ext.processes.grids import TimeGrid

from ..config.fields import DiffFlowConfig
from ..config.schedules import is_logged, progressive_grid, sampling_grid, training_grid
from ..config.sections import DiffFlowModel
from .base import NATS, Curve, Estimator, EvaluationSettings, Objective, Recipe, ode_estimator
from .networks import build_flow, build_net

# Steps of the ODE for vectors, at least, and for images, where the velocity is steep.
MIN_ODE_STEPS = 50
IMAGE_ODE_STEPS = 400
#: The time, as a share of T, that keeps a score of predicted noise finite at the data.
NOISE_FLOOR = 1e-4


class DiffFlowRecipe(Recipe[DiffFlowSDE, DiffFlowConfig]):
    """Trains both networks, and optionally g or a flow prior, on the path loss."""

    sampler_options = ("stochasticity", "last_step", "solver", "corrector_steps",
                       "corrector_scale")  # fmt: skip

    def build(self) -> DiffFlowSDE:
        """Returns the untrained pair of SDEs."""
        model, network, shape = self.config.model, self.config.network, self.event_shape
        given = self.conditions
        net = partial(build_net, network, shape, conditions=given)
        drift = net(network.drift_multiplier, network.drift_scale)
        score = net(network.score_multiplier, network.score_scale)
        if network.prediction == "noise":
            floor = NOISE_FLOOR * (model.t_end - model.t_start)
            score = NoiseScore(score, model.diffusion_start, model.t_start, floor=floor)
        prior = build_flow(network, shape, given) if model.prior == "flow" else None
        return DiffFlowSDE(
            drift, score, _build_diffusion(model), prior=prior,
            scores_per_call=self.config.run.scores_per_call,
        )  # fmt: skip

    #: The difference between the bound and the loss at the last logged step.
    _rest = math.nan

    @property
    def curve(self) -> Curve:
        """The bound, which is comparable between different N."""
        return Curve("bound", "bound on -log p", NATS)

    def make_objectives(self) -> Sequence[Objective]:
        """Returns one objective: the path loss couples everything."""
        return self.one_objective(self._loss)

    def _loss(self, x0: Tensor, step: int, offset: int) -> Tensor:
        grid = training_grid(self.config, step)
        self.note(x0, grid, step)
        context = self.context(step, offset, len(x0), x0)
        return self.path_loss(x0, grid, self.key(step), offset, context)

    def sample_losses(self, x0: Tensor, step: int, offset: int) -> Tensor:
        """Returns the path loss of each sample."""
        grid, run = training_grid(self.config, step), self.config.run
        return self.module.loss(
            x0, grid, self.key(step), context=self.context(step, offset, len(x0), x0),
            checkpoint_every=run.checkpoint_every, sample_offset=offset, engine=run.engine,
        )  # fmt: skip

    def where_not_finite(self, x0: Tensor, step: int, offset: int) -> str:
        """Returns the first state, drift or score of a path that isn't finite."""
        grid, module = training_grid(self.config, step), self.module
        context = self.context(step, offset, len(x0), x0)
        states = module.path(x0, grid, self.key(step), context=context, sample_offset=offset)
        drift, score = (conditioned(net, context) for net in (module.drift, module.score))
        times = grid.times.to(x0.device, x0.dtype)
        with torch.no_grad():
            for k, (t, x) in enumerate(zip(times, states, strict=True)):
                values = {"state": x, "drift": drift(t, x), "score": score(t, x)}
                for name, value in values.items():
                    if not value.isfinite().all() and (k > 0 or name != "score"):
                        return f"the {name} at step {k} of {grid.num_steps} isn't finite"
        return "states, drifts and scores are finite; a residual or the prior's cost isn't"

    def note(self, x0: Tensor, grid: TimeGrid, step: int) -> None:
        """Computes the difference between the bound and the loss if the step will be logged."""
        if is_logged(self.config, step + 1):
            # It is that of the whole batch, of which x0 may be a part.
            batch = x0.new_zeros((self.config.optimiser.batch_size, *x0.shape[1:]))
            rest = self.module.bound_minus_loss(batch, grid, self.key(step))
            self._rest = float(rest.double().mean())

    def path_loss(
        self,
        x0: Tensor,
        grid: TimeGrid,
        key: NoiseKey | Tensor,
        offset: int = 0,
        context: Tensor | None = None,
    ) -> Tensor:
        """Returns the mean loss of samples, the first of global index `offset`, shape ()."""
        run = self.config.run
        return self.module.mean_loss(
            x0, grid, key, context=context,
            checkpoint_every=run.checkpoint_every, sample_offset=offset, engine=run.engine,
        )  # fmt: skip

    def draw(
        self,
        shape: tuple[int, ...],
        key: NoiseKey,
        *,
        num_steps: int | None = None,
        sample_offset: int = 0,
        **options: Any,
    ) -> Tensor:
        """Returns samples of the reverse family on the fixed grid."""
        grid = sampling_grid(self.config, num_steps)
        context = self.context(0, sample_offset, shape[0])
        return self.module.sample(
            shape, grid, key, context=context, sample_offset=sample_offset, **options
        )

    def estimators(self, settings: EvaluationSettings) -> list[Estimator]:
        """Returns the bound with one path and with several, and the density of the ODE."""
        grid = sampling_grid(self.config, settings.num_steps)
        fine = IMAGE_ODE_STEPS if self.is_image else max(MIN_ODE_STEPS, grid.num_steps)

        def bound(num_paths: int) -> Any:
            return lambda x, key, offset: self.module.elbo(
                x, grid, key, context=self.context(0, offset, len(x)),
                num_paths=num_paths, sample_offset=offset,
            )  # fmt: skip

        def ode(x: Tensor, num_steps: int, key: NoiseKey, offset: int) -> Tensor:
            times = sampling_grid(self.config, num_steps)
            context = self.context(0, offset, len(x))
            return self.module.log_prob(x, times, key, context=context, sample_offset=offset)

        estimators = [Estimator("bound", "bound", bound(1))]
        if settings.num_paths > 1:
            title = f"bound, {settings.num_paths} paths"
            estimators.append(Estimator("importance_weighted", title, bound(settings.num_paths)))
        if settings.ode_n:
            estimators.append(ode_estimator(ode, fine, settings.ode_n))
        return estimators

    def num_steps(self, num_steps: int | None = None) -> int:
        """Returns N."""
        return sampling_grid(self.config, num_steps).num_steps

    def reading(self, step: int, loss: float) -> dict[str, float]:
        """Returns N and the bound on -log p in nats, which is comparable between different N."""
        num_steps = progressive_grid(self.config)(step)
        return {"num_steps": num_steps, "bound": loss + self._rest}

    def paths(self, x0: Tensor, key: NoiseKey) -> Paths:
        """Returns states of both processes."""
        grid = sampling_grid(self.config)
        context, shape = self.context(0, 0, len(x0)), tuple(x0.shape)
        forward = self.module.path(x0, grid, key, context=context)
        reverse = self.module.sample_path(shape, grid, key, context=context)
        return Paths(forward, reverse, grid.times)


def _build_diffusion(model: DiffFlowModel) -> nn.Module:
    start, end = model.diffusion_start, model.diffusion_end
    if start == end and not model.learn_diffusion:
        return ConstantDiffusion(start)
    return GeometricDiffusion(start, end, model.t_end, learnable=model.learn_diffusion)
