"""Defaults that depend on the data, and checks that a configuration suits them.

A run writes the resolved values into its config.toml, so changes of defaults do not affect it.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

from .fields import BRANCHES, MAY_CHANGE, Config, DiffFlowConfig
from .sections import Network

C = TypeVar("C", bound=Config)


def resolve(config: C, *, is_image: bool, flip: bool = False) -> C:
    """Returns the configuration with a value for every field that the run reads.

    `flip` says whether training may mirror the images of the set. A ValueError says which field
    doesn't suit the data or the other fields.
    """
    _check_data(config, is_image)
    _check_condition(config, is_image)
    config = _filled(config, {"net": "unet" if is_image else "mlp"})
    if config.values().get("prior") != "normal":
        config = _filled(config, {"flow": "glow" if is_image else "spline"})
    for name, branches in BRANCHES.items():
        config = _filled(config, branches.get(str(config.values().get(name)), {}))
    values = config.values()
    unet = values.get("net") == "unet"
    chosen = {
        "batch_size": 64 if is_image else 256,
        "learning_rate": 2e-4 if unet else 2e-3 if config.name == "nfdm" else 3e-3,
        "diffusion_start": 3.0 if is_image else 0.2,
        "power": 0.7 if is_image else 0.9,
        "log_snr_start": 12.0 if is_image else 9.2,
    }
    if config.data.condition is not None:
        chosen["label_dropout"] = 0.1
    if is_image:
        chosen["flip"] = "on" if flip else "off"
    if unet:
        chosen["time_scale"] = 1000.0 / values.get("t_end", 1.0)
    elif isinstance(config.network, Network):
        chosen["time_scale"] = config.network.perceptron_time_scale
    config = _filled(config, chosen)
    return _filled(config, _natural_scales(config))


def completed_from(config: C, before: Config) -> C:
    """Returns the configuration with the values of the run to resume where it has none.

    They may be defaults of earlier versions, which a run keeps.
    """
    kept = {name: v for name, v in before.values().items() if name not in MAY_CHANGE}
    return _filled(config, kept)


def changed_fields(config: Config, *, is_image: bool, flip: bool = False) -> dict[str, Any]:
    """Returns the fields that a run has otherwise than by default, with what they would be.

    A field is compared with what `resolve` takes for it where it's left out and all others are as
    they are; a choice that other fields of the run need, with the default of its model. The data
    have no default.

    Arguments:
        config: The configuration of a run, as `resolve` returns it.
        is_image: Whether its data are images.
        flip: As for `resolve`.
    """
    plain, found = type(config)().values(), dict[str, Any]()
    for name, value in config.values().items():
        usual = plain[name]
        if name == "data" or value is None or value == usual:
            continue
        try:
            left_out = resolve(config.replaced(**{name: usual}), is_image=is_image, flip=flip)
            usual = left_out.values()[name]
        except ValueError:  # Other fields of the run are only for this choice.
            pass
        if value != usual:
            found[name] = usual
    return found


def _natural_scales(config: Config) -> dict[str, Any]:
    """Returns what depends on T and g: the sizes of DiffFlow's drift and score.

    The drift moves states by about one in the time T, and a perceptron's last layer starts with
    numbers of about 1/4, a U-Net's with 0. The score of noise of variance g^2 T has the size of 1
    over its standard deviation.
    """
    if not isinstance(config, DiffFlowConfig):
        return {}
    model, unet = config.model, config.network.net == "unet"
    duration, g = model.t_end - model.t_start, model.diffusion_start
    assert g is not None
    prediction = config.network.prediction or ("noise" if unet else "score")
    scales = {
        "drift_scale": (1.0 if unet else 0.25) / duration,
        "score_scale": 1.0 if prediction == "noise" else 1.0 / (g * math.sqrt(duration)),
    }
    return {"diffusion_end": g, "prediction": prediction, **scales}


def _filled(config: C, values: dict[str, Any]) -> C:
    present = config.values()
    empty = {name: value for name, value in values.items() if present.get(name, 0) is None}
    return config.replaced(**empty)


def _check_data(config: Config, is_image: bool) -> None:
    values, wrong = config.values(), dict[str, str]()
    if is_image and config.name == "ffjord":
        raise ValueError(
            "train: model='ffjord': expected vectors; for images take diffflow, dinof, nfdm,"
            " ddpm or flow"
        )
    if is_image and values.get("flow") == "spline":
        wrong["flow"] = "glow for images"
    if not is_image and values.get("flow") == "glow":
        wrong["flow"] = "spline for vectors"
    if not is_image and values.get("net") == "unet":
        wrong["net"] = "mlp for vectors"
    if not is_image and values.get("flip") == "on":
        wrong["flip"] = "off: these data are not images"
    for name, expected in wrong.items():
        raise ValueError(f"train: {name}={values[name]!r}: expected {expected}")


def _check_condition(config: Config, is_image: bool) -> None:
    """Refuses a condition where a part of the model can't have it."""
    values, condition = config.values(), config.data.condition
    if condition is None:
        if values["label_dropout"] is not None:
            raise ValueError(
                f"train: label_dropout={values['label_dropout']!r}: only for runs with a"
                " condition, and this run has none; leave label_dropout out"
            )
        return
    if config.name in ("ffjord", "flow"):
        raise ValueError(
            f"train: condition={condition!r}: the flows of model={config.name!r} take no context;"
            " for conditions take diffflow, dinof, nfdm or ddpm"
        )
    has_flow = values.get("prior", "flow") == "flow" and "flow" in values
    if is_image and has_flow and values["flow"] != "none":
        mend = "prior='normal'" if "prior" in values else "flow='none'"
        raise ValueError(
            f"train: condition={condition!r}: the flow of images, Glow, takes no context, and the"
            f" model would not be that of its condition; take {mend}, or nfdm or ddpm"
        )
