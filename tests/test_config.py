"""The configuration: every rule, every message, and the file format."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, asdict, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffflow_ext.training.config import TrainConfig, field_rule, field_types, parse_progressive

BAD = [
    ("data", ""),
    ("data", "a\ud800"),
    ("data_seed", -1),
    ("model", "dinof"),
    ("model", "ddpm"),
    ("seed", -1),
    ("seed", 2**63),
    ("steps", 0),
    ("steps", 2**31 + 1),
    ("batch_size", 0),
    ("learning_rate", 0.0),
    ("learning_rate", math.nan),
    ("schedule", "linear"),
    ("warmup", -1),
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
    ("diffusion_start", 0.0),
    ("diffusion_end", -1.0),
    ("width", 0),
    ("depth", -1),
    ("activation", "sine"),
    ("time_scale", 0.0),
    ("autocast", "fp16"),
    ("device", "gpu"),
    ("device", "cuda:"),
    ("threads", -1),
    ("checkpoint_every", -1),
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
    free = {"learn_diffusion"}
    assert {name for name, _ in BAD} | free == {item.name for item in fields(TrainConfig)}


def test_error_names_the_models_that_exist() -> None:
    with pytest.raises(ValueError, match=r"model='ddpm': expected one of diffflow$"):
        make(model="ddpm")


def test_time_must_run_forward() -> None:
    with pytest.raises(ValueError, match=r"t_end=0\.5: expected more than t_start=0\.5"):
        make(t_start=0.5, t_end=0.5)


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


def test_each_field_survives_the_round_trip(tmp_path: Path) -> None:
    changed: dict[str, Any] = {"progressive": "0:5,10:20", "data": "rings", "device": "cuda:1"}
    choices = {"schedule": "step", "grid": "power", "activation": "tanh", "autocast": "bf16"}
    for name, kind in field_types().items():
        if kind is not str:
            default = asdict(make())[name]
            changed[name] = not default if kind is bool else default + 1
    config = make(**{**changed, **choices, "ema_decay": 0.5})
    same = [name for name, value in asdict(config).items() if value == asdict(make())[name]]
    assert same == ["model"]
    assert reloaded(config, tmp_path) == config


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
    with pytest.raises(ValueError, match=r"c\.toml: TrainConfig: data is missing"):
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
