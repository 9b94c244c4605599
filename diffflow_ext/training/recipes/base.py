"""The interface of models for the trainer and the evaluation."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from diffflow_ext.data.conditions import Conditions
from diffflow_ext.figures.paths import Paths
from diffflow_ext.functional.noise import NoiseKey

from ..config.fields import Config
from .contexts import Contexts, GivenContexts

Model = TypeVar("Model", bound=nn.Module)
Configuration = TypeVar("Configuration", bound=Config)
NATS = "nats per sample"
NOISE_ERROR = "mean square error of the predicted noise"


@dataclass(frozen=True)
class Objective:
    """Parameters that are trained with one loss, one learning rate and one clipped gradient.

    Arguments:
        name: Its name in logs and errors.
        parameters: Its tensors; those of two objectives don't overlap.
        loss: Returns the mean loss of samples x0 in a step counted from 0, shape (); the third
            argument is the global index of the first of them.
        learning_rate: The highest learning rate.
        clip_norm: The largest norm of the gradient.
        autocast: Whether the loss may be computed in lower precision, if the run does.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    loss: Callable[[Tensor, int, int], Tensor]
    learning_rate: float
    clip_norm: float
    autocast: bool = True


class Curve(NamedTuple):
    """A number of log lines that shows progress.

    Attributes:
        name: Its name there.
        what: What it is, for labels.
        unit: Its unit; `NATS` if it is -log p of a sample, or a bound of it.
    """

    name: str
    what: str
    unit: str = ""

    @property
    def label(self) -> str:
        """What it is, with its unit."""
        return f"{self.what} [{self.unit}]" if self.unit else self.what


@dataclass(frozen=True)
class EvaluationSettings:
    """Options of likelihoods.

    Arguments:
        num_steps: Steps N of the model, None for its own.
        num_paths: Paths K of the importance-weighted bound; 1 for none.
        ode_n: Test rows for the density of the ODE; 0 for none.
    """

    num_steps: int | None = None
    num_paths: int = 1
    ode_n: int = 0

    def __post_init__(self) -> None:
        least = {"num_paths": (self.num_paths, 1), "ode_n": (self.ode_n, 0)}
        for name, (value, low) in least.items():
            if value < low:
                raise ValueError(f"evaluate: {name}={value}: expected at least {low}")


@dataclass(frozen=True)
class Estimator:
    """An estimator of a likelihood.

    Arguments:
        name: Its name in evaluation.json.
        title: Its name in tables.
        log_prob: Maps rows (B, *event), a key and the index of the first row to log-densities or
            bounds of them, shape (B,), in nats.
        limit: The largest number of rows; None for all.
        halved: The same with half the steps of its solver, to estimate the error of the steps.
    """

    name: str
    title: str
    log_prob: Callable[[Tensor, NoiseKey, int], Tensor]
    limit: int | None = None
    halved: Callable[[Tensor, NoiseKey, int], Tensor] | None = None


def ode_estimator(
    log_prob: Callable[[Tensor, int, NoiseKey, int], Tensor], num_steps: int, limit: int
) -> Estimator:
    """Returns the density of an ODE from ``log_prob(x, num_steps, key, offset)``."""
    return Estimator(
        "ode",
        f"ODE, Heun, {num_steps} steps",
        lambda x, key, offset: log_prob(x, num_steps, key, offset),
        limit,
        lambda x, key, offset: log_prob(x, num_steps // 2, key, offset),
    )


class Recipe(ABC, Generic[Model, Configuration]):
    """Training, sampling and evaluation of a run's model.

    Arguments:
        config: The configuration, resolved for the data.
        event_shape: The shape of a sample.
        conditions: What the model is conditioned on; None for nothing.

    Attributes:
        module: The model that is trained, averaged and saved.
        objectives: Its parameters with their losses.
        contexts: The contexts of its samples, which the trainer sets; see `given`.
    """

    #: Options of `draw` besides the number of steps.
    sampler_options: ClassVar[tuple[str, ...]] = ()
    #: Whether the loss of a batch is the mean of independent losses of its samples.
    separable: ClassVar[bool] = True

    module: Model
    objectives: Sequence[Objective]
    contexts: Contexts | None = None

    def __init__(
        self,
        config: Configuration,
        event_shape: tuple[int, ...],
        conditions: Conditions | None = None,
    ) -> None:
        self.config, self.event_shape, self.conditions = config, event_shape, conditions
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed)
            self.module = self.build()
        self.objectives = self.make_objectives()

    @abstractmethod
    def build(self) -> Model:
        """Returns the untrained model; its weights come from torch's generator."""

    @abstractmethod
    def make_objectives(self) -> Sequence[Objective]:
        """Returns the objectives for the current parameters of the module."""

    @abstractmethod
    def sample_losses(self, x0: Tensor, step: int, offset: int) -> Tensor:
        """Returns the loss of each sample in a step, shape (B,), without a gradient."""

    @property
    def curve(self) -> Curve:
        """The number of a log line that shows progress."""
        return Curve("loss", "loss per sample")

    def where_not_finite(self, x0: Tensor, step: int, offset: int) -> str:
        """Returns which part of one sample's loss isn't finite, if it's known."""
        return ""

    @abstractmethod
    def draw(
        self,
        shape: tuple[int, ...],
        key: NoiseKey,
        *,
        num_steps: int | None = None,
        sample_offset: int = 0,
        **options: Any,
    ) -> Tensor:
        """Returns samples of shape (B, *event) in the units of training."""

    @abstractmethod
    def estimators(self, settings: EvaluationSettings) -> list[Estimator]:
        """Returns the estimators of its likelihood, the first one for all test rows."""

    def num_steps(self, num_steps: int | None = None) -> int | None:
        """Returns the number of steps of a sample; None if the model has no such number."""
        return num_steps

    def reading(self, step: int, loss: float) -> dict[str, float]:
        """Returns further numbers for the log of a step (counted from 0)."""
        return {}

    def paths(self, x0: Tensor, key: NoiseKey) -> Paths | None:
        """Returns states of both processes, if the model has both."""
        return None

    def given(self, stored: Tensor | None, times: int = 1) -> Recipe[Model, Configuration]:
        """Returns the same recipe for samples with given conditions; itself for None.

        Arguments:
            stored: Conditions as `Dataset.given` has them, or contexts of masks.
            times: How many samples in a row have the conditions of a row: sample i has those of
                row i // times.
        """
        if stored is None or self.conditions is None:
            return self
        view = copy.copy(self)
        device = next(self.module.parameters()).device
        view.contexts = GivenContexts(self.conditions, stored, device, times)
        return view

    def context(
        self, step: int, offset: int, count: int, x0: Tensor | None = None
    ) -> Tensor | None:
        """Returns the context of samples of a step by their indices; None without conditions.

        In training x0 are these samples. Where nothing is given to a model that was trained with
        masks, all is hidden.
        """
        if self.contexts is not None:
            return self.contexts.of(step, offset, count, x0)
        masks = None if self.conditions is None else self.conditions.masks
        return None if masks is None else masks.none(count, next(self.module.parameters()))

    @property
    def is_image(self) -> bool:
        """Whether a sample is an image."""
        return len(self.event_shape) == 3

    def key(self, step: int) -> NoiseKey:
        """Returns the key of a training step."""
        return NoiseKey(self.config.run.seed, stream=step)

    def one_objective(
        self, loss: Callable[[Tensor, int, int], Tensor], *, autocast: bool = True
    ) -> list[Objective]:
        """Returns all parameters as the only objective."""
        config = self.config
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        rate, norm = config.optimiser.learning_rate, config.optimiser.clip_norm
        return [Objective("model", parameters, loss, rate, norm, autocast)]
