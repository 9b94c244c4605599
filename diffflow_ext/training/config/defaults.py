"""Defaults that depend on the data, and whether a configuration suits them.

A run writes the values that it took into its config.toml, so that it stays what it was when
defaults change.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from .fields import TrainConfig, traits
from .rules import field_rule

__all__ = ["is_resolved", "resolve", "same_choice"]


LEARNING_RATES = {"mlp": 3e-3, "unet": 2e-4}


FLOW_LEARNING_RATE = 1e-3


BATCH_SIZES = {False: 256, True: 64}


DIFFUSIONS = {False: 0.2, True: 1.0}


# The time of DiffFlow ends at 0.05 by default, that of the others at 1. Velocities of continuous
# flows must be smooth in time, or solvers take tiny steps.
MLP_TIME_SCALES = {"diffflow": 0.4, "ffjord": 0.02}


UNET_TIME_SPAN = 1000.0


def resolve(config: TrainConfig, *, is_image: bool, flip: bool = False) -> TrainConfig:
    """Returns the configuration with a value in place of everything that is automatic.

    Arguments:
        config: The configuration.
        is_image: Whether the data are images.
        flip: Whether mirrored images belong to the data.

    Raises:
        ValueError: If a field doesn't suit the data.
    """
    _check_data(config, is_image)
    kinds = {"net": "unet" if is_image else "mlp", "flow": "glow" if is_image else "spline"}
    chosen = _filled(config, kinds)
    if is_image:
        chosen = _filled(chosen, {"flip": "on" if flip else "off"})
    values: dict[str, Any] = {
        "batch_size": BATCH_SIZES[is_image],
        "learning_rate": _learning_rate(chosen),
        "diffusion_start": DIFFUSIONS[is_image],
        "time_scale": _time_scale(chosen),
    }
    chosen = _filled(chosen, values)
    return _filled(chosen, {"diffusion_end": chosen.diffusion_start})


def is_resolved(config: TrainConfig) -> bool:
    """Whether nothing that the run reads is automatic any more, mirrors of images aside."""
    return not any(
        _is_auto(config, item.name) for item in fields(TrainConfig) if item.name != "flip"
    )


def same_choice(name: str, before: Any, after: Any) -> bool:
    """Whether a field asks for what it was resolved to."""
    (item,) = (item for item in fields(TrainConfig) if item.name == name)
    auto = field_rule(item).auto
    return before == after or (auto is not None and after == auto)


def _filled(config: TrainConfig, values: dict[str, Any]) -> TrainConfig:
    return replace(config, **{k: v for k, v in values.items() if _is_auto(config, k)})


def _is_auto(config: TrainConfig, name: str) -> bool:
    (item,) = (item for item in fields(TrainConfig) if item.name == name)
    rule = field_rule(item)
    automatic = rule.auto is not None and getattr(config, name) == rule.auto
    return automatic and rule.used_by(traits(config))


def _check_data(config: TrainConfig, is_image: bool) -> None:
    wrong: dict[str, Any] = {}
    if is_image and config.model == "ffjord":
        wrong["model"] = "vectors; for images take diffflow, dinof, ddpm or flow"
    if is_image and config.flow == "spline":
        wrong["flow"] = "glow for images"
    if config.flow == "none" and config.model != "dinof":
        wrong["flow"] = "a flow; none is for dinof alone"
    if not is_image and config.flow == "glow":
        wrong["flow"] = "spline for vectors"
    if not is_image and config.net == "unet":
        wrong["net"] = "mlp for vectors"
    if not is_image and config.flip == "on":
        wrong["flip"] = "off: these data are not images"
    for name, expected in wrong.items():
        raise ValueError(f"train: {name}={getattr(config, name)!r}: expected {expected}")


def _learning_rate(config: TrainConfig) -> float:
    return FLOW_LEARNING_RATE if config.model == "flow" else LEARNING_RATES.get(config.net, 1.0)


def _time_scale(config: TrainConfig) -> float:
    if config.net == "unet":
        return UNET_TIME_SPAN / (config.t_end if config.model == "diffflow" else 1.0)
    return MLP_TIME_SCALES.get(config.model, 1.0)
