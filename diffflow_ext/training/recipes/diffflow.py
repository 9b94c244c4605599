"""DiffFlow: drift and score in one path loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffflow_ext.functional.noise import NoiseKey, sample_uniforms
from diffflow_ext.functional.perturb import perturb
from diffflow_ext.models.denoising import mean_square_error
from diffflow_ext.models.diffflow import DiffFlowSDE
from diffflow_ext.nets import FromNoise
from diffflow_ext.processes.diffusion import ConstantDiffusion, GeometricDiffusion
from diffflow_ext.processes.grids import TimeGrid
from diffflow_ext.processes.noise_path import NoisePath

from ..config.fields import DiffFlowConfig
from ..config.schedules import (
    is_logged,
    pretraining,
    progressive_grid,
    sampling_grid,
    training_grid,
)
from ..config.sections import DiffFlowModel
from .base import Estimator, EvaluationSettings, Objective, Recipe, ode_estimator
from .networks import build_flow, build_net

# Steps of the ODE for vectors, at least, and for images, where the velocity is steep.
MIN_ODE_STEPS = 50
IMAGE_ODE_STEPS = 400
#: The last rate of noise of the diffusion that predictions of noise start as.
BETA_MAX = 3.0


class DiffFlowRecipe(Recipe[DiffFlowSDE, DiffFlowConfig]):
    """Trains both networks, and optionally g or a flow prior, on the path loss.

    Networks that predict noise learn that first: a path has N + 1 states, pretraining has one.
    """

    sampler_options = ("stochasticity", "last_step", "solver", "corrector_steps",
                       "corrector_scale")  # fmt: skip
    curve = ("bound", "bound on -log p per sample [nats]")

    def build(self) -> DiffFlowSDE:
        """Returns the untrained pair of SDEs."""
        model, network, shape = self.config.model, self.config.network, self.event_shape
        drift = build_net(network, shape, network.drift_multiplier, network.drift_scale)
        score = build_net(network, shape, network.score_multiplier, network.score_scale)
        if network.prediction == "noise":
            drift, score = FromNoise(drift, self.path.drift), FromNoise(score, self.path.score)
        prior = build_flow(network, shape) if model.prior == "flow" else None
        return DiffFlowSDE(
            drift, score, _build_diffusion(model), prior=prior,
            scores_per_call=self.config.run.scores_per_call,
        )  # fmt: skip

    @property
    def path(self) -> NoisePath:
        """The diffusion that predictions of noise start as."""
        model = self.config.model
        start, end, t_start, t_end = (
            model.diffusion_start, model.diffusion_end, model.t_start, model.t_end
        )  # fmt: skip
        assert start is not None
        assert end is not None
        # That at t_start: g is geometric from time 0.
        g = start * (end / start) ** (t_start / t_end)
        return NoisePath(g, end, t_start, t_end, max(BETA_MAX, g**2 * (t_end - t_start)))

    #: The difference between the bound and the loss at the last logged step.
    _rest = math.nan

    def make_objectives(self) -> Sequence[Objective]:
        """Returns one objective: the path loss couples everything."""
        return self.one_objective(self._loss)

    def _loss(self, x0: Tensor, step: int, offset: int) -> Tensor:
        if step < pretraining(self.config):
            # Processes exchange the gradients of all parameters, if they are zeros.
            zero = sum((0.0 * p.sum() for p in self.untrained(step)), x0.new_zeros(()))
            return self._denoising(x0, step, offset).mean() + zero
        grid = training_grid(self.config, step)
        self.note(x0, grid, step)
        return self.path_loss(x0, grid, self.key(step), offset)

    def untrained(self, step: int) -> Sequence[nn.Parameter]:
        """Returns the parameters of g and of the prior in pretraining."""
        nets = ("drift.", "score.")
        if step >= pretraining(self.config):
            return []
        named = self.module.named_parameters()
        return [p for name, p in named if p.requires_grad and not name.startswith(nets)]

    def _denoising(self, x0: Tensor, step: int, offset: int) -> Tensor:
        """Returns the mean squared error of both networks' noise for each sample, at one time."""
        key, path = self.key(step), self.path
        u = sample_uniforms(x0, key, 1, offset)[:, 0].to(x0.dtype) ** (1 / self.power)
        t = path.t_start + path.duration * u
        process, u = path.process, path.unit_time(t)
        alpha, sigma = process.alpha(u), process.sigma(u)
        x_t, eps = perturb(x0, alpha_t=alpha, sigma_t=sigma, key=key, sample_offset=offset)
        nets: dict[str, Any] = {"drift": self.module.drift, "score": self.module.score}
        errors = [
            mean_square_error("pretraining", part.net, t, x_t, eps, "autograd", f"{name}.net")
            for name, part in nets.items()
        ]
        return errors[0] + errors[1]

    @property
    def power(self) -> float:
        """The exponent of the time grid."""
        power = self.config.model.power
        assert power is not None
        return power

    def rehearse(self, x0: Tensor, step: int) -> None:
        """Evaluates the loss of paths, and before it that of pretraining."""
        first = pretraining(self.config)
        if step < first:
            super().rehearse(x0, step)
        super().rehearse(x0, max(step, first))

    def sample_losses(self, x0: Tensor, step: int, offset: int) -> Tensor:
        """Returns the loss of each sample: of its path, or of its noise in pretraining."""
        if step < pretraining(self.config):
            return self._denoising(x0, step, offset)
        grid, run = training_grid(self.config, step), self.config.run
        return self.module.loss(
            x0, grid, self.key(step),
            checkpoint_every=run.checkpoint_every, sample_offset=offset, engine=run.engine,
        )  # fmt: skip

    def where_not_finite(self, x0: Tensor, step: int, offset: int) -> str:
        """Returns the first state, drift or score of a path that isn't finite."""
        if step < pretraining(self.config):
            return "a prediction of noise isn't finite"
        grid, module = training_grid(self.config, step), self.module
        states = module.path(x0, grid, self.key(step), sample_offset=offset)
        times = grid.times.to(x0.device, x0.dtype)
        with torch.no_grad():
            for k, (t, x) in enumerate(zip(times, states, strict=True)):
                values = {"state": x, "drift": module.drift(t, x), "score": module.score(t, x)}
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
        self, x0: Tensor, grid: TimeGrid, key: NoiseKey | Tensor, offset: int = 0
    ) -> Tensor:
        """Returns the mean loss of samples, the first of global index `offset`, shape ()."""
        run = self.config.run
        return self.module.mean_loss(
            x0, grid, key,
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
        return self.module.sample(shape, grid, key, sample_offset=sample_offset, **options)

    def estimators(self, settings: EvaluationSettings) -> list[Estimator]:
        """Returns the bound with one path and with several, and the density of the ODE."""
        grid = sampling_grid(self.config, settings.num_steps)
        fine = IMAGE_ODE_STEPS if self.is_image else max(MIN_ODE_STEPS, grid.num_steps)

        def bound(num_paths: int) -> Any:
            return lambda x, key, offset: self.module.elbo(
                x, grid, key, num_paths=num_paths, sample_offset=offset
            )

        def ode(x: Tensor, num_steps: int, key: NoiseKey, offset: int) -> Tensor:
            times = sampling_grid(self.config, num_steps)
            return self.module.log_prob(x, times, key, sample_offset=offset)

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
        if step < pretraining(self.config):
            return {}
        num_steps = progressive_grid(self.config)(step)
        return {"num_steps": num_steps, "bound": loss + self._rest}

    def paths(self, x0: Tensor, key: NoiseKey) -> tuple[Tensor, Tensor, Tensor]:
        """Returns both processes."""
        grid = sampling_grid(self.config)
        forward = self.module.path(x0, grid, key)
        return forward, self.module.sample_path(tuple(x0.shape), grid, key), grid.times


def _build_diffusion(model: DiffFlowModel) -> nn.Module:
    start, end = model.diffusion_start, model.diffusion_end
    if start == end and not model.learn_diffusion:
        return ConstantDiffusion(start)
    return GeometricDiffusion(start, end, model.t_end, learnable=model.learn_diffusion)
