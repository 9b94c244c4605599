"""Paths of models that are trained without any: marginals, and the states of a sampler."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from diffflow_ext.functional import NoiseKey
from diffflow_ext.training import configure
from diffflow_ext.training.config.defaults import resolve
from diffflow_ext.training.recipes.build import build_recipe

#: One point, many times.
X0 = torch.tensor([2.0, -1.0]).expand(20_000, 2).contiguous()
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
def test_forward_states_are_a_path_of_a_linear_process(model: str) -> None:
    """Of x_t = alpha x_0 + sigma eps: eps is normal, and keeps its share from t to t'."""
    recipe = recipe_of(model)
    with torch.no_grad():
        forward, _, times = recipe.paths(X0, NoiseKey(5))
    process = recipe.module.process
    alphas, sigmas = process.alpha(times[1:]), process.sigma(times[1:])
    noise = (forward[1:].double() - alphas[:, None, None] * X0) / sigmas[:, None, None]
    shares = (alphas[1:] * sigmas[:-1]) / (alphas[:-1] * sigmas[1:])
    check_noise(noise, shares[:, None].expand(-1, 2))


def test_forward_states_are_a_path_of_a_learned_process() -> None:
    """The share is exp(-1/2 int g^2 / s^2 dt), here by a fine sum for each interval."""
    config = configure("nfdm", data="moons", **SMALL, num_steps=40, forward="learned")
    recipe = build_recipe(resolve(config, is_image=False), (2,))
    process = recipe.module.forward_process
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in process.net.parameters():
            p.normal_(0.0, 0.5, generator=generator)
        forward, _, times = recipe.paths(X0, NoiseKey(5))
        x0 = X0[:1]
        known = process.coefficients(x0)

        def at(t: torch.Tensor) -> Any:
            return process.at(t.float(), x0, known)

        states = [at(t) for t in times[1:]]
        assert max((state.mean - alpha(process, t, x0)).abs().max()
                   for state, t in zip(states, times[1:], strict=True)) > 0.1  # fmt: skip
        noise = torch.stack(
            [(x - m.mean) / m.scale for x, m in zip(forward[1:], states, strict=True)]
        )
        shares = []
        for t, t_next in pairwise(times[1:]):
            fine = torch.linspace(0.005, 0.995, 100) * (t_next - t) + t
            rates = [recipe.module.squared_g(u.float()) / at(u).scale[0].square() for u in fine]
            shares.append(torch.exp(-0.5 * (t_next - t) * torch.stack(rates).mean(0)))
    check_noise(noise.double(), torch.stack(shares).double())


def alpha(process: Any, t: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
    return (process.process.alpha(t) * x0).float()


def check_noise(noise: torch.Tensor, shares: torch.Tensor) -> None:
    """Compares noise, shape (N, B, d), with its moments, within four of their deviations."""
    assert np.allclose(noise.mean(1), 0.0, atol=4 * (1 / len(X0)) ** 0.5)
    assert np.allclose(noise.var(1), 1.0, atol=4 * (2 / len(X0)) ** 0.5)
    found = (noise[1:] * noise[:-1]).mean(1)
    assert shares.max() - shares.min() > 0.1
    assert np.allclose(found, shares, atol=4 * (2 / len(X0)) ** 0.5)


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
