"""The configuration: every rule, every message, what each choice reads, and the file format."""

from __future__ import annotations

import math
import os
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
import special_files
from hypothesis import given
from hypothesis import strategies as st

from diffflow_ext.nets.mlp import ACTIVATIONS
from diffflow_ext.processes.linear import MAX_LOG_SNR
from diffflow_ext.training import Config, configure, load_config
from diffflow_ext.training.config.fields import BRANCHES, CONFIGS, MAY_CHANGE, SECTIONS
from diffflow_ext.training.config.files import from_record, to_record, to_toml
from diffflow_ext.training.config.rules import parse_progressive

#: Values that are refused, by field, of the first model that has it.
BAD: dict[str, dict[str, list[Any]]] = {
    "diffflow": {
        "data": ["a\ud800"], "data_seed": [-1], "limit": [0], "image_size": [0, 4097],
        "key": ["\ud800"], "drop_columns": ["a,\ud800"],
        "columns": ["\ud800=integer"], "missing": ["?"], "condition": ["", " ,", "\ud800"],
        "label_dropout": [1.0, -0.1, math.nan],
        "flip": ["yes"], "seed": [-1, 2**63], "steps": [0, 2**31 + 1], "batch_size": [0],
        "learning_rate": [0.0, -1e-3, math.nan, 1e300], "schedule": ["linear"], "warmup": [-1],
        "on_nonfinite": ["ignore"], "clip_norm": [0.0, math.inf], "ema_decay": [1.0, -0.1],
        "num_steps": [0, 2**24 + 1], "t_start": [-1.0, math.inf], "t_end": [0.0, 1e-320],
        "power": [0.0, 1e300], "grid": ["even"], "progressive": ["5:10"], "diffusion_start": [0.0],
        "diffusion_end": [-1.0], "prior": ["uniform"], "checkpoint_every": [-1],
        "net": ["cnn"], "time_scale": [0.0], "width": [0, 10**9], "depth": [-1, 10**9],
        "activation": ["sine"], "unet_base": [0], "unet_mults": ["1;2", "1,99999", "off", "٣"],
        "unet_blocks": [0], "unet_attention": ["none"], "dropout": [1.0],
        "drift_multiplier": [0.0], "score_multiplier": [-0.5], "autocast": ["fp16"],
        "device": ["gpu", "cuda:", "cuda:٣"], "threads": [0], "save_every": [0],
        "keep_checkpoints": [0], "log_every": [0], "log_to": ["tb"],
        "cuda_graph": ["yes"], "engine": ["gpu"],
        "scores_per_call": [0], "drift_scale": [0.0, math.inf], "score_scale": [-1.0, 1e300],
        "prediction": ["eps"],
    },
    "dinof": {
        "process": ["vpp"], "t_cutoff": [0.0, 1.5], "loss_weight": ["none"], "beta_min": [0.0],
        "beta_max": [-1.0], "sigma_min": [0.0], "sigma_max": [math.inf],
        "flow_learning_rate": [0.0], "flow_clip_norm": [0.0], "flow": ["maf"],
        "flow_transforms": [0], "flow_hidden": ["64,", "64,0", ""], "flow_bins": [1],
        "glow_levels": [0], "glow_blocks": [0], "glow_hidden": [0],
    },
    "nfdm": {
        "forward": ["affine"], "straightness": [-1.0, math.inf], "time_functions": [0, 17],
        "log_snr_start": [math.nan, 40.5], "log_snr_end": [-math.inf, -41.0],
        "num_steps": [0, 2**24 + 1], "forward_multiplier": [0.0],
    },
    "ddpm": {"timesteps": [0], "noise_schedule": ["quadratic"]},
    "ffjord": {"rtol": [0.0, 1e-300], "atol": [-1.0], "width": [0, 10**9], "time_scale": [0.0]},
    "flow": {"flow": ["none"], "learning_rate": [0.0]},
}  # fmt: skip
WRONG_TYPE = [
    ("data", 3, "text"),
    ("steps", 10.0, "a whole number"),
    ("steps", True, "a whole number"),
    ("steps", None, "a whole number"),
    ("learning_rate", "fast", "a number"),
    ("learning_rate", True, "a number"),
    ("learn_diffusion", 1, "true or false"),
    ("flip", True, "text"),
]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", special_files.KINDS)
def test_files_that_are_none(tmp_path: Path, kind: str) -> None:
    special_files.replace(tmp_path / "x.toml", kind)
    with pytest.raises((OSError, ValueError), match=r"^train: config: expected a file, .*; \w"):
        load_config(tmp_path / "x.toml")


def test_files_of_any_size(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("")
    assert load_config(tmp_path / "x.toml") == configure("diffflow")
    os.truncate(tmp_path / "x.toml", 2**33)
    with pytest.raises(ValueError, match=r"at most 1,048,576 bytes, .*; name a TOML file"):
        load_config(tmp_path / "x.toml")


def make(model: str = "diffflow", **values: Any) -> Any:
    return configure(model, **{"data": "moons", **values})


def reloaded(config: Config, directory: Path) -> Config:
    path = directory / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    return load_config(path)


@pytest.mark.parametrize(
    ("model", "name", "value"),
    [(model, name, v) for model, bad in BAD.items() for name, vs in bad.items() for v in vs],
)
def test_value_out_of_range_is_named(model: str, name: str, value: object) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        make(model, **{name: value})
    assert str(caught.value).startswith(f"train: {name}={value!r}: expected ")


@pytest.mark.parametrize(("name", "value", "expected"), WRONG_TYPE)
def test_value_of_wrong_type_is_named(name: str, value: object, expected: str) -> None:
    with pytest.raises(TypeError) as caught:
        make(**{name: value})
    assert str(caught.value) == f"train: {name}={value!r}: expected {expected}"


def test_each_rule_is_tested() -> None:
    free = {"learn_diffusion", "async_save", "shard"}
    tested = {name for bad in BAD.values() for name in bad}
    assert tested | free == {name for model in CONFIGS for name in make(model).values()}


def test_names_are_unique_in_a_configuration() -> None:
    for model in CONFIGS:
        sections = [fields(getattr(make(model), section)) for section in SECTIONS]
        names = [item.name for section in sections for item in section]
        assert len(names) == len({*names})


def test_activations_are_those_of_the_perceptron() -> None:
    for name in ACTIVATIONS:
        assert make(activation=name).network.activation == name
    with pytest.raises(ValueError, match="expected one of " + ", ".join(sorted(ACTIVATIONS))):
        make(activation="?")


@pytest.mark.parametrize(
    ("model", "low", "high", "more"),
    [
        ("diffflow", "t_start", "t_end", {}),
        ("dinof", "beta_min", "beta_max", {}),
        ("dinof", "sigma_min", "sigma_max", {"process": "ve"}),
        ("nfdm", "log_snr_end", "log_snr_start", {}),
    ],
)
def test_ends_must_be_in_order(model: str, low: str, high: str, more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{high}=0\.5: expected more than {low}=0\.5"):
        make(model, **{low: 0.5, high: 0.5}, **more)


# A field that one run reads, and another of the same model doesn't, with who does.
READ: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], str]] = [
    (
        "dinof",
        {"beta_max": 15.0},
        {"process": "subvp"},
        {"process": "ve"},
        "process=vp or process=subvp",
    ),
    ("dinof", {"sigma_max": 15.0}, {"process": "ve"}, {}, "process=ve"),
    ("dinof", {"glow_levels": 4}, {"flow": "glow"}, {"flow": "none"}, "flow=glow"),
    ("diffflow", {"flow": "spline"}, {"prior": "flow"}, {}, "prior=flow"),
    ("diffflow", {"flow_bins": 4}, {"prior": "flow"}, {}, "flow=spline"),
    ("ddpm", {"unet_base": 4}, {"net": "unet"}, {"net": "mlp"}, "net=unet"),
    ("diffflow", {"drift_multiplier": 2.0}, {"net": "unet"}, {"net": "mlp"}, "net=unet"),
    ("nfdm", {"time_functions": 3}, {}, {"forward": "linear"}, "forward=learned"),
    ("nfdm", {"forward_multiplier": 2.0}, {}, {"forward": "linear"}, "forward=learned"),
]


@pytest.mark.parametrize(("model", "field", "reader", "other", "owner"), READ)
def test_field_is_for_the_choice_that_reads_it(
    model: str, field: dict[str, Any], reader: dict[str, Any], other: dict[str, Any], owner: str
) -> None:
    ((name, value),) = field.items()
    assert make(model, **reader, **field).values()[name] == value
    with pytest.raises(ValueError, match="only for") as caught:
        make(model, **other, **field)
    assert str(caught.value).startswith(f"train: {name}={value!r}: only for {owner}, and this run")


@pytest.mark.parametrize(
    ("model", "name", "said"),
    [
        ("ddpm", "num_steps", "only for the models diffflow and nfdm, and this run trains ddpm"),
        ("diffflow", "timesteps", "only for the model ddpm, and this run trains diffflow"),
        (
            *("flow", "width"),
            "only for the models diffflow, dinof, nfdm, ddpm and ffjord, and this run trains flow",
        ),
        ("diffflow", "batchsize", "diffflow has no such field; did you mean 'batch_size'?"),
        ("diffflow", "lr", "diffflow has no such field; did you mean 'learning_rate'?"),
        ("ddpm", "qqq", "ddpm has no such field; see diffflow train ddpm --help"),
    ],
)
def test_field_of_another_model_is_refused(model: str, name: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        make(model, **{name: 1})
    assert str(caught.value) == f"train: {name}: {said}"


def test_choices_are_those_of_the_fields() -> None:
    """What a branch reads are fields, and each value of a choice is a branch."""
    names = {name for model in CONFIGS for name in make(model).values()}
    assert {*MAY_CHANGE} <= names
    for choice, branches in BRANCHES.items():
        assert all(readers.keys() <= names for readers in branches.values())
        model = next(m for m in ("dinof", "diffflow", "nfdm") if choice in make(m).values())
        with pytest.raises(ValueError) as caught:
            make(model, **{choice: "?"})
        assert {*str(caught.value).split("one of ")[1].split(", ")} == {*branches}


def test_a_model_in_other_letters() -> None:
    with pytest.raises(ValueError, match=r"model='DDPM': expected .*; did you mean 'ddpm'\?"):
        make("DDPM")
    with pytest.raises(ValueError, match=r"model='xyz': expected one of .*, flow$"):
        make("xyz")


def test_config_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        make().optimiser.steps = 3


# --- files ---------------------------------------------------------------------------------------


@given(
    data=st.text(min_size=1).filter(lambda text: text.isprintable() or "\n" in text),
    seed=st.integers(0, 2**63 - 1),
    rate=st.floats(1.2e-38, 3.4e38),
)
def test_toml_round_trip_is_exact(
    tmp_path_factory: pytest.TempPathFactory, data: str, seed: int, rate: float
) -> None:
    config = make(data=data, seed=seed, learning_rate=rate, learn_diffusion=True)
    assert reloaded(config, tmp_path_factory.mktemp("toml")) == config


@pytest.mark.parametrize("text", ['"', "\\", "\n\r\t\b\f", "\x00\x1f\x7f", "ü𝄞 '''", "C:\\new"])
def test_toml_round_trip_of_odd_text(tmp_path: Path, text: str) -> None:
    assert reloaded(make(data=text), tmp_path).data.data == text


# Runs that differ in kind; together they set every field to another value than its default.
KINDS: list[dict[str, Any]] = [
    {
        "model": "diffflow", "data_seed": 1, "limit": 5, "image_size": 6, "seed": 2, "steps": 3,
        "batch_size": 4, "learning_rate": 0.5, "schedule": "step", "warmup": 1, "clip_norm": 2.0,
        "ema_decay": 0.5, "on_nonfinite": "skip", "num_steps": 7, "t_start": 0.5, "t_end": 2.5,
        "power": 1.5, "grid": "power", "progressive": "0:5,10:20", "diffusion_start": 0.3,
        "diffusion_end": 0.4, "learn_diffusion": True, "checkpoint_every": 2,
        "net": "mlp", "time_scale": 3.5, "width": 5, "depth": 0, "activation": "tanh",
        "autocast": "bf16", "device": "cuda:1", "shard": True, "threads": 2, "save_every": 3,
        "keep_checkpoints": 4, "async_save": True, "log_every": 5, "key": "x",
        "log_to": "wandb",
        "drop_columns": 'a,"b, or c"', "columns": 'integer,"b, c=bounded 0 1"', "missing": "mask",
        "drift_scale": 2.0, "score_scale": 0.5,
        "prediction": "noise", "condition": 'cut,"b, c"', "label_dropout": 0.25,
    },
    {
        "model": "diffflow", "net": "unet", "prior": "flow", "flow": "glow", "flip": "on",
        "unet_base": 8, "unet_mults": "1", "unet_blocks": 1, "unet_attention": "off",
        "dropout": 0.25, "drift_multiplier": 2.0, "score_multiplier": 0.5, "glow_levels": 1,
        "glow_blocks": 2, "glow_hidden": 3, "cuda_graph": "on",
        "engine": "autograd", "scores_per_call": 3, "drift_scale": 0.25, "score_scale": 4.0,
        "prediction": "score",
    },
    {
        "model": "dinof", "loss_weight": "likelihood", "process": "subvp", "t_cutoff": 0.25,
        "beta_min": 0.5, "beta_max": 3.0, "flow": "spline", "flow_transforms": 1,
        "flow_hidden": "3", "flow_bins": 4, "flow_learning_rate": 0.5, "flow_clip_norm": 0.5,
    },
    {"model": "dinof", "process": "ve", "flow": "none", "sigma_min": 0.5, "sigma_max": 3.0},
    {"model": "nfdm", "forward": "linear", "num_steps": 3},
    {
        "model": "nfdm", "time_functions": 3, "log_snr_start": 8.0, "log_snr_end": -6.0,
        "forward_multiplier": 0.25, "straightness": 0.5,
    },
    {"model": "ddpm", "noise_schedule": "cosine", "timesteps": 7},
    {"model": "ffjord", "activation": "elu", "rtol": 0.5, "atol": 0.25, "width": 3},
    {"model": "flow", "learning_rate": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["model"])
def test_each_field_survives_the_round_trip(tmp_path: Path, kind: dict[str, Any]) -> None:
    config = make(**kind)
    assert reloaded(config, tmp_path) == config
    assert from_record(to_record(config)) == config
    assert eval(repr(config), {"configure": configure}) == config


def test_the_round_trips_change_each_field() -> None:
    unchanged = {name for model in CONFIGS for name in make(model).values()} - {"data"}
    for kind in KINDS:
        plain, values = make(kind["model"]).values(), make(**kind).values()
        unchanged -= {name for name, value in values.items() if value != plain[name]}
    assert not unchanged


def test_file_holds_what_the_run_reads() -> None:
    lines = to_toml(make("flow", flow="spline", flow_bins=4)).splitlines()
    assert lines[:2] == ["[data]", 'data = "moons"']
    assert '[model]\nname = "flow"\n\n[network]\nflow = "spline"\nflow_bins = 4\n' in "\n".join(
        lines
    )
    names = {line.split(" = ")[0] for line in lines}
    assert not names & {"width", "num_steps", "timesteps", "glow_levels", "net", "limit"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[optimiser]\nstep = 3", "step: diffflow has no such field; did you mean 'steps'?"),
        ("[run]\nsteps = 3", "steps: expected in [optimiser], got in [run]"),
        (
            "[trainer]\nsteps = 3",
            "[trainer]: expected one of data, model, network, optimiser, run",
        ),
        ("title = 'mine'", "expected tables with the fields of a run, such as [data], got 'ti"),
        ("[model]\nname = 'x'", "model='x': expected one of diffflow, dinof, nfdm, ddpm, ffjord"),
        ("[model]\nname = 'ddpm'\nrtol = 1.0", "rtol: only for the model ffjord, and this"),
        ("[optimiser]\nsteps = 'many'", "steps='many': expected a whole number"),
        ("[optimiser]\nsteps = {a = 1}", "steps={'a': 1}: expected a whole number"),
        ("[model]\nt_end = " + "9" * 400, "t_end="),
        ("[model]\nt_end = 0", "t_end=0.0: expected a number from 1.2e-38 to 3.4e+38"),
    ],
)
def test_file_that_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: train: {said}")


@pytest.mark.parametrize(
    "data", [b"steps =", b"\xff\xfe", b"a" * 9, b"x = " + b"[" * 100_000, b"seed = " + b"9" * 5000]
)
def test_file_that_is_not_toml(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"c\.toml: not a TOML file"):
        load_config(path)


def test_order_of_tables_does_not_matter(tmp_path: Path) -> None:
    """A field that hangs on a choice may come before it."""
    path = tmp_path / "c.toml"
    path.write_text("[network]\nflow = 'spline'\n[model]\nprior = 'flow'\n")
    assert load_config(path).values()["flow"] == "spline"


FLAT = """data = "moons"
model = "ddpm"
steps = 3
batch_size = 0
net = "auto"
width = 8
activation_memory = "off"
"""


def test_flat_file_is_refused_with_its_new_form(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(FLAT)
    with pytest.raises(ValueError, match="expected a table for each section") as caught:
        load_config(path)
    text, form = str(caught.value).split("\n\n", 1)
    assert "in the new form, without activation_memory, which ddpm has not" in text
    assert form == (
        '[data]\ndata = "moons"\n\n[model]\nname = "ddpm"\n\n[network]\nwidth = 8\n\n'
        "[optimiser]\nsteps = 3\n"
    )
    path.write_text(form)
    assert load_config(path) == make("ddpm", steps=3, width=8)


def test_progressive_schedule() -> None:
    assert parse_progressive("off") == parse_progressive("auto") == ()
    assert parse_progressive("0:10,2000:30") == ((0, 10), (2000, 30))


@pytest.mark.parametrize(
    "text", ["10", "0:10,", "1:10", "0:10,0:20", "0:9,5:3,4:2", "0:0", "0:-1"]
)
def test_progressive_schedule_of_another_form(text: str) -> None:
    with pytest.raises(ValueError, match="parse_progressive"):
        parse_progressive(text)


def test_limits_of_log_snr_are_those_of_the_process() -> None:
    for field, sign in (("log_snr_start", 1), ("log_snr_end", -1)):
        assert make("nfdm", forward="linear", **{field: sign * MAX_LOG_SNR})
        with pytest.raises(ValueError, match="from -40 to 40"):
            make("nfdm", **{field: sign * (MAX_LOG_SNR + 0.5)})
