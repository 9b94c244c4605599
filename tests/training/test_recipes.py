"""Each model as a run: trained, cut off and resumed, scored and sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_runs import outcome, train_until_killed, write_images, write_table

from diffflow_ext import DiNof, NoiseKey
from diffflow_ext.data import open_dataset
from diffflow_ext.likelihood import dequantise
from diffflow_ext.processes import VE, VP
from diffflow_ext.training import (
    Config,
    TrainingError,
    configure,
    evaluate,
    format_table,
    load_run,
    train,
)
from diffflow_ext.training.config.defaults import resolve
from diffflow_ext.training.config.schedules import sampling_grid, training_grid
from diffflow_ext.training.evaluation.sampling import EVALUATION_STREAM
from diffflow_ext.training.loop.state import TrainState
from diffflow_ext.training.recipes import ddpm, diffflow, dinof, nfdm
from diffflow_ext.training.recipes.base import EvaluationSettings
from diffflow_ext.training.recipes.build import build_recipe
from diffflow_ext.training.store.directory import read_metrics

for library in ("zuko", "normflows", "torchdiffeq"):
    pytest.importorskip(library)

SMALL_NET = {"width": 8, "depth": 1}
SMALL_SPLINE = {"flow_transforms": 1, "flow_hidden": "8", "flow_bins": 4}
SMALL_GLOW = {"glow_levels": 1, "glow_blocks": 1, "glow_hidden": 4}
SMALL_UNET = {"unet_base": 4, "unet_mults": "1,1", "unet_blocks": 1, "unet_attention": "off"}

VECTORS: dict[str, dict[str, Any]] = {
    "diffflow with a flow": {"num_steps": 3, "prior": "flow", **SMALL_NET, **SMALL_SPLINE},
    "dinof": {"model": "dinof", "process": "ve", **SMALL_NET, **SMALL_SPLINE},
    "dinof with a Gaussian": {"model": "dinof", "flow": "none", "t_cutoff": 1.0, **SMALL_NET},
    "nfdm": {"model": "nfdm", "num_steps": 8, **SMALL_NET},
    "nfdm linear": {"model": "nfdm", "forward": "linear", "num_steps": 8, **SMALL_NET},
    "ddpm": {"model": "ddpm", "timesteps": 20, **SMALL_NET},
    "ffjord": {"model": "ffjord", "rtol": 1e-2, "atol": 1e-2, **SMALL_NET},
    "flow": {"model": "flow", **SMALL_SPLINE},
}
IMAGES: dict[str, dict[str, Any]] = {
    "diffflow images": {
        "num_steps": 2, "progressive": "off", "dropout": 0.3, "score_multiplier": 2.0,
        **SMALL_UNET,
    },
    "dinof images": {"model": "dinof", "t_cutoff": 0.02, **SMALL_UNET, **SMALL_GLOW},
    "nfdm images": {"model": "nfdm", "time_functions": 1, "num_steps": 4, **SMALL_UNET},
    "ddpm images": {"model": "ddpm", "timesteps": 20, "dropout": 0.3, **SMALL_UNET},
    "ddpm perceptron": {"model": "ddpm", "timesteps": 20, "net": "mlp", **SMALL_NET},
    "flow images": {"model": "flow", **SMALL_GLOW},
}  # fmt: skip
ALL = {**VECTORS, **IMAGES}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("table") / "points.csv", rows=600, columns=3)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 10)


@pytest.fixture(scope="module")
def configs(table: Path, images: Path) -> dict[str, Config]:
    same = {"seed": 3, "steps": 6, "batch_size": 8, "warmup": 2, "save_every": 3, "log_every": 1}
    vectors = {"data": str(table), "threads": 1, **same}
    pictures = {"data": str(images), "threads": 1, "flip": "on", **same}
    return {
        name: configure(**(pictures if name in IMAGES else vectors), **ALL[name]) for name in ALL
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, configs: dict[str, Config]) -> dict[str, Path]:
    """Finished runs of all kinds."""
    folder = tmp_path_factory.mktemp("runs")
    for name, config in configs.items():
        train(config, folder / name)
    return {name: folder / name for name in ALL}


@pytest.mark.parametrize(
    "name", [*VECTORS, *(pytest.param(name, marks=pytest.mark.slow) for name in IMAGES)]
)
def test_resumes_bit_equal(
    name: str, runs: dict[str, Path], configs: dict[str, Config], tmp_path: Path
) -> None:
    torch.manual_seed(99)  # Whatever happened before in the process.
    train_until_killed(configs[name], tmp_path, 4)
    assert train(configs[name], tmp_path, resume=True).step == 6
    assert outcome(tmp_path) == outcome(runs[name])


@pytest.mark.parametrize("name", ALL)
def test_samples(name: str, runs: dict[str, Path]) -> None:
    run = load_run(runs[name])
    shape = (1, 10, 10) if name in IMAGES else (3,)
    assert run.record.event_shape == shape
    steps = {} if run.config.name in ("ffjord", "flow") else {"num_steps": 8}
    samples = run.sample(4, seed=1, **steps, units="training")
    assert samples.shape == (4, *shape)
    assert samples.isfinite().all()
    again = run.sample(3, seed=1, **steps, units="training")
    # An adaptive solver steps by the error of the whole batch.
    near = {"rtol": 0.0, "atol": 0.1} if name == "ffjord" else {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(again, samples[:3], **near)
    assert not torch.allclose(run.sample(4, seed=2, **steps, units="training"), samples, atol=0.1)


@pytest.mark.parametrize("name", VECTORS)
def test_evaluation_of_vectors(name: str, runs: dict[str, Path]) -> None:
    n = 50
    steps = {} if name in ("ffjord", "flow") else {"num_steps": 4}
    result = evaluate(runs[name], n, device="cpu", figures=False, ode_n=20, **steps)
    kind = name.split()[0]
    names = {"dinof": ["ode"], "ffjord": ["exact"], "flow": ["exact"]}
    assert list(result["estimators"]) == names.get(kind, ["bound", "ode"])
    assert result["model"] == kind
    for estimator in result["estimators"]:
        assert math.isfinite(result[estimator])
        assert result[f"{estimator}_n"] == (20 if estimator == "ode" else n)
        assert f"{result[estimator]:.4f}" in format_table(result)


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Likelihoods from few evaluations."""
    monkeypatch.setattr(diffflow, "MIN_ODE_STEPS", 2)
    monkeypatch.setattr(dinof, "ODE_STEPS", 2)
    monkeypatch.setattr(ddpm, "ODE_STEPS", 2)
    monkeypatch.setattr(nfdm, "ODE_STEPS", 2)
    monkeypatch.setattr(nfdm, "BOUND_TIMES", 4)
    monkeypatch.setattr(ddpm, "IMAGE_TERMS", 4)


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("name", IMAGES)
def test_evaluation_of_images(name: str, runs: dict[str, Path]) -> None:
    pytest.importorskip("matplotlib")
    steps = {} if name == "flow images" else {"num_steps": 4}
    result = evaluate(runs[name], 50, device="cpu", ode_n=2, **steps)
    for estimator in result["estimators"]:
        nats = result[estimator]
        assert result[f"{estimator}_bits"] == pytest.approx(nats / (100 * math.log(2)) + 7)
        error = result[f"{estimator}_error"] / (100 * math.log(2))
        assert result[f"{estimator}_bits_error"] == pytest.approx(error)
        assert f"{result[f'{estimator}_bits']:.4f}" in format_table(result)
    assert result["sliced_wasserstein"] > result["sliced_wasserstein_floor"] > 0
    assert "energy_distance" not in result
    pictures = {path.name for path in (runs[name] / "figures").iterdir()}
    paths = set() if name == "flow images" else {"trajectories.png"}
    assert pictures == {"samples.png", "data.png", "loss.png"} | paths


def test_images_are_scored_with_noise_between_levels(runs: dict[str, Path], images: Path) -> None:
    result = evaluate(runs["flow images"], 50, seed=4, device="cpu", figures=False)
    run: Any = load_run(runs["flow images"])
    test = open_dataset(images).test[:50]
    x = dequantise(test, NoiseKey(4, stream=EVALUATION_STREAM))
    with torch.no_grad():
        nats = -run.model.log_prob(x).double().mean()
    assert result["exact"] == pytest.approx(float(nats), rel=1e-6)


def estimated(run: Any, name: str, x: Tensor, **settings: Any) -> Tensor:
    """Returns what an estimator says of rows 5, 6, ... under seed 0."""
    found = {one.name: one for one in run.recipe.estimators(EvaluationSettings(**settings))}
    with torch.no_grad():
        return found[name].log_prob(x, NoiseKey(0), 5)


def test_estimators_call_the_models(runs: dict[str, Path], table: Path) -> None:
    x, key = open_dataset(table).test[5:9], NoiseKey(0)
    names = ("ddpm", "dinof", "nfdm", "nfdm linear", "ffjord")
    loaded: dict[str, Any] = {name: load_run(runs[name]) for name in names}
    with torch.no_grad():
        for name in ("ddpm", "nfdm", "nfdm linear"):
            direct = loaded[name].model.elbo(x, key, sample_offset=5)
            assert torch.equal(estimated(loaded[name], "bound", x), direct)
        for name in ("ddpm", "dinof", "nfdm", "nfdm linear"):
            direct = loaded[name].model.log_prob(x, 100, key, sample_offset=5)
            assert torch.equal(estimated(loaded[name], "ode", x, ode_n=4), direct)
        direct = loaded["ffjord"].model.log_prob(x)
        assert torch.equal(estimated(loaded["ffjord"], "exact", x), direct)


def test_predictions_of_images_alone_are_clipped(runs: dict[str, Path]) -> None:
    kinds = (("ddpm images", True), ("ddpm", False), ("nfdm images", True), ("nfdm", False))
    for name, clips in kinds:
        run: Any = load_run(runs[name])
        usual = run.sample(4, seed=0, units="training")
        assert torch.equal(usual, run.sample(4, seed=0, clip=clips, units="training"))
        assert not torch.equal(usual, run.sample(4, seed=0, clip=not clips, units="training"))


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("ddpm", "stochasticity", 0.5),
        ("ddpm", "snr", 0.5),
        ("dinof", "eta", 0.5),
        ("nfdm", "solver", "heun"),
        ("flow", "num_steps", 5),
        ("ffjord", "solver", "heun"),
    ],
)
def test_option_of_another_sampler_is_refused(
    name: str, option: str, value: object, runs: dict[str, Path]
) -> None:
    with pytest.raises(ValueError, match=rf"{option}=.*the sampler of {name} has "):
        load_run(runs[name]).sample(4, seed=0, **{option: value}, units="training")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddpm", {"num_steps": 5, "sampler": "ddim", "eta": 0.5}),
        ("ddpm", {"variance": "large", "last_step": "noisy"}),
        ("dinof", {"num_steps": 5, "sampler": "ode", "solver": "euler"}),
        ("dinof", {"num_steps": 5, "corrector_steps": 2, "snr": 0.1}),
        ("diffflow with a flow", {"stochasticity": 0.0, "solver": "heun"}),
        ("nfdm", {"num_steps": 5, "stochasticity": 0.5, "clip": True}),
        ("nfdm linear", {"num_steps": 3, "stochasticity": 0.0}),
    ],
)
def test_options_reach_the_sampler(
    name: str, options: dict[str, Any], runs: dict[str, Path]
) -> None:
    run = load_run(runs[name])
    direct: Any = run.model
    steps = {key: value for key, value in options.items() if key != "num_steps"}
    key, count = NoiseKey(2, stream=EVALUATION_STREAM), options.get("num_steps")
    if name.startswith("diffflow"):
        count = sampling_grid(run.config)
    expected = direct.sample((4, 3), count, key, **steps)
    assert torch.equal(run.sample(4, seed=2, **options, units="training"), expected)


# --- parts ---------------------------------------------------------------------------------------


def test_score_of_dinof_does_not_feel_the_flow(
    runs: dict[str, Path], configs: dict[str, Config], tmp_path: Path
) -> None:
    config = configs["dinof"]
    without = dict.fromkeys(SMALL_SPLINE)
    faster = config.replaced(flow_learning_rate=0.5, flow_clip_norm=1e6)
    others = faster, config.replaced(**without, flow="none")
    expected = load_run(runs["dinof"]).model.state_dict()
    for index, other in enumerate(others):
        train(other, tmp_path / str(index))
        state = load_run(tmp_path / str(index)).model.state_dict()
        names = [name for name in expected if name.startswith("eps_net")]
        assert names
        assert all(torch.equal(state[name], expected[name]) for name in names)
    faster = load_run(tmp_path / "0").model.state_dict()
    flow = [name for name in expected if name.startswith("prior") and "weight" in name]
    assert flow
    assert not any(torch.equal(faster[name], expected[name]) for name in flow)


def test_parts_are_clipped_apart_and_logged(
    configs: dict[str, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[list[float]] = []

    def update(state: TrainState, learning_rates: Sequence[float]) -> None:
        grads = [[p.grad.flatten() for p in one.parameters] for one in state.objectives]
        lengths.append([float(torch.cat(part).norm()) for part in grads])
        assert learning_rates[1] == pytest.approx(learning_rates[0] * 20)
        state.step += 1

    monkeypatch.setattr(TrainState, "update", update)
    config = configs["dinof"].replaced(
        clip_norm=1e-3,
        flow_clip_norm=1e-4,
        learning_rate=0.01,
        flow_learning_rate=0.2,
    )
    train(config, tmp_path)
    torch.testing.assert_close(
        torch.tensor(lengths), torch.tensor([[1e-3, 1e-4]] * 6), rtol=1e-3, atol=0.0
    )
    for line in read_metrics(tmp_path / "metrics.jsonl"):
        assert line["loss"] == pytest.approx(line["score_loss"] + line["flow_loss"])
        both = math.hypot(line["score_grad_norm"], line["flow_grad_norm"])
        assert line["grad_norm"] == pytest.approx(both)
        assert min(line["score_grad_norm"], line["flow_grad_norm"]) > 1e-2


def test_part_that_is_not_finite_is_named(
    configs: dict[str, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = DiNof.flow_loss
    monkeypatch.setattr(DiNof, "flow_loss", lambda *a, **k: real(*a, **k) * math.nan)
    with pytest.raises(TrainingError, match="the loss of flow is nan at step 1"):
        train(configs["dinof"], tmp_path)


def test_average_has_the_start_of_the_flow(runs: dict[str, Path]) -> None:
    """Glow's ActNorm takes its first values from the first batch; a buffer says that it did."""
    run = load_run(runs["flow images"])
    started = [v for name, v in run.model.state_dict().items() if name.endswith("initialised")]
    assert started
    assert all(started)


# --- models of configurations --------------------------------------------------------------------


def built(**values: Any) -> Any:
    config = resolve(configure(data="moons", **values), is_image=False)
    return build_recipe(config, (2,)).module


def test_process_of_dinof() -> None:
    assert built(model="dinof", beta_max=15.0).process == VP(0.1, 15.0)
    made = built(model="dinof", process="ve", sigma_max=9.0, t_cutoff=0.25)
    assert made.process == VE(0.01, 9.0)
    assert made.t_cutoff == 0.25
    assert built(model="dinof", loss_weight="likelihood").loss_weight == "likelihood"


def test_schedule_of_ddpm() -> None:
    linear = built(model="ddpm", timesteps=50)
    cosine = built(model="ddpm", noise_schedule="cosine")
    assert (linear.num_timesteps, cosine.num_timesteps) == (50, 1000)
    assert float(cosine.process.alpha(torch.tensor(0.5))) == pytest.approx(
        math.cos(math.pi / 4), abs=0.02
    )


def test_diffflow_has_the_paper_s_networks() -> None:
    sde = built()
    assert sum(p.numel() for p in sde.parameters()) == 2 * 99_714
    assert float(sde.diffusion(torch.tensor([0.0]))) == pytest.approx(0.2)


def test_networks_of_images() -> None:
    config = configure(data="x", drift_multiplier=1.0, score_multiplier=0.5, net="unet",
                         unet_base=8, unet_mults="1,2")  # fmt: skip
    config = resolve(config, is_image=True)
    sde: Any = build_recipe(config, (1, 12, 12)).module
    assert sde.drift.input.out_channels == 8
    assert sde.score.net.input.out_channels == 4
    assert sde.drift.time_scale == pytest.approx(1000 / 0.05)
    assert float(sde.diffusion(torch.tensor([0.0]))) == pytest.approx(3.0)
    with pytest.raises(ValueError, match="expected square images, got 12 x 10"):
        build_recipe(config, (1, 12, 10))


def test_weights_depend_on_the_seed_alone() -> None:
    first = built(model="flow", seed=1).state_dict()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again, other = built(model="flow", seed=1).state_dict(), built(model="flow", seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(again[name], value) for name, value in first.items())
    changed = [n for n, v in other.state_dict().items() if not torch.equal(first[n], v)]
    assert changed


@pytest.mark.parametrize("learned", [False, True])
def test_the_logged_bound_is_that_of_the_batch(table: Path, learned: bool) -> None:
    """Not the loss less the mean of its control variate, which scatters far more."""
    config = configure(
        data=str(table), steps=4, batch_size=8, width=4, log_every=2,
        diffusion_start=0.3, diffusion_end=0.7, learn_diffusion=learned,
    )  # fmt: skip
    dataset = open_dataset(str(table))
    recipe = build_recipe(resolve(config, is_image=False), (dataset.dim,))
    x0 = dataset.train[:8]
    for step in (1, 3):
        loss = float(recipe.objectives[0].loss(x0, step, 0).detach())
        with torch.no_grad():
            grid = training_grid(recipe.config, step)
            expected = -recipe.module.elbo(x0, grid, recipe.key(step)).double().mean()
        assert recipe.reading(step, loss)["bound"] == pytest.approx(float(expected), abs=1e-3)
