"""Paths of models that are trained without any: marginals, and the states of a sampler."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from diffflow_ext.functional import NoiseKey
from diffflow_ext.training import configure
from diffflow_ext.training.config.defaults import resolve
from diffflow_ext.training.recipes.build import build_recipe

SMALL: dict[str, Any] = {"width": 8, "depth": 1}
MODELS: dict[str, dict[str, Any]] = {
    "ddpm": {"timesteps": 12},
    "nfdm": {"num_steps": 9, "forward": "linear"},
    "dinof": {"flow": "none", "t_cutoff": 0.4},
    "diffflow": {"num_steps": 7},
}


def recipe_of(model: str) -> Any:
    config = configure(model, data="moons", **SMALL, **MODELS[model])
    return build_recipe(resolve(config, is_image=False), (2,))


@pytest.mark.parametrize("model", MODELS)
def test_the_reverse_path_ends_in_a_sample(model: str) -> None:
    recipe, key = recipe_of(model), NoiseKey(3)
    x0 = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        paths = recipe.paths(x0, key)
        expected = recipe.draw((20, 2), key)
    forward, reverse, times = (torch.as_tensor(part) for part in paths)
    assert forward.shape == reverse.shape == (len(times), 20, 2)
    assert (times.diff() > 0).all()
    assert torch.equal(reverse[0], expected)
    assert torch.equal(forward[0], x0)


@pytest.mark.parametrize("model", ["ddpm", "dinof", "nfdm"])
def test_forward_states_have_the_marginals_of_the_process(model: str) -> None:
    """Mean alpha(t) x_0 and deviation sigma(t), alpha^2 + sigma^2 = 1, of 20,000 samples."""
    recipe = recipe_of(model)
    x0 = torch.tensor([2.0, -1.0]).expand(20_000, 2).contiguous()
    with torch.no_grad():
        forward, _, times = recipe.paths(x0, NoiseKey(5))
    alphas = forward[1:].mean(1) / x0[0]
    deviations = forward[1:].std(1)
    process = recipe.module.process if model != "nfdm" else recipe.module.forward_process.process
    for i, t in enumerate(times[1:]):
        assert np.allclose(alphas[i], float(process.alpha(t)), atol=0.03)
        assert np.allclose(deviations[i], float(process.sigma(t)), atol=0.03)
    assert np.allclose(alphas.square() + deviations.square(), 1.0, atol=0.05)


@pytest.mark.parametrize("model", ["ddpm", "dinof", "nfdm"])
def test_forward_states_are_a_path_of_the_process(model: str) -> None:
    """Given x_0 the states at t < t' have the covariance alpha(t') / alpha(t) * sigma(t)^2."""
    recipe = recipe_of(model)
    x0 = torch.tensor([2.0, -1.0]).expand(20_000, 2).contiguous()
    with torch.no_grad():
        forward, _, times = recipe.paths(x0, NoiseKey(5))
    process = recipe.module.process
    last = len(times) - 1
    for i, j in ((1, 2), (2, last // 2), (last // 2, last), (last - 1, last)):
        one, other = (forward[k].double() - forward[k].double().mean(0) for k in (i, j))
        found = (one * other).mean(0)
        alphas, sigma = process.alpha(times[[i, j]]), float(process.sigma(times[i]))
        expected = float(alphas[1] / alphas[0]) * sigma**2
        # NFDM's share is by the trapezoidal rule, of its few steps.
        assert np.allclose(found, expected, atol=0.03, rtol=0.15 if model == "nfdm" else 0.0)


def test_paths_of_ffjord_are_solutions_of_its_equation() -> None:
    pytest.importorskip("torchdiffeq", reason="needs the flows extra")
    config = configure("ffjord", data="moons", **SMALL)
    recipe, key = build_recipe(resolve(config, is_image=False), (2,)), NoiseKey(3)
    x0 = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        forward, reverse, times = recipe.paths(x0, key)
        expected = recipe.draw((20, 2), key)
    assert torch.equal(forward[0], x0)
    near = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(reverse[0], expected, **near)
    torch.testing.assert_close(forward[-1], recipe.module.flow.encode(x0), **near)
    # One solution through a state, in either direction.
    back = recipe.module.flow.path(forward[-1], times.flip(0).tolist()).flip(0)
    torch.testing.assert_close(back, forward, **near)


def test_flows_have_no_paths() -> None:
    pytest.importorskip("zuko", reason="needs the flows extra")
    recipe = build_recipe(resolve(configure("flow", data="moons"), is_image=False), (2,))
    assert recipe.paths(torch.zeros(3, 2), NoiseKey(0)) is None
