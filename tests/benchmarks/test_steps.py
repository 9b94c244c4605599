"""The ways to compute a step that are compared: those that claim to be exact are."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.speed import paired, steps
from benchmarks.speed.problem import Pair, Problem
from benchmarks.speed.torch_steps import (
    loop_loss,
    one_step,
    set_release_gradients,
    torchsde_gradient_error,
    torchsde_loss,
)
from benchmarks.speed.variants import VARIANTS
from diffflow_ext import DiffFlowSDE, NoiseKey
from diffflow_ext.functional import normal

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = Problem(dim=3, batch=7, num_steps=4, width=8, depth=1)
IMAGE = Problem(side=4, batch=3, num_steps=2, width=4, depth=1)
KEY = NoiseKey(5)


def double_pair(problem: Problem) -> Pair:
    pair = Pair(problem).double()
    shape = tuple(pair.data.shape)
    pair.noise = [
        normal(shape, KEY, purpose="forward", step=i, dtype=torch.float64)
        for i in range(problem.num_steps)
    ]
    return pair


def gradient(pair: Pair) -> Tensor:
    return torch.cat([p.grad.flatten() for p in pair.parameters() if p.grad is not None])


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [SMALL, IMAGE], ids=["vectors", "images"])
def test_plain_variants_have_the_gradient_of_the_package(problem: Problem) -> None:
    pair = double_pair(problem)
    sde = DiffFlowSDE(pair.drift, pair.score, problem.g)
    sde.mean_loss(pair.data, problem.grid(), KEY, engine="autograd").backward()
    graph, release = double_pair(problem), double_pair(problem)
    loop_loss(graph).backward()
    torch.testing.assert_close(gradient(graph), gradient(pair), rtol=1e-8, atol=1e-10)
    set_release_gradients(release)
    torch.testing.assert_close(gradient(release), gradient(pair), rtol=1e-8, atol=1e-10)


def test_torchsde_through_its_solver_has_that_gradient_and_its_adjoint_another() -> None:
    torchsde = pytest.importorskip("torchsde")
    pair, ours = double_pair(SMALL), double_pair(SMALL)
    path = torchsde.BrownianInterval(
        0.0, float(SMALL.num_steps), pair.data.shape, dtype=torch.float64, entropy=3
    )
    torchsde_loss(pair, torchsde.sdeint, bm=path).backward()
    ours.noise = [path(i, i + 1) for i in range(SMALL.num_steps)]
    loop_loss(ours).backward()
    torch.testing.assert_close(gradient(pair), gradient(ours), rtol=1e-8, atol=1e-10)
    assert torchsde_gradient_error(SMALL) > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["diffrax_loss", "scan_loss"])
def test_jax_has_that_gradient_and_in_float32_that_loss(name: str) -> None:
    pytest.importorskip("diffrax")
    import jax

    from benchmarks.speed import jax_steps

    def in_jax(pair: Pair) -> tuple[Any, ...]:
        assert pair.noise is not None
        noise = jax.numpy.stack([n.numpy() for n in pair.noise])
        networks = (jax_steps.weights(pair.drift), jax_steps.weights(pair.score))
        return networks, pair.data.numpy(), noise

    pair = double_pair(SMALL)
    loop_loss(pair).backward()
    with jax.enable_x64(True):
        loss = getattr(jax_steps, name)(SMALL, jax.numpy.float64)
        slopes = jax.jit(jax.grad(loss))(*in_jax(pair))
        for net, found in zip((pair.drift, pair.score), slopes, strict=True):
            for weight, p in net.named_parameters():
                assert p.grad is not None
                slope = torch.from_numpy(np.asarray(found[weight]).copy())
                torch.testing.assert_close(slope, p.grad, rtol=1e-8, atol=1e-10)
    single = Pair(SMALL)
    single.noise = [torch.randn_like(single.data) for _ in range(SMALL.num_steps)]
    loss = getattr(jax_steps, name)(SMALL)(*in_jax(single))
    assert float(loss) == pytest.approx(float(loop_loss(single)), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jax", "diffrax"])
def test_jax_takes_steps_that_train(name: str) -> None:
    """With noise and weights that change, so does the state that the step carries."""
    pytest.importorskip("diffrax")
    step = VARIANTS[name][0](SMALL)
    state = inspect.getclosurevars(step).nonlocals["state"]
    before = [np.asarray(state[0][0]["output.weight"]), str(state[2])]
    step()
    assert (np.asarray(state[0][0]["output.weight"]) != before[0]).all()
    assert str(state[2]) != before[1]


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True], ids=["step", "loop"])
def test_compiled_variants_have_that_gradient_too(whole: bool) -> None:
    expected, pair = double_pair(SMALL), double_pair(SMALL)
    loop_loss(expected).backward()
    torch.compiler.reset()
    if whole:
        torch.compile(lambda: loop_loss(pair))().backward()
    else:
        loop_loss(pair, torch.compile(one_step)).backward()
    torch.testing.assert_close(gradient(pair), gradient(expected), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("problem", [SMALL, IMAGE], ids=["vectors", "images"])
@pytest.mark.parametrize("name", [n for n in VARIANTS if n not in steps.COMPILED])
def test_every_variant_takes_steps(name: str, problem: Problem) -> None:
    if why := steps.obstacle(name, problem):
        pytest.skip(why)
    step = VARIANTS[name][0](problem)
    step()
    step()


# --- report --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run with tiny numbers, and what memory a child is said to have taken."""
    folder, before = tmp_path_factory.mktemp("steps"), torch.get_num_threads()
    peaks = {None: 100.0, "ddpm": 101.0, "fused": 102.5, "adjoint": 130.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(steps.PROBLEMS, "2d", SMALL)
        patch.setattr(steps, "SIDE", 64)
        patch.setattr(steps, "peak_mebibytes", lambda problem, name, *_, **__: peaks[name])
        words = ["--rounds", "2", "--variants", "fused", "adjoint"]
        steps.main([*words, "--results", str(folder)])
    torch.set_num_threads(before)
    return json.loads((folder / "steps_2d_1.json").read_text())


def test_report_says_what_was_done(report: dict[str, Any]) -> None:
    assert report["command"] == (
        "python -m benchmarks.speed.steps --rounds 2 --variants fused adjoint"
    )
    assert report["benchmark"] == "steps"
    assert report["problem"]["batch"] == SMALL.batch
    assert list(report["variants"]) == ["ddpm", "fused", "adjoint"]
    assert [one["mebibytes"] for one in report["variants"].values()] == [1.0, 2.5, 30.0]
    assert all(len(one["ratio"]["all"]) == 2 for one in report["variants"].values())
    assert report["gradient_errors"]["float32"] < 1e-5
    assert report["gradient_errors"]["other_noise"] > 0.01
    assert report["product_share"]["median"] > 0


def test_report_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(steps.PROBLEMS, "image", IMAGE)
    monkeypatch.setattr(steps, "IMAGE_VARIANTS", ("ddpm", "graph"))
    steps.main(["--problem", "image", "--results", str(tmp_path), "--rounds", "1", "--no-memory"])
    report = json.loads((tmp_path / "steps_image_1.json").read_text())
    assert list(report["variants"]) == ["ddpm", "graph"]
    assert report["gradient_errors"]["float32"] < 1e-5
    assert report["multiply_adds"] is report["product_share"] is None
    assert {one["mebibytes"] for one in report["variants"].values()} == {None}


def test_what_cannot_run_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps.importlib.util, "find_spec", lambda name: None)
    names, left_out = steps.chosen(None, SMALL, "step")
    assert left_out["torchsde"] == "it needs torchsde"
    assert left_out["jax"] == "it needs diffrax and optax"
    assert names[0] == "ddpm"
    assert "torchsde" not in names
    assert "compiled" in names
    assert "compiled_loop" not in names
    assert "compiled_loop" in steps.chosen(None, SMALL, "loop")[0]
    names, left_out = steps.chosen(None, SMALL, "no")
    assert "compiled" not in names
    assert left_out["compiled"].endswith("--compile no")
    names, left_out = steps.chosen(["fused", "graph"], IMAGE, "step")
    assert names == ["ddpm", "graph"]
    assert "vectors" in left_out["fused"]


def test_work_counts_the_products_of_all_evaluations() -> None:
    """Per evaluation 3 x 8 + 8 x 8 + 8 x 3; 5 drifts, 4 scores; a backward costs two forwards."""
    assert steps.work(SMALL) == 3 * 9 * 7 * (24 + 64 + 24)


def test_share_of_the_product_divides_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that takes 2 to 8 times as long as the product, for 4 times its multiply-adds."""

    def timed(calls: dict[str, Any], reference: str, rounds: int) -> dict[str, Any]:
        assert (set(calls), reference, rounds) == ({"mm", "step"}, "mm", 3)
        assert calls["mm"]().shape == (8, 8)
        return {"step": {"ratio": {"all": [2.0, 4.0, 8.0]}}}

    monkeypatch.setattr(steps, "SIDE", 8)
    monkeypatch.setattr(steps, "paired", timed)
    found = steps.product_share(lambda: None, 4 * 8**3, rounds=3)
    assert found["all"] == [2.0, 1.0, 0.5]
    assert found["median"] == 1.0


def test_ratios_are_taken_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that goes slower in each round, ratios stay what they are."""
    calls = {"a": lambda: None, "b": lambda: None}
    cost = {calls["a"]: 1.0, calls["b"]: 4.0}
    measured: list[float] = []

    def seconds(step: Any) -> float:
        measured.append(cost[step] * 2.0 ** (len(measured) // 4))
        return measured[-1]

    monkeypatch.setattr(paired, "seconds", seconds)
    found = paired.paired(calls, "a", 5)
    assert found["a"]["ratio"]["all"] == [1.0] * 5
    assert found["b"]["ratio"]["all"] == [4.0] * 5
    assert sorted(found["b"]["seconds"]["all"]) == [4.0 * 2.0**i for i in range(5)]
    assert paired.spread([3.0, 1.0, 2.0])["median"] == 2.0
    assert paired.spread([4.0])["quartiles"] == [4.0, 4.0]


def test_seconds_are_those_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.02, 0.04, 0.06])
    monkeypatch.setattr(paired.time, "perf_counter", lambda: next(clock))
    assert paired.seconds(lambda: None, least=0.05) == pytest.approx(0.02)
