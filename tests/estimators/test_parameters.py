"""Parameters of estimators: the project's defaults, options, seeds, and what is refused."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from diffflow_ext import estimators
from diffflow_ext.estimators import DDPMDensity, DiffFlowDensity
from diffflow_ext.estimators.parameters import OWN, configuration, parameters_of, seed_of
from diffflow_ext.training import configure
from diffflow_ext.training.config.defaults import resolve

KINDS = [getattr(estimators, name) for name in estimators.__all__]


def config_of(estimator: Any) -> Any:
    return configuration(estimator._model, estimator.get_params())


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_those_of_the_configuration(kind: type[Any]) -> None:
    known = configure(kind._model).values()
    parameters = inspect.signature(kind).parameters.values()
    assert {p.name for p in parameters} >= {"steps", "options", "random_state", "verbose"}
    for parameter in parameters:
        assert parameter.kind is parameter.KEYWORD_ONLY
        if parameter.name not in OWN:
            assert parameter.default == known[parameter.name], parameter.name
    assert config_of(kind(random_state=0)) == configure(kind._model, columns="continuous")


def test_options_are_fields() -> None:
    estimator = DiffFlowDensity(width=64, options={"warmup": 5, "prior": "flow"}, random_state=7)
    expected = configure("diffflow", width=64, warmup=5, prior="flow", seed=7)
    assert config_of(estimator) == expected.replaced(columns="continuous")
    kinds = DiffFlowDensity(options={"columns": "heavy", "missing": "mask"}, random_state=0)
    assert config_of(kinds) == configure("diffflow", columns="heavy", missing="mask")


def test_numbers_of_grids_are_numbers() -> None:
    options = {"clip_norm": np.float32(0.5)}
    estimator = DDPMDensity(steps=np.int64(9), learning_rate=np.float64(0.5), options=options)
    config = config_of(
        estimator.set_params(random_state=np.int64(4), noise_schedule=np.str_("cosine"))
    )
    assert config == configure(
        "ddpm", steps=9, learning_rate=0.5, clip_norm=0.5, seed=4, noise_schedule="cosine",
        columns="continuous",
    )  # fmt: skip


def test_seeds_are_numbers_or_drawn() -> None:
    assert seed_of(2**40) == 2**40
    first, second = (np.random.RandomState(3) for _ in range(2))
    drawn = [seed_of(first) for _ in range(3)]
    assert len(set(drawn)) == 3
    assert drawn == [seed_of(second) for _ in range(3)]
    np.random.seed(3)
    assert seed_of(None) == drawn[0]
    with pytest.raises(ValueError, match="cannot be used to seed"):
        seed_of("one")


@pytest.mark.parametrize("kind", KINDS)
def test_a_configuration_is_parameters_again(kind: type[Any]) -> None:
    """What a run writes, with every default in its place, is what the estimator was made of."""
    names = set(inspect.signature(kind).parameters)
    config = config_of(kind(steps=7, width=16, options={"warmup": 3}, random_state=5, threads=1))
    found = parameters_of(resolve(config, is_image=False), names)
    expected = {"steps": 7, "width": 16, "threads": 1, "random_state": 5}
    assert found == {**expected, "options": {"warmup": 3}}
    assert parameters_of(configure(kind._model, data="moons", limit=50), names) == {
        "random_state": 0, "options": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"options": {"steps": 3}}, ValueError, "options has 'steps': .*the parameter steps itse"),
        ({"options": {"options": 3}}, ValueError, "set the parameter options itself"),
        ({"options": {"seed": 3}}, ValueError, "options has 'seed': .*set random_state"),
        ({"options": {"drop_columns": "a"}}, ValueError, "choose rows and columns of X before"),
        ({"options": {"log_to": "wandb"}}, ValueError, "log_to.*take training.train"),
        ({"options": {"lr": 3}}, ValueError, "lr: .*did you mean 'learning_rate'"),
        ({"options": {"timesteps": 3}}, ValueError, "timesteps: only for the model ddpm"),
        ({"options": {1: 3}}, TypeError, "expected a mapping from names of fields"),
        ({"options": [3]}, TypeError, r"options=\[3\]: expected a mapping from names of fields"),
        ({"width": 0}, ValueError, "width=0: expected a whole number from 1"),
        ({"width": 4.0}, TypeError, "width=4.0: expected a whole number"),
        ({"random_state": -1}, ValueError, "seed=-1: expected a whole number from 0"),
        ({"device": "gpu"}, ValueError, "device='gpu': expected auto, cpu, cuda"),
    ],
)
def test_what_is_refused_when_it_is_fitted(
    parameters: dict[str, Any], error: type[Exception], message: str
) -> None:
    estimator = DiffFlowDensity(**parameters)
    with pytest.raises(error, match=message):
        estimator.fit(np.random.default_rng(0).normal(size=(30, 2)))
    assert not hasattr(estimator, "checkpoint_")
