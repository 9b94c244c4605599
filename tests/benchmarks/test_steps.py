"""The ways to compute a step that are compared: those that claim to be exact are."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.speed import step_variants, steps
from benchmarks.speed.paired import paired, spread
from benchmarks.speed.peaks import peak_mebibytes
from benchmarks.speed.step_variants import VARIANTS, Pair, Problem
from diffflow_ext import DiffFlowSDE, NoiseKey
from diffflow_ext.functional import normal

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = Problem(dim=3, batch=7, num_steps=4, width=8, depth=1)
IMAGE = Problem(side=4, batch=3, num_steps=2, width=4, depth=1)
KEY = NoiseKey(5)


def double_pair(problem: Problem) -> Pair:
    pair = Pair(problem)
    pair.drift.double(), pair.score.double()
    pair.data = pair.data.double()
    shape = tuple(pair.data.shape)
    pair.noise = [
        normal(shape, KEY, purpose="forward", step=i, dtype=torch.float64)
        for i in range(problem.num_steps)
    ]
    return pair


def gradient(pair: Pair) -> Tensor:
    return torch.cat([p.grad.flatten() for p in pair.parameters() if p.grad is not None])


@pytest.mark.parametrize("problem", [SMALL, IMAGE], ids=["vectors", "images"])
def test_plain_variants_have_the_gradient_of_the_package(problem: Problem) -> None:
    pair = double_pair(problem)
    sde = DiffFlowSDE(pair.drift, pair.score, problem.g)
    sde.mean_loss(pair.data, problem.grid(), KEY, engine="autograd").backward()
    expected = gradient(pair)
    graph = double_pair(problem)
    step_variants.loop_loss(graph).backward()
    torch.testing.assert_close(gradient(graph), expected, rtol=1e-8, atol=1e-10)
    release = double_pair(problem)
    step_variants.release_gradients(release)
    torch.testing.assert_close(gradient(release), expected, rtol=1e-8, atol=1e-10)


def test_torchsde_through_its_solver_has_that_gradient() -> None:
    torchsde = pytest.importorskip("torchsde")
    pair, ours = double_pair(SMALL), double_pair(SMALL)
    path = torchsde.BrownianInterval(
        0.0, float(SMALL.num_steps), pair.data.shape, dtype=torch.float64, entropy=3
    )
    step_variants.torchsde_loss(pair, torchsde.sdeint, bm=path).backward()
    ours.noise = [path(i, i + 1) for i in range(SMALL.num_steps)]
    step_variants.loop_loss(ours).backward()
    torch.testing.assert_close(gradient(pair), gradient(ours), rtol=1e-8, atol=1e-10)


def test_torchsde_adjoint_has_another_gradient() -> None:
    pytest.importorskip("torchsde")
    assert step_variants.torchsde_gradient_error(SMALL) > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["diffrax_loss", "scan_loss"])
def test_jax_has_that_gradient(name: str) -> None:
    pytest.importorskip("diffrax")
    import jax

    from benchmarks.speed import jax_steps as jax_variants

    pair = double_pair(SMALL)
    step_variants.loop_loss(pair).backward()
    assert pair.noise is not None
    with jax.enable_x64(True):
        loss = getattr(jax_variants, name)(SMALL, jax.numpy.float64)
        networks = (jax_variants.weights(pair.drift), jax_variants.weights(pair.score))
        noise = jax.numpy.stack([n.numpy() for n in pair.noise])
        slopes = jax.jit(jax.grad(loss))(networks, pair.data.numpy(), noise)
        for net, found in zip((pair.drift, pair.score), slopes, strict=True):
            for weight, p in net.named_parameters():
                assert p.grad is not None
                slope = torch.from_numpy(np.asarray(found[weight]).copy())
                torch.testing.assert_close(slope, p.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["diffrax_loss", "scan_loss"])
def test_jax_has_that_loss_in_the_precision_that_is_measured(name: str) -> None:
    pytest.importorskip("diffrax")
    import jax

    from benchmarks.speed import jax_steps as jax_variants

    pair = Pair(SMALL)
    pair.noise = [torch.randn_like(pair.data) for _ in range(SMALL.num_steps)]
    networks = (jax_variants.weights(pair.drift), jax_variants.weights(pair.score))
    noise = jax.numpy.stack([n.numpy() for n in pair.noise])
    loss = getattr(jax_variants, name)(SMALL)(networks, pair.data.numpy(), noise)
    assert float(loss) == pytest.approx(float(step_variants.loop_loss(pair)), rel=1e-5)


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
    expected = double_pair(SMALL)
    step_variants.loop_loss(expected).backward()
    pair = double_pair(SMALL)
    torch.compiler.reset()
    if whole:
        torch.compile(lambda: step_variants.loop_loss(pair))().backward()
    else:
        step_variants.loop_loss(pair, torch.compile(step_variants.one_step)).backward()
    torch.testing.assert_close(gradient(pair), gradient(expected), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("problem", [SMALL, IMAGE], ids=["vectors", "images"])
@pytest.mark.parametrize("name", [n for n in VARIANTS if n not in steps.COMPILED])
def test_every_variant_takes_steps(name: str, problem: Problem) -> None:
    if why := steps.obstacle(name, problem):
        pytest.skip(why)
    step = VARIANTS[name][0](problem)
    step()
    step()


def test_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(steps.PROBLEMS, "2d", SMALL)
    monkeypatch.setattr(steps, "SIDE", 64)
    words = ["--results", str(tmp_path), "--rounds", "2", "--variants", "fused", "adjoint"]
    steps.main(words)
    report = json.loads((tmp_path / "steps_2d_1.json").read_text())
    said = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in said[2:5]] == [
        report["variants"][name]["title"] for name in ("ddpm", "fused", "adjoint")
    ]
    assert said[-1] == str(tmp_path / "steps_2d_1.json")
    assert set(report["variants"]) == {"ddpm", "fused", "adjoint"}
    assert report["gradient_errors"]["float32"] < 1e-5
    assert report["gradient_errors"]["other_noise"] > 0.01
    assert 0 < report["product_share"]["median"]
    fused = report["variants"]["fused"]
    assert 0 < fused["ratio"]["min"]
    assert not fused["exact_torch"]
    assert 0 < fused["first_call_seconds"]
    assert isinstance(fused["mebibytes"], float)


def test_report_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(steps.PROBLEMS, "image", IMAGE)
    steps.main(["--problem", "image", "--results", str(tmp_path), "--rounds", "1", "--no-memory"])
    report = json.loads((tmp_path / "steps_image_1.json").read_text())
    assert tuple(report["variants"]) == steps.IMAGE_VARIANTS
    assert report["gradient_errors"]["float32"] < 1e-5
    assert report["multiply_adds"] is None
    assert report["product_share"] is None
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


def test_share_of_the_product_is_that_of_a_product() -> None:
    """A step that is the product itself, twice, and one that is said to do half as much."""
    a = torch.randn(steps.SIDE, steps.SIDE)
    twice = steps.product_share(lambda: (a @ a, a @ a), 2 * steps.SIDE**3, rounds=3)
    assert twice["median"] == pytest.approx(1.0, abs=0.35)
    half = steps.product_share(lambda: (a @ a, a @ a), steps.SIDE**3, rounds=3)
    assert half["median"] == pytest.approx(0.5, abs=0.18)


def test_memory_is_that_of_the_steps_alone() -> None:
    """The graph of every step is what the fused engine does without."""
    problem = Problem(batch=2000, num_steps=10, width=64, depth=2)
    parent = torch.ones(2**26)  # Nor does it count what this process has.
    idle = peak_mebibytes(problem, None, 1)
    graph, fused = (peak_mebibytes(problem, n, 1, steps=2) - idle for n in ("graph", "fused"))
    assert len(parent)
    assert graph > 40
    assert fused < graph / 2


def test_ratios_are_taken_within_a_round() -> None:
    found = paired({"a": lambda: sum(range(20_000)), "b": lambda: sum(range(80_000))}, "a", 5)
    assert 2 < found["b"]["ratio"]["median"] < 8
    assert 0.5 < found["a"]["ratio"]["median"] < 2
    assert spread([3.0, 1.0, 2.0])["median"] == 2.0
    assert spread([4.0])["quartiles"] == [4.0, 4.0]
