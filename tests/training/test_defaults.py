"""Defaults that depend on the data, and configurations that don't suit them."""

from __future__ import annotations

from typing import Any

import pytest

from diffflow_ext.training import DatasetRecord, configure
from diffflow_ext.training.config.defaults import changed_fields, resolve
from diffflow_ext.training.config.fields import BRANCHES, CONFIGS
from diffflow_ext.training.config.files import from_record, to_record
from diffflow_ext.training.loop.starting import check_same_run

CHOSEN: list[tuple[dict[str, Any], bool, dict[str, Any]]] = [
    (
        {},
        False,
        {
            "net": "mlp", "batch_size": 256, "learning_rate": 3e-3, "time_scale": 0.4,
            "diffusion_start": 0.2, "diffusion_end": 0.2, "flip": None, "flow": None, "width": 128,
            "depth": 3, "activation": "gelu", "unet_base": None, "glow_blocks": None,
            "drift_scale": 5.0, "score_scale": 22.360679774997898, "prediction": "score",
            "power": 0.9,
        },
    ),
    (
        {},
        True,
        {
            "net": "unet", "batch_size": 64, "learning_rate": 2e-4, "time_scale": 20_000.0,
            "diffusion_start": 3.0, "diffusion_end": 3.0, "flip": "off", "flow": None,
            "width": None, "unet_base": 64, "unet_mults": "1,2,2", "unet_blocks": 2,
            "unet_attention": "16",
            "dropout": 0.0, "drift_multiplier": 1.0, "score_multiplier": 1.0,
            "drift_scale": 20.0, "score_scale": 1.0, "prediction": "noise", "power": 0.7,
        },
    ),
    (
        {"diffusion_start": 0.7, "t_end": 0.5},
        True,
        {
            "diffusion_end": 0.7, "time_scale": 2000.0, "drift_scale": 2.0, "score_scale": 1.0,
        },
    ),
    ({"prediction": "score"}, True, {"score_scale": 1 / (3 * 0.05**0.5)}),
    ({"prediction": "noise"}, False, {"score_scale": 1.0}),
    # T is the length of the interval, and g that at the data.
    (
        {"t_start": 1.0, "t_end": 5.0, "diffusion_start": 0.5, "diffusion_end": 3.0},
        False,
        {"drift_scale": 0.0625, "score_scale": 1.0},
    ),
    ({"drift_scale": 3.0}, False, {"drift_scale": 3.0, "score_scale": 22.360679774997898}),
    (
        {"model": "nfdm"},
        False,
        {
            "net": "mlp", "time_functions": 2, "forward_multiplier": 0.5, "time_scale": 1.0,
            "learning_rate": 2e-3, "log_snr_start": 9.2,
        },
    ),
    (
        {"model": "nfdm"},
        True,
        {"net": "unet", "time_functions": 2, "time_scale": 1000.0, "log_snr_start": 12.0},
    ),
    (
        {"model": "nfdm", "forward": "linear"},
        False,
        {"time_functions": None, "forward_multiplier": None},
    ),
    ({"model": "ddpm"}, True, {"time_scale": 1000.0, "batch_size": 64}),
    ({"model": "ddpm"}, False, {"time_scale": 1.0, "learning_rate": 3e-3}),
    ({"model": "ddpm", "net": "mlp"}, True, {"time_scale": 1.0, "learning_rate": 3e-3}),
    ({"model": "ffjord"}, False, {"time_scale": 0.02}),
    ({"model": "flow"}, False, {"flow": "spline", "learning_rate": 1e-3, "flow_bins": 8}),
    ({"model": "dinof"}, True, {"flow": "glow", "net": "unet", "beta_min": 0.1, "beta_max": 20.0}),
    ({"model": "dinof", "process": "ve"}, False, {"sigma_min": 0.01, "beta_min": None}),
    ({"prior": "flow"}, True, {"flow": "glow"}),
    (
        {"batch_size": 5, "learning_rate": 0.5, "time_scale": 7.0, "flip": "on"},
        True,
        {"batch_size": 5, "learning_rate": 0.5, "time_scale": 7.0, "flip": "on"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("given", "is_image", "expected"), CHOSEN)
def test_chosen_values(given: dict[str, Any], is_image: bool, expected: dict[str, Any]) -> None:
    made = resolve(configure(data="x", **given), is_image=is_image).values()
    for name, value in expected.items():
        assert made[name] == (pytest.approx(value) if isinstance(value, float) else value), name


@pytest.mark.parametrize("is_image", [False, True])
@pytest.mark.parametrize("model", CONFIGS)
def test_what_is_chosen_stays(model: str, is_image: bool) -> None:
    config = configure(model, data="x")
    if model == "ffjord" and is_image:
        return
    made = resolve(config, is_image=is_image, flip=True)
    values = made.values()
    assert values["flip"] == ("on" if is_image else None)
    assert resolve(made, is_image=is_image) == made
    assert from_record(to_record(made)) == made
    # What is still None isn't read, or means itself.
    read = {n for c, b in BRANCHES.items() for n in b.get(str(values.get(c)), {})}
    empty = {name for name, value in values.items() if value is None}
    assert empty & read <= {"glow_levels"}


@pytest.mark.parametrize(
    ("given", "is_image", "message"),
    [
        ({"model": "ffjord"}, True, "model='ffjord': expected vectors; for images take"),
        ({"model": "flow", "flow": "spline"}, True, "flow='spline': expected glow for images"),
        ({"model": "flow", "flow": "glow"}, False, "flow='glow': expected spline for vectors"),
        ({"net": "unet"}, False, "net='unet': expected mlp for vectors"),
        ({"flip": "on"}, False, "flip='on': expected off: these data are not images"),
        ({"width": 9}, True, "width=9: only for net=mlp, and this run has net=unet"),
        ({"unet_base": 8}, False, "unet_base=8: only for net=unet, and this run has net=mlp"),
        ({"model": "dinof", "flow_bins": 4}, True, "flow_bins=4: only for flow=spline"),
        (
            {"model": "dinof", "beta_min": 30.0},
            False,
            "beta_max=20.0: expected more than beta_min",
        ),
    ],
)
def test_configuration_that_does_not_suit(
    given: dict[str, Any], is_image: bool, message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        resolve(configure(data="x", **given), is_image=is_image)
    assert message in str(caught.value)


def test_none_is_the_choice_that_was_made() -> None:
    before = resolve(configure(data="x"), is_image=False)
    check_same_run(before, configure(data="x"))
    check_same_run(before, configure(data="x", net="mlp", learning_rate=3e-3))
    check_same_run(before, configure(data="x", steps=7, device="cpu", threads=2))
    for name, value in {"learning_rate": 2e-3, "width": 9, "seed": 1}.items():
        with pytest.raises(ValueError, match=f"{name}={value}: the run to resume has"):
            check_same_run(before, configure(data="x", **{name: value}))
    with pytest.raises(ValueError, match="model='ddpm': the run to resume has 'diffflow'"):
        check_same_run(before, configure("ddpm", data="x"))


def test_runs_of_earlier_versions_are_understood() -> None:
    """What their checkpoints said of data and configuration."""
    record = DatasetRecord.from_meta(
        {
            "name": "moons", "columns": ["x1", "x2"], "mean": [0.0, 0.0], "std": [1.0, 1.0],
            "log_abs_scale": 0.0, "fingerprint": "0",
        }
    )  # fmt: skip
    assert (record.event_shape, record.is_image, record.dim) == ((2,), False, 2)
    kept = {"data": "moons", "batch_size": 256, "learning_rate": 3e-3, "time_scale": 0.4,
            "diffusion_start": 0.2, "diffusion_end": 0.3, "width": 64}  # fmt: skip
    automatic = {
        "limit": 0,
        "image_size": 0,
        "flip": "auto",
        "flow": "auto",
        "threads": 0,
        "cuda_graph": False,
    }
    gone = {"activation_memory": "off", "kept_graphs": 0}
    made = resolve(from_record({**kept, **automatic, **gone}), is_image=record.is_image)
    assert {name: made.values()[name] for name in kept} == kept
    assert made.network.net == "mlp"
    assert made.data.limit is None
    assert made.run.cuda_graph == "off"
    # Networks had no factor; a run that has one keeps it, and other models have none.
    assert (made.network.drift_scale, made.network.score_scale) == (1.0, 1.0)
    scaled = from_record({"data": "x", "drift_scale": 5.0})
    assert (scaled.network.drift_scale, scaled.network.score_scale) == (5.0, 1.0)
    assert "drift_scale" not in from_record({"data": "x", "model": "dinof"}).values()
    assert from_record({"data": "x", "cuda_graph": True}).run.cuda_graph == "on"
    flow = from_record({"data": "x", "model": "flow", "flow": "glow", "glow_levels": 0})
    assert (flow.network.flow, flow.network.glow_levels) == ("glow", None)


@pytest.mark.parametrize(
    ("model", "own", "changed"),
    [
        ("diffflow", {"data": "moons"}, {}),
        ("diffflow", {"batch_size": 256, "learning_rate": 1e-3}, {"learning_rate": 3e-3}),
        # Scales follow from the time and g: what follows is no choice of the run.
        ("diffflow", {"t_end": 0.5, "diffusion_start": 0.7}, {"t_end": 0.05,
                                                              "diffusion_start": 0.2}),
        ("diffflow", {"diffusion_end": 0.7}, {"diffusion_end": 0.2}),
        ("diffflow", {"threads": 1, "drop_columns": "a"}, {"threads": None,
                                                           "drop_columns": None}),
        # The field of a choice beside the choice itself, which it needs.
        ("dinof", {"process": "ve", "sigma_max": 10.0}, {"process": "vp", "sigma_max": 50.0}),
        ("diffflow", {"prior": "flow"}, {"prior": "normal"}),
        ("ddpm", {"condition": "a", "label_dropout": 0.2}, {"condition": None,
                                                            "label_dropout": 0.1}),
    ],
)  # fmt: skip
def test_fields_that_are_not_as_by_default(
    model: str, own: dict[str, Any], changed: dict[str, Any]
) -> None:
    config = resolve(configure(model, **own), is_image=False)
    assert changed_fields(config, is_image=False) == changed


@pytest.mark.parametrize("model", CONFIGS)
@pytest.mark.parametrize("is_image", [False, True])
def test_no_field_of_a_default_run_is_changed(model: str, is_image: bool) -> None:
    if model == "ffjord" and is_image:
        return  # It has none.
    for flip in {False, is_image}:
        config = resolve(configure(model), is_image=is_image, flip=flip)
        assert changed_fields(config, is_image=is_image, flip=flip) == {}
        assert changed_fields(config.replaced(seed=3), is_image=is_image, flip=flip) == {"seed": 0}
