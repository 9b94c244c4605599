"""Configurations of training runs: one class for each model, made of sections.

The names of fields are unique across the sections of a model. They are the names of flags and of
keys in TOML files.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

from diffflow_ext.data.kinds import columns_text, parse_columns
from diffflow_ext.functional.checks import in_words

from .rules import Section
from .sections import (
    Data,
    DDPMModel,
    DiffFlowModel,
    DiffFlowNetwork,
    DiffFlowRun,
    DiNofModel,
    DiNofNetwork,
    DiNofOptimiser,
    FFJORDModel,
    FFJORDNetwork,
    FlowNetwork,
    FlowOptimiser,
    Network,
    NFDMModel,
    NFDMNetwork,
    Optimiser,
    Run,
)

C = TypeVar("C", bound="Config")
#: Words of other programs for some fields.
ELSEWHERE = {
    "lr": "learning_rate", "epochs": "steps", "iterations": "steps", "batch": "batch_size",
    "gpu": "device", "cuda": "device",
}  # fmt: skip
SECTIONS = ("data", "model", "network", "optimiser", "run")
#: Fields that may change when a run is resumed.
MAY_CHANGE = (
    "data", "steps", "on_nonfinite", "device", "shard", "threads", "save_every",
    "keep_checkpoints", "async_save", "log_every", "log_to", "checkpoint_every", "cuda_graph",
    "engine", "scores_per_call",
)  # fmt: skip
_BETAS = {"beta_min": 0.1, "beta_max": 20.0}
#: For each value of a choice, the fields that only such runs read, with their defaults. Choices
#: that depend on another one come after it.
BRANCHES: dict[str, dict[str, dict[str, Any]]] = {
    "process": {"vp": _BETAS, "subvp": _BETAS, "ve": {"sigma_min": 0.01, "sigma_max": 50.0}},
    "net": {
        "mlp": {"width": 128, "depth": 3, "activation": "gelu"},
        "unet": {
            "unet_base": 64, "unet_mults": "1,2,2", "unet_blocks": 2, "unet_attention": "16",
            "dropout": 0.0, "drift_multiplier": 1.0, "score_multiplier": 1.0,
        },
    },
    "forward": {"learned": {"time_functions": 2, "forward_multiplier": 0.5}, "linear": {}},
    "prior": {"normal": {}, "flow": {"flow": None}},
    "flow": {
        "spline": {"flow_transforms": 3, "flow_hidden": "64,64", "flow_bins": 8},
        "glow": {"glow_levels": None, "glow_blocks": 8, "glow_hidden": 64},
        "none": {},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """The base of all configurations: sections of fields."""

    name: ClassVar[str]
    data: Data = Data()
    model: Section = Section()
    network: Section = Section()
    optimiser: Optimiser = Optimiser()
    run: Run = Run()

    def __post_init__(self) -> None:
        _check_choices(self)

    def __repr__(self) -> str:
        """Returns the call that makes it, with the fields that aren't as by default."""
        plain = type(self)().values()
        own = {name: value for name, value in self.values().items() if value != plain[name]}
        fields = "".join(f", {name}={value!r}" for name, value in own.items())
        return f"configure({self.name!r}{fields})"

    def replaced(self: C, **values: Any) -> C:
        """Returns the configuration with other values of some fields; errors as `configure`."""
        sections = {
            item.name: section for section in SECTIONS for item in fields(getattr(self, section))
        }
        if "columns" in values:
            values["columns"] = _as_text(values["columns"])
        changes: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            if name not in sections:
                raise ValueError(f"train: {name}: {no_such_field(self, name)}")
            changes.setdefault(sections[name], {})[name] = value
        return replace(
            self, **{name: replace(getattr(self, name), **some) for name, some in changes.items()}
        )

    def values(self) -> dict[str, Any]:
        """Returns the fields and values of all sections."""
        sections = [getattr(self, section) for section in SECTIONS]
        return {i.name: getattr(section, i.name) for section in sections for i in fields(section)}


@dataclass(frozen=True, repr=False)
class DiffFlowConfig(Config):
    """DiffFlow: drift and score of two SDEs, trained on one path loss."""

    name: ClassVar[str] = "diffflow"
    model: DiffFlowModel = DiffFlowModel()
    network: DiffFlowNetwork = DiffFlowNetwork()
    run: DiffFlowRun = DiffFlowRun()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.run.cuda_graph == "on" and self.optimiser.on_nonfinite == "skip":
            raise ValueError(
                "train: on_nonfinite='skip': a step that is one CUDA graph can't be left out;"
                " leave it at 'stop', or cuda_graph at 'off'"
            )
        if self.run.cuda_graph == "on" and self.data.condition is not None:
            raise ValueError(
                "train: cuda_graph='on': a step that is one CUDA graph has no condition; leave"
                " cuda_graph out, or condition"
            )


@dataclass(frozen=True, repr=False)
class DiNofConfig(Config):
    """DiNof: a diffusion up to a time, and a normalizing flow from there on."""

    name: ClassVar[str] = "dinof"
    model: DiNofModel = DiNofModel()
    network: DiNofNetwork = DiNofNetwork()
    optimiser: DiNofOptimiser = DiNofOptimiser()


@dataclass(frozen=True, repr=False)
class DDPMConfig(Config):
    """DDPM: a network that predicts the noise of a fixed diffusion."""

    name: ClassVar[str] = "ddpm"
    model: DDPMModel = DDPMModel()
    network: Network = Network()


@dataclass(frozen=True, repr=False)
class NFDMConfig(Config):
    """NFDM: a diffusion with a learned forward process, trained without simulation."""

    name: ClassVar[str] = "nfdm"
    model: NFDMModel = NFDMModel()
    network: NFDMNetwork = NFDMNetwork()


@dataclass(frozen=True, repr=False)
class FFJORDConfig(Config):
    """FFJORD: a continuous normalizing flow, of vectors alone."""

    name: ClassVar[str] = "ffjord"
    model: FFJORDModel = FFJORDModel()
    network: FFJORDNetwork = FFJORDNetwork()


@dataclass(frozen=True, repr=False)
class FlowConfig(Config):
    """A normalizing flow: splines, or Glow for images."""

    name: ClassVar[str] = "flow"
    network: FlowNetwork = FlowNetwork()
    optimiser: FlowOptimiser = FlowOptimiser()


CONFIGS: dict[str, type[Config]] = {
    kind.name: kind
    for kind in (DiffFlowConfig, DiNofConfig, NFDMConfig, DDPMConfig, FFJORDConfig, FlowConfig)
}


def configure(model: str = "diffflow", **values: Any) -> Any:
    """Returns the configuration of a model, from values of fields by their names.

    `columns` may be a mapping of names to kinds too.

    Raises:
        ValueError: If there is no such model or field, or a value isn't allowed.
        TypeError: If a value has the wrong type.
    """
    if not isinstance(model, str) or model not in CONFIGS:
        near = nearest_model(model) if isinstance(model, str) else ""
        hint = f"; did you mean {near!r}?" if near else ""
        raise ValueError(
            f"train: model={in_words(model)}: expected one of {', '.join(CONFIGS)}{hint}"
        )
    return CONFIGS[model]().replaced(**values)


def _as_text(columns: Any) -> Any:
    """Returns kinds of columns by their names as the text of a field, None for no kinds."""
    if not isinstance(columns, Mapping):
        return columns
    text = columns_text(columns)
    parse_columns(text)
    return text or None


def nearest_model(word: str) -> str:
    """Returns the model with a name like a word, in any case of letters; "" if there is none."""
    return next(iter(difflib.get_close_matches(word.lower(), CONFIGS, n=1)), "")


def _check_choices(config: Config) -> None:
    """Refuses values of fields that the run doesn't read because of its choices so far."""
    values = config.values()
    unread = set[str]()
    for name, branches in BRANCHES.items():
        choice = values.get(name)
        if choice is None and name not in unread:
            continue
        present = f"{name}={choice}" if choice else f"no {name}"
        read = branches[choice].keys() if choice else set[str]()
        readers = {field for fields in branches.values() for field in fields}
        unread |= (readers & values.keys()) - read
        for field in sorted(unread & readers):
            if values[field] is not None:
                owners = [f"{name}={branch}" for branch in branches if field in branches[branch]]
                raise ValueError(
                    f"train: {field}={values[field]!r}: only for {' or '.join(owners)}, and this"
                    f" run has {present}; leave {field} out"
                )


def no_such_field(config: Config, name: str, others: Iterable[str] = ()) -> str:
    """Returns a text about an unknown field: the models that have it, or a similar name."""
    owners = [kind.name for kind in CONFIGS.values() if name in kind().values()]
    if owners:
        models = "model" if len(owners) == 1 else "models"
        return f"only for the {models} {_listed(owners)}, and this run trains {config.name}"
    near = difflib.get_close_matches(name, [*config.values(), *others], n=1)
    meant = ELSEWHERE.get(name) or next(iter(near), None)
    hint = f"did you mean {meant!r}?" if meant else f"see diffflow train {config.name} --help"
    return f"{config.name} has no such field; {hint}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
