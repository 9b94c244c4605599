"""What the trainer and the evaluation ask of a model, whichever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from diffflow_ext.functional.noise import NoiseKey

from ..config.fields import Config

Model = TypeVar("Model", bound=nn.Module)
Configuration = TypeVar("Configuration", bound=Config)


@dataclass(frozen=True)
class Objective:
    """What is trained with one loss, one learning rate and one clipped gradient.

    Arguments:
        name: What it is called in logs and errors.
        parameters: Its tensors; those of two objectives don't overlap.
        loss: Returns the mean loss of samples x0 in a step counted from 0, shape (); the third
            argument is the global index of the first of them.
        learning_rate: The highest learning rate.
        clip_norm: The longest gradient.
        autocast: Whether the loss may be computed in lower precision, if the run says so.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    loss: Callable[[Tensor, int, int], Tensor]
    learning_rate: float
    clip_norm: float
    autocast: bool = True


@dataclass(frozen=True)
class EvaluationSettings:
    """How likelihoods are estimated.

    Arguments:
        num_steps: Steps N of the model, None for its own.
        num_paths: Paths K of the importance-weighted bound; 1 leaves it out.
        ode_n: Test rows that get the density of the probability flow; 0 leaves it out.

    Raises:
        ValueError: If a number is out of its range.
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
    """One way to a likelihood.

    Arguments:
        name: Its name in evaluation.json.
        title: The same for a person.
        log_prob: From rows (B, *event), a key and the index of the first row to log-densities or
            bounds of them, shape (B,), in nats.
        limit: The most rows to spend it on; None for all.
        halved: The same with half the steps of its solver: how far it is from that tells what the
            steps cost in accuracy.
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
    """How a run trains, samples and scores its model.

    Arguments:
        config: The configuration, resolved for the data.
        event_shape: The shape of a sample.

    Attributes:
        module: What is trained, averaged and saved.
        objectives: What is trained with which loss.
    """

    #: Options of `draw` beside the number of steps.
    sampler_options: ClassVar[tuple[str, ...]] = ()
    #: Whether the loss of a batch is the mean of losses of its samples, whatever else is in it.
    separable: ClassVar[bool] = True
    #: Which number of a log line shows progress, and how it's called.
    curve: ClassVar[tuple[str, str]] = ("loss", "loss per sample")

    module: Model
    objectives: Sequence[Objective]

    def __init__(self, config: Configuration, event_shape: tuple[int, ...]) -> None:
        self.config, self.event_shape = config, event_shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed)
            self.module = self.build()
        self.objectives = self.make_objectives()

    @abstractmethod
    def build(self) -> Model:
        """Returns the untrained model; its weights come from torch's generator."""

    @abstractmethod
    def make_objectives(self) -> Sequence[Objective]:
        """Returns what is trained apart, on the present parameters of the module."""

    @abstractmethod
    def sample_losses(self, x0: Tensor, step: int, offset: int) -> Tensor:
        """Returns the loss of each sample in a step, shape (B,), without a gradient."""

    def where_not_finite(self, x0: Tensor, step: int, offset: int) -> str:
        """Returns where on the way to one sample's loss a number isn't finite, if it's known."""
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
        """Returns the ways to its likelihood, the first one for all test rows."""

    def num_steps(self, num_steps: int | None = None) -> int | None:
        """Returns how many steps a sample takes; None if the model has no such number."""
        return num_steps

    def reading(self, step: int, loss: float) -> dict[str, float]:
        """Returns what the log says of a step (counted from 0) beside the loss."""
        return {}

    def paths(self, x0: Tensor, key: NoiseKey) -> tuple[Tensor, Tensor, Tensor] | None:
        """Returns forward and reverse states (N+1, B, *event) and their times, if it has both."""
        return None

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
