"""Defaults that depend on the data, and configurations that don't suit them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from diffflow_ext.training import DatasetRecord, TrainConfig
from diffflow_ext.training.config.defaults import is_resolved, resolve, same_choice
from diffflow_ext.training.config.fields import MODELS

CHOSEN: list[tuple[dict[str, Any], bool, dict[str, Any]]] = [
    (
        {},
        False,
        {
            "net": "mlp", "batch_size": 256, "learning_rate": 3e-3, "time_scale": 0.4,
            "diffusion_start": 0.2, "diffusion_end": 0.2, "flip": "auto", "flow": "auto",
        },
    ),
    (
        {},
        True,
        {
            "net": "unet", "batch_size": 64, "learning_rate": 2e-4, "time_scale": 20_000.0,
            "diffusion_start": 1.0, "diffusion_end": 1.0, "flip": "off", "flow": "auto",
        },
    ),
    ({"diffusion_start": 0.7, "t_end": 0.5}, True, {"diffusion_end": 0.7, "time_scale": 2000.0}),
    ({"model": "ddpm"}, True, {"time_scale": 1000.0, "diffusion_start": 0.0}),
    ({"model": "ddpm"}, False, {"time_scale": 1.0, "learning_rate": 3e-3}),
    ({"model": "ddpm", "net": "mlp"}, True, {"time_scale": 1.0, "learning_rate": 3e-3}),
    ({"model": "ffjord"}, False, {"time_scale": 0.02}),
    ({"model": "flow"}, False, {"flow": "spline", "learning_rate": 1e-3, "net": "auto"}),
    ({"model": "dinof"}, True, {"flow": "glow", "net": "unet"}),
    ({"prior": "flow"}, True, {"flow": "glow"}),
    (
        {"batch_size": 5, "learning_rate": 0.5, "time_scale": 7.0, "flip": "on"},
        True,
        {"batch_size": 5, "learning_rate": 0.5, "time_scale": 7.0, "flip": "on"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("given", "is_image", "expected"), CHOSEN)
def test_chosen_values(given: dict[str, Any], is_image: bool, expected: dict[str, Any]) -> None:
    made = asdict(resolve(TrainConfig(data="x", **given), is_image=is_image))
    assert {name: made[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("is_image", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_what_is_chosen_stays(model: str, is_image: bool) -> None:
    config = TrainConfig(data="x", model=model)
    assert not is_resolved(config)
    if model == "ffjord" and is_image:
        return
    made = resolve(config, is_image=is_image, flip=True)
    assert is_resolved(made)
    assert made.flip == ("on" if is_image else "auto")
    assert resolve(made, is_image=is_image) == made
    assert TrainConfig.from_dict(asdict(made)) == made


@pytest.mark.parametrize(
    ("given", "is_image", "message"),
    [
        ({"model": "ffjord"}, True, "model='ffjord': expected vectors; for images take"),
        ({"model": "flow", "flow": "spline"}, True, "flow='spline': expected glow for images"),
        ({"model": "flow", "flow": "glow"}, False, "flow='glow': expected spline for vectors"),
        ({"model": "flow", "flow": "none"}, False, "flow='none': expected a flow"),
        ({"prior": "flow", "flow": "none"}, False, "flow='none': expected a flow"),
        ({"net": "unet"}, False, "net='unet': expected mlp for vectors"),
        ({"flip": "on"}, False, "flip='on': expected off: these data are not images"),
        ({"width": 9}, True, "width=9: only for mlp, and this run is diffflow, unet"),
        ({"unet_base": 8}, False, "unet_base=8: only for unet, and this run is diffflow, mlp"),
        ({"model": "dinof", "flow_bins": 4}, True, "flow_bins=4: only for spline"),
    ],
)
def test_configuration_that_does_not_suit(
    given: dict[str, Any], is_image: bool, message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        resolve(TrainConfig(data="x", **given), is_image=is_image)
    assert message in str(caught.value)


def test_automatic_value_is_the_choice_that_was_made() -> None:
    assert same_choice("learning_rate", 3e-3, 0.0)
    assert same_choice("net", "mlp", "auto")
    assert same_choice("steps", 5, 5)
    assert not same_choice("learning_rate", 3e-3, 2e-3)
    assert not same_choice("learning_rate", 0.0, 3e-3)
    assert not same_choice("steps", 5, 0)


def test_runs_of_the_first_release_are_understood() -> None:
    """What its checkpoints said of data and configuration."""
    record = DatasetRecord.from_meta(
        {
            "name": "moons", "columns": ["x1", "x2"], "mean": [0.0, 0.0], "std": [1.0, 1.0],
            "log_abs_scale": 0.0, "fingerprint": "0",
        }
    )  # fmt: skip
    assert (record.event_shape, record.is_image, record.dim) == ((2,), False, 2)
    old = {"data": "moons", "batch_size": 256, "learning_rate": 3e-3, "time_scale": 0.4,
           "diffusion_start": 0.2, "diffusion_end": 0.3, "width": 64}  # fmt: skip
    made = resolve(TrainConfig.from_dict(old), is_image=record.is_image)
    assert {name: getattr(made, name) for name in old} == old
    assert made.net == "mlp"
