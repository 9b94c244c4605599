"""The one description of a training run: a flat, frozen, checked value that is also a TOML file.

Every field carries its help text, the rule that its value obeys and the runs that read it, so that
the command line, the file format and the error messages are all made from this one list. Defaults
stand here alone, but for those that depend on the data (`defaults.resolve`).
"""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from diffflow_ext.nets.mlp import ACTIVATIONS

from . import rules

__all__ = ["MODELS", "TrainConfig", "field_types", "traits"]


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]


MODELS = ("diffflow", "dinof", "ddpm", "ffjord", "flow")


# What a run must have to read a field; see `traits`.
_DIFFFLOW = ("diffflow",)


_DINOF = ("dinof",)


_DDPM = ("ddpm",)


_FFJORD = ("ffjord",)


_WITH_NET = ("diffflow|dinof|ddpm|ffjord",)


_WITH_FLOW = ("flow|dinof|prior=flow",)


_MLP, _UNET, _SPLINE, _GLOW = ("mlp",), ("unet",), ("spline",), ("glow",)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a training run depends on; checked when it is made.

    Arguments are the fields below, each with its own help text (`diffflow train --help`).

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value isn't allowed, or belongs to another model than this run's; the
            message names the field, the value and what is allowed.
    """

    data: str = rules.option(
        MISSING, "Built-in set or file to learn from.", "a name or a path", lambda text: text != ""
    )
    data_seed: int = rules.whole(
        0, 0, "Seed of the points of a built-in set; the split of a file is fixed.",
        high=rules.MAX_SEED,
    )  # fmt: skip
    limit: int = rules.whole(0, 0, "Training data to learn from, the first ones; 0 takes all.")
    image_size: int = rules.whole(
        0, 0, "Side in pixels to which images are scaled; 0 leaves them.", high=4096
    )
    flip: str = rules.choice(
        "auto",
        ("auto", "on", "off"),
        "Whether images are mirrored at random; auto does what is usual for the set.",
    )
    model: str = rules.choice("diffflow", MODELS, "Which model to train.")
    seed: int = rules.whole(
        0, 0, "Seed of the initial weights, the order of the data and the noise.",
        high=rules.MAX_SEED,
    )  # fmt: skip

    steps: int = rules.whole(2000, 1, "Training steps, one batch each.", on_resume=True)
    batch_size: int = rules.whole(
        0, 1, "Samples in a batch; 0 takes 256, or 64 images.", auto=True
    )
    learning_rate: float = rules.positive(
        0.0,
        "Highest learning rate of Adam; 0 takes 3e-3 for perceptrons, 2e-4 for U-Nets, 1e-3 for"
        " flows.",
        auto=True,
    )
    schedule: str = rules.choice(
        "cosine",
        ("cosine", "step", "constant"),
        "How the learning rate falls: cosine to 0 at the end; step halves it after 1/2, 3/4 and"
        " 7/8 of the work (network evaluations); constant.",
    )
    warmup: int = rules.whole(200, 0, "Steps over which the learning rate rises from 0.")
    clip_norm: float = rules.positive(1.0, "Longest gradient; a longer one is scaled down to it.")
    ema_decay: float = rules.option(
        0.999,
        "Decay of the averaged weights that sampling uses; lower in the first steps.",
        "a number from 0 up to but not including 1",
        lambda value: 0 <= value < 1,
    )

    num_steps: int = rules.whole(
        30, 1, "Steps N of the trajectories.", high=rules.MAX_GRID, needs=_DIFFFLOW
    )
    t_start: float = rules.option(
        0.0,
        "Time of the data.",
        "a finite number of at least 0",
        lambda value: value >= 0,
        needs=_DIFFFLOW,
    )
    t_end: float = rules.positive(0.05, "Time of the noise.", needs=_DIFFFLOW)
    power: float = rules.positive(
        0.9, "Exponent of the time grid: t^power is evenly spaced.", needs=_DIFFFLOW
    )
    grid: str = rules.choice(
        "stratified",
        ("stratified", "power"),
        "Time grid in training: drawn anew for each batch, or fixed.",
        needs=_DIFFFLOW,
    )
    progressive: str = rules.option(
        "auto",
        "Steps N by iteration in training, such as 0:10,2000:30; auto takes N/6, N/3 and N from 0,"
        " 46 and 81 % of the training steps on; off takes N throughout. Sampling uses num-steps.",
        "auto, off, or pairs iteration:num_steps such as 0:10,2000:30, iterations rising from 0",
        rules.is_progressive,
        needs=_DIFFFLOW,
    )
    diffusion_start: float = rules.positive(
        0.0, "Diffusion g at the data; 0 takes 0.2, or 1 for images.", needs=_DIFFFLOW, auto=True
    )
    diffusion_end: float = rules.positive(
        0.0,
        "Diffusion g at the noise, between them geometric; 0 takes that at the data.",
        needs=_DIFFFLOW,
        auto=True,
    )
    learn_diffusion: bool = rules.flag(
        False, "Learn both ends of g together with the networks.", needs=_DIFFFLOW
    )
    prior: str = rules.choice(
        "normal",
        ("normal", "flow"),
        "What stands at the noise: N(0, I), or a flow that is trained along.",
        needs=_DIFFFLOW,
    )
    checkpoint_every: int = rules.whole(
        1,
        0,
        "Keep every k-th state of a trajectory for the gradient and recompute the others;"
        " 0 keeps the whole graph.",
        on_resume=True,
        needs=_DIFFFLOW,
    )
    activation_memory: str = rules.option(
        "off",
        "MiB of activations kept for the gradient instead of computing them again; auto takes half"
        " of the free memory. The numbers stay the same; perceptrons on the CPU need none.",
        "off, auto, or a whole number of MiB from 1 to 1048576",
        rules.is_memory,
        on_resume=True,
        needs=_DIFFFLOW,
    )
    cuda_graph: bool = rules.flag(
        False,
        "Replay each step on a GPU as one CUDA graph; networks must not draw. A CPU computes"
        " the same without a graph.",
        on_resume=True,
        needs=_DIFFFLOW,
    )

    process: str = rules.choice("vp", ("vp", "subvp", "ve"), "Linear diffusion.", needs=_DINOF)
    t_cutoff: float = rules.option(
        0.6,
        "Time at which the diffusion ends and the flow begins.",
        "a number above 0 up to 1",
        lambda value: 0 < value <= 1,
        needs=_DINOF,
    )
    loss_weight: str = rules.choice(
        "variance",
        ("variance", "likelihood"),
        "Weight of times in the score's loss: for samples or for likelihood.",
        needs=_DINOF,
    )
    beta_min: float = rules.positive(0.1, "Rate of noise at the data.", needs=("vp|subvp",))
    beta_max: float = rules.positive(20.0, "Rate of noise at time 1.", needs=("vp|subvp",))
    sigma_min: float = rules.positive(0.01, "Noise at the data.", needs=("ve",))
    sigma_max: float = rules.positive(50.0, "Noise at time 1.", needs=("ve",))
    flow_learning_rate: float = rules.positive(
        1e-3, "Highest learning rate of the flow; the score has its own.", needs=_DINOF
    )
    flow_clip_norm: float = rules.positive(
        1.0, "Longest gradient of the flow; the score has its own.", needs=_DINOF
    )

    timesteps: int = rules.whole(
        1000, 1, "Steps T of the diffusion.", high=rules.MAX_GRID, needs=_DDPM
    )
    noise_schedule: str = rules.choice(
        "linear", ("linear", "cosine"), "How the noise grows.", needs=_DDPM
    )

    rtol: float = rules.positive(1e-5, "Relative tolerance of the solver.", needs=_FFJORD)
    atol: float = rules.positive(1e-5, "Absolute tolerance of the solver.", needs=_FFJORD)

    flow: str = rules.choice(
        "auto",
        ("auto", "spline", "glow", "none"),
        "Normalizing flow: glow for images, else splines; none leaves dinof a Gaussian.",
        needs=_WITH_FLOW,
    )
    flow_transforms: int = rules.whole(
        3, 1, "Autoregressive transforms.", high=1024, needs=_SPLINE
    )
    flow_hidden: str = rules.option(
        "64,64",
        "Hidden layers of each transform.",
        "whole numbers such as 64,64",
        rules.is_whole_list,
        needs=_SPLINE,
    )
    flow_bins: int = rules.whole(8, 2, "Bins of a spline.", high=1024, needs=_SPLINE)
    glow_levels: int = rules.whole(
        0, 0, "Scales; each halves the sides; 0 takes as many as fit, up to 3.",
        high=16, needs=_GLOW,
    )  # fmt: skip
    glow_blocks: int = rules.whole(8, 1, "Couplings of a scale.", high=1024, needs=_GLOW)
    glow_hidden: int = rules.whole(64, 1, "Channels inside a coupling.", high=65536, needs=_GLOW)

    net: str = rules.choice(
        "auto", ("auto", "mlp", "unet"), "Network: a U-Net for images, else a perceptron.",
        needs=_WITH_NET,
    )  # fmt: skip
    time_scale: float = rules.positive(
        0.0,
        "Factor from time to the argument of the networks' sines, whose frequencies go up to 100"
        " in a perceptron and to 1 in a U-Net; 0 takes 0.4 for diffflow, 1 for other perceptrons,"
        " and 1000 at the last time of a U-Net.",
        needs=_WITH_NET,
        auto=True,
    )
    width: int = rules.whole(128, 1, "Units in a layer.", needs=_MLP)
    depth: int = rules.whole(3, 0, "Hidden layers after the first.", needs=_MLP)
    activation: str = rules.choice("gelu", tuple(ACTIVATIONS), "Activation.", needs=_MLP)
    unet_base: int = rules.whole(64, 1, "Channels at full size.", high=65536, needs=_UNET)
    unet_mults: str = rules.option(
        "1,2,2",
        "Factors of the channels, one for each size; each size is half of the one before.",
        "whole numbers such as 1,2,2",
        rules.is_whole_list,
        needs=_UNET,
    )
    unet_blocks: int = rules.whole(2, 1, "Residual blocks at each size.", high=64, needs=_UNET)
    unet_attention: str = rules.option(
        "16",
        "Sizes in pixels that have attention, such as 16,8.",
        "off, or whole numbers such as 16,8",
        lambda text: text == "off" or rules.is_whole_list(text),
        needs=_UNET,
    )
    dropout: float = rules.option(
        0.0,
        "Part of the activations that is dropped.",
        "a number from 0 up to but not including 1",
        lambda value: 0 <= value < 1,
        needs=_UNET,
    )
    drift_multiplier: float = rules.positive(
        1.0, "Factor of the drift's channels.", needs=("diffflow", "unet")
    )
    score_multiplier: float = rules.positive(
        1.0, "Factor of the score's channels.", needs=("diffflow", "unet")
    )

    autocast: str = rules.choice(
        "off", ("off", "bf16"), "Precision in which the networks compute."
    )
    device: str = rules.option(
        "auto",
        "Where to compute: auto takes a GPU if the build has kernels for it.",
        "auto, cpu, cuda or cuda:INDEX",
        rules.is_device,
        on_resume=True,
    )
    shard: bool = rules.flag(
        False,
        "Of several processes, give each a share of weights, moments and averages (FSDP2).",
        on_resume=True,
    )
    threads: int = rules.whole(0, 0, "CPU threads; 0 leaves the default.", on_resume=True)
    save_every: int = rules.whole(500, 1, "Steps between checkpoints.", on_resume=True)
    keep_checkpoints: int = rules.whole(3, 1, "How many checkpoints stay.", on_resume=True)
    async_save: bool = rules.flag(
        False, "Go on training while a checkpoint is written.", on_resume=True
    )
    on_nonfinite: str = rules.choice(
        "stop",
        ("stop", "skip"),
        "Where a loss or gradient isn't finite: stop and say where, or leave the step out and"
        " count it.",
        on_resume=True,
    )
    log_every: int = rules.whole(10, 1, "Steps between lines of metrics.jsonl.", on_resume=True)

    def __post_init__(self) -> None:
        types = field_types()
        for item in fields(self):
            value = rules.check_typed(item, getattr(self, item.name), types[item.name])
            object.__setattr__(self, item.name, value)
        self._check_pair("t_start", "t_end")
        self._check_pair("beta_min", "beta_max")
        self._check_pair("sigma_min", "sigma_max")
        self._check_unused()
        if self.cuda_graph and self.on_nonfinite == "skip":
            raise ValueError(
                "TrainConfig: on_nonfinite='skip': a step that is one CUDA graph can't be left"
                " out; leave it at 'stop', or cuda_graph at False"
            )

    def _check_pair(self, low: str, high: str) -> None:
        small, large = getattr(self, low), getattr(self, high)
        if large <= small:
            raise ValueError(f"TrainConfig: {high}={large!r}: expected more than {low}={small!r}")

    def _check_unused(self) -> None:
        """Refuses a value that nothing would read."""
        present = traits(self)
        for item in fields(self):
            rule, value = rules.field_rule(item), getattr(self, item.name)
            if value not in (item.default, rule.auto) and not rule.used_by(present):
                raise ValueError(
                    f"TrainConfig: {item.name}={value!r}: only for {rule.users}, and this run is"
                    f" {', '.join(sorted(present))}; leave it at {item.default!r}"
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Returns the configuration with these values, defaults elsewhere.

        Arguments:
            values: Field names and values.

        Raises:
            TypeError, ValueError: If a name is unknown or a value isn't allowed.
        """
        known = [item.name for item in fields(cls)]
        if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
            kind = type(values).__name__
            raise TypeError(f"TrainConfig: expected a mapping of names to values, got {kind}")
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise ValueError(f"TrainConfig: unknown key {name!r}; the nearest is {near!r}")
        if "data" not in values:
            raise ValueError("TrainConfig: data is missing: expected a name or a path")
        return cls(**values)

    @classmethod
    def load(cls, path: str | Path) -> TrainConfig:
        """Returns the configuration in a TOML file.

        Raises:
            OSError: If the file can't be read.
            ValueError: If it isn't TOML, has an unknown key or a value that isn't allowed.
        """
        values = cls.read(path)
        if "data" not in values:
            raise ValueError(f"{path}: data is missing: expected a name or a path")
        return cls(**values)

    @classmethod
    def read(cls, path: str | Path) -> dict[str, Any]:
        """Returns the values in a TOML file, which need not name the data.

        Raises:
            OSError: If the file can't be read.
            ValueError: If it isn't TOML, has an unknown key or a value that isn't allowed.
        """
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not a TOML file: {error}") from error
        try:
            cls.from_dict({"data": "-", **values})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
        return values

    def used(self) -> dict[str, Any]:
        """Returns the values that the run reads; the others are at their defaults.

        Runs are saved without the others, so that they don't depend on defaults of other models.
        """
        present = traits(self)
        names = [item.name for item in fields(self) if rules.field_rule(item).used_by(present)]
        return {name: getattr(self, name) for name in names}

    def to_toml(self) -> str:
        """Returns the TOML text from which `load` makes an equal configuration."""
        values = self.used().items()
        return "".join(f"{name} = {rules.toml_value(value)}\n" for name, value in values)


@functools.cache
def field_types() -> dict[str, type]:
    """Returns the type of each field of `TrainConfig`, by name."""
    return get_type_hints(TrainConfig)


def traits(config: TrainConfig) -> frozenset[str]:
    """Returns what decides which fields a run reads: its model and what that is made of.

    A network or flow that is chosen when the data are known counts as either.
    """
    found = {config.model}
    if config.model != "flow":
        found |= {"mlp", "unet"} if config.net == "auto" else {config.net}
    if config.model == "dinof":
        found.add(config.process)
    if config.model == "diffflow" and config.prior == "flow":
        found.add("prior=flow")
    if found & {"flow", "dinof", "prior=flow"}:
        found |= {"spline", "glow"} if config.flow == "auto" else {config.flow}
    return frozenset(found)
