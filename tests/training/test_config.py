"""The configuration: every rule, every message, and the file format."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, asdict, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffflow_ext.training import TrainConfig
from diffflow_ext.training.config.fields import MODELS, traits
from diffflow_ext.training.config.rules import field_rule, parse_progressive

BAD = [
    ("data", ""),
    ("data", "a\ud800"),
    ("data_seed", -1),
    ("limit", -1),
    ("image_size", -1),
    ("flip", "yes"),
    ("model", "gan"),
    ("seed", -1),
    ("seed", 2**63),
    ("steps", 0),
    ("steps", 2**31 + 1),
    ("batch_size", -1),
    ("learning_rate", -1e-3),
    ("learning_rate", math.nan),
    ("schedule", "linear"),
    ("warmup", -1),
    ("on_nonfinite", "ignore"),
    ("clip_norm", 0.0),
    ("clip_norm", math.inf),
    ("ema_decay", 1.0),
    ("ema_decay", -0.1),
    ("num_steps", 0),
    ("num_steps", 2**24 + 1),
    ("t_start", -1.0),
    ("t_end", 0.0),
    ("power", 0.0),
    ("grid", "even"),
    ("progressive", "5:10"),
    ("diffusion_start", -1.0),
    ("diffusion_end", -1.0),
    ("prior", "uniform"),
    ("checkpoint_every", -1),
    ("activation_memory", ""),
    ("activation_memory", "0"),
    ("activation_memory", "1GiB"),
    ("activation_memory", "1048577"),
    ("activation_memory", "٣"),
    ("process", "vpp"),
    ("t_cutoff", 0.0),
    ("t_cutoff", 1.5),
    ("loss_weight", "none"),
    ("beta_min", 0.0),
    ("beta_max", -1.0),
    ("sigma_min", 0.0),
    ("sigma_max", math.inf),
    ("flow_learning_rate", 0.0),
    ("flow_clip_norm", 0.0),
    ("timesteps", 0),
    ("noise_schedule", "quadratic"),
    ("rtol", 0.0),
    ("atol", -1.0),
    ("flow", "maf"),
    ("flow_transforms", 0),
    ("flow_hidden", "64,"),
    ("flow_hidden", "64,0"),
    ("flow_hidden", ""),
    ("flow_bins", 1),
    ("glow_levels", -1),
    ("glow_blocks", 0),
    ("glow_hidden", 0),
    ("net", "cnn"),
    ("time_scale", -1.0),
    ("width", 0),
    ("depth", -1),
    ("activation", "sine"),
    ("unet_base", 0),
    ("unet_mults", "1;2"),
    ("unet_mults", "1,99999"),
    ("unet_blocks", 0),
    ("unet_attention", "none"),
    ("dropout", 1.0),
    ("drift_multiplier", 0.0),
    ("score_multiplier", -0.5),
    ("autocast", "fp16"),
    ("device", "gpu"),
    ("device", "cuda:"),
    ("threads", -1),
    ("save_every", 0),
    ("keep_checkpoints", 0),
    ("log_every", 0),
]
WRONG_TYPE = [
    ("data", 3, "text"),
    ("steps", 10.0, "a whole number"),
    ("steps", True, "a whole number"),
    ("learning_rate", "fast", "a number"),
    ("learning_rate", True, "a number"),
    ("learn_diffusion", 1, "true or false"),
]


def make(**values: Any) -> TrainConfig:
    return TrainConfig.from_dict({"data": "moons", **values})


def reloaded(config: TrainConfig, directory: Path) -> TrainConfig:
    path = directory / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    return TrainConfig.load(path)


@pytest.mark.parametrize(("name", "value"), BAD)
def test_value_out_of_range_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        make(**{name: value})
    assert f"{name}={value!r}" in str(caught.value)


@pytest.mark.parametrize(("name", "value", "expected"), WRONG_TYPE)
def test_value_of_wrong_type_is_named(name: str, value: object, expected: str) -> None:
    with pytest.raises(TypeError) as caught:
        make(**{name: value})
    assert str(caught.value) == f"TrainConfig: {name}={value!r}: expected {expected}"


def test_each_rule_is_tested() -> None:
    free = {"learn_diffusion", "cuda_graph", "async_save", "shard"}
    assert {name for name, _ in BAD} | free == {item.name for item in fields(TrainConfig)}


def test_error_names_the_models_that_exist() -> None:
    expected = r"model='gan': expected one of diffflow, dinof, ddpm, ffjord, flow$"
    with pytest.raises(ValueError, match=expected):
        make(model="gan")


@pytest.mark.parametrize(
    ("model", "low", "high", "more"),
    [
        ("diffflow", "t_start", "t_end", {}),
        ("dinof", "beta_min", "beta_max", {}),
        ("dinof", "sigma_min", "sigma_max", {"process": "ve"}),
    ],
)
def test_ends_must_be_in_order(model: str, low: str, high: str, more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{high}=0\.5: expected more than {low}=0\.5"):
        make(model=model, **{low: 0.5, high: 0.5}, **more)


# A value other than the default, and one run that reads it.
USED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"num_steps": 9}, {"model": "diffflow"}),
    ({"prior": "flow"}, {"model": "diffflow"}),
    ({"t_cutoff": 0.3}, {"model": "dinof"}),
    ({"flow_learning_rate": 0.3}, {"model": "dinof"}),
    ({"beta_max": 15.0}, {"model": "dinof", "process": "subvp"}),
    ({"sigma_max": 15.0}, {"model": "dinof", "process": "ve"}),
    ({"timesteps": 50}, {"model": "ddpm"}),
    ({"rtol": 0.1}, {"model": "ffjord"}),
    ({"flow": "spline"}, {"model": "flow"}),
    ({"flow_bins": 4}, {"model": "flow", "flow": "spline"}),
    ({"flow_bins": 4}, {"model": "diffflow", "prior": "flow"}),
    ({"glow_levels": 4}, {"model": "dinof", "flow": "glow"}),
    ({"width": 4}, {"model": "ddpm", "net": "mlp"}),
    ({"unet_base": 4}, {"model": "ddpm", "net": "unet"}),
    ({"drift_multiplier": 0.5}, {"model": "diffflow", "net": "unet"}),
]
# One run that doesn't.
UNUSED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"num_steps": 9}, {"model": "ddpm"}),
    ({"prior": "flow"}, {"model": "dinof"}),
    ({"t_cutoff": 0.3}, {"model": "diffflow"}),
    ({"beta_max": 15.0}, {"model": "dinof", "process": "ve"}),
    ({"sigma_max": 15.0}, {"model": "dinof"}),
    ({"timesteps": 50}, {"model": "diffflow"}),
    ({"rtol": 0.1}, {"model": "flow"}),
    ({"flow": "spline"}, {"model": "diffflow"}),
    ({"flow_bins": 4}, {"model": "diffflow"}),
    ({"flow_bins": 4}, {"model": "flow", "flow": "glow"}),
    ({"glow_levels": 4}, {"model": "flow", "flow": "spline"}),
    ({"width": 4}, {"model": "flow"}),
    ({"width": 4}, {"model": "ddpm", "net": "unet"}),
    ({"unet_base": 4}, {"model": "ddpm", "net": "mlp"}),
    ({"drift_multiplier": 0.5}, {"model": "ddpm", "net": "unet"}),
]


@pytest.mark.parametrize(("field", "run"), USED)
def test_field_of_the_model_is_taken(field: dict[str, Any], run: dict[str, Any]) -> None:
    (name,) = field
    assert getattr(make(**run, **field), name) == field[name]


@pytest.mark.parametrize(("field", "run"), UNUSED)
def test_field_of_another_model_is_refused(field: dict[str, Any], run: dict[str, Any]) -> None:
    ((name, value),) = field.items()
    with pytest.raises(ValueError, match="only for") as caught:
        make(**run, **field)
    default = getattr(make(), name)
    assert f"TrainConfig: {name}={value!r}: only for " in str(caught.value)
    assert run["model"] in str(caught.value)
    assert str(caught.value).endswith(f"leave it at {default!r}")


def test_each_need_is_one_that_some_run_has() -> None:
    runs = [make(model=model) for model in MODELS]
    runs += [make(prior="flow"), make(model="dinof", process="ve")]
    runs += [make(model="dinof", process="subvp")]
    present = frozenset[str]().union(*map(traits, runs))
    for item in fields(TrainConfig):
        words = [word for need in field_rule(item).needs for word in need.split("|")]
        assert set(words) <= present, item.name


def test_config_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        make().steps = 3  # type: ignore[misc]


def test_each_field_has_help_and_allowed_values() -> None:
    for item in fields(TrainConfig):
        rule = field_rule(item)
        assert rule.help.endswith("."), item.name
        assert rule.allowed, item.name
        assert rule.accepts(getattr(make(), item.name)), item.name


def test_whole_number_serves_as_real_number() -> None:
    config = make(t_end=2)
    assert config.t_end == 2
    assert type(config.t_end) is float


@given(
    data=st.text(min_size=1).filter(lambda text: text.isprintable() or "\n" in text),
    seed=st.integers(0, 2**63 - 1),
    rate=st.floats(min_value=5e-324, allow_nan=False, allow_infinity=False),
)
def test_toml_round_trip_is_exact(
    tmp_path_factory: pytest.TempPathFactory, data: str, seed: int, rate: float
) -> None:
    config = make(data=data, seed=seed, learning_rate=rate, learn_diffusion=True)
    assert reloaded(config, tmp_path_factory.mktemp("toml")) == config


@pytest.mark.parametrize("text", ['"', "\\", "\n\r\t\b\f", "\x00\x1f\x7f", "ü𝄞 '''", "C:\\new"])
def test_toml_round_trip_of_odd_text(tmp_path: Path, text: str) -> None:
    assert reloaded(make(data=text), tmp_path).data == text


# Fields of runs that differ in kind; together they change every field.
KINDS: list[dict[str, Any]] = [
    {"model": "diffflow", "net": "mlp", "activation": "tanh", "schedule": "step", "grid": "power"},
    {"model": "diffflow", "net": "unet", "prior": "flow", "flow": "glow", "flip": "on"},
    {"model": "diffflow", "net": "unet", "prior": "flow", "flow": "spline", "autocast": "bf16"},
    {"model": "dinof", "loss_weight": "likelihood", "process": "subvp"},
    {"model": "dinof", "process": "ve"},
    {"model": "ddpm", "noise_schedule": "cosine", "on_nonfinite": "skip"},
    {"model": "ffjord"},
]
TEXTS = {
    "progressive": "0:5,10:20",
    "data": "rings",
    "device": "cuda:1",
    "activation_memory": "auto",
    "flow_hidden": "3",
    "unet_mults": "1",
    "unet_attention": "off",
}


def changed(kind: dict[str, Any]) -> TrainConfig:
    """Returns a run of this kind with all else that it reads changed."""
    present, values = traits(make(**kind)), dict(kind)
    for item in fields(TrainConfig):
        if item.name in values or not field_rule(item).used_by(present):
            continue
        default = getattr(make(), item.name)
        if isinstance(default, bool):
            values[item.name] = not default
        elif isinstance(default, (int, float)):
            small = {"ema_decay", "dropout", "t_cutoff"}
            values[item.name] = 0.5 if item.name in small else default + 1
        else:
            values[item.name] = TEXTS.get(item.name, default)
    return make(**values)


def test_file_holds_what_the_run_reads() -> None:
    names = {
        line.split(" = ")[0] for line in make(model="flow", flow="spline").to_toml().splitlines()
    }
    assert {"data", "steps", "flow", "flow_bins"} <= names
    assert not names & {"width", "num_steps", "timesteps", "glow_levels", "net"}


@pytest.mark.parametrize("kind", KINDS)
def test_each_field_survives_the_round_trip(tmp_path: Path, kind: dict[str, Any]) -> None:
    config = changed(kind)
    assert reloaded(config, tmp_path) == config


def test_the_round_trips_change_each_field() -> None:
    plain = asdict(make())
    for name, value in plain.items():
        assert any(asdict(changed(kind))[name] != value for kind in KINDS), name


@pytest.mark.parametrize(("key", "nearest"), [("batchsize", "batch_size"), ("step", "steps")])
def test_unknown_key_names_the_nearest(tmp_path: Path, key: str, nearest: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f"{key} = 3\n")
    with pytest.raises(ValueError) as caught:
        TrainConfig.load(path)
    assert (
        str(caught.value)
        == f"{path}: TrainConfig: unknown key {key!r}; the nearest is {nearest!r}"
    )


@pytest.mark.parametrize(
    "data", [b"steps =", b"\xff\xfe", b"a" * 9, b"x = " + b"[" * 100_000, b"seed = " + b"9" * 5000]
)
def test_file_that_is_not_toml(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"c\.toml: not a TOML file"):
        TrainConfig.load(path)


@pytest.mark.parametrize(
    "line", ["steps = 'many'", "steps = {a = 1}", "t_end = " + "9" * 400, "t_end = 0"]
)
def test_file_with_a_wrong_type_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f"data = 'moons'\n{line}")
    with pytest.raises(ValueError, match=r"c\.toml: TrainConfig: (steps|t_end)="):
        TrainConfig.load(path)


def test_data_are_required(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("steps = 3\n")
    with pytest.raises(ValueError, match=r"c\.toml: data is missing"):
        TrainConfig.load(path)


def test_progressive_schedule() -> None:
    assert parse_progressive("off") == parse_progressive("auto") == ()
    assert parse_progressive("0:10,2000:30") == ((0, 10), (2000, 30))


@pytest.mark.parametrize(
    "text", ["10", "0:10,", "1:10", "0:10,0:20", "0:9,5:3,4:2", "0:0", "0:-1"]
)
def test_progressive_schedule_of_another_form(text: str) -> None:
    with pytest.raises(ValueError, match="parse_progressive"):
        parse_progressive(text)
