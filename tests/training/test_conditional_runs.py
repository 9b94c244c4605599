"""Runs with conditions, from training to samples, densities and evaluations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from process_runs import assert_like
from process_runs import run as run_processes
from training_runs import outcome, train_until_killed, write_images

from diffflow_ext.cli import main
from diffflow_ext.data import open_dataset
from diffflow_ext.training import LoadedRun, configure, evaluate, load_run, train
from diffflow_ext.training.config.defaults import resolve
from diffflow_ext.training.store.checkpoint import load_latest

N = 3000
RNG = np.random.default_rng(0)
CUTS = ["fair", "good", "ideal"]


def known(cut: Any, price: Any) -> tuple[Any, Any]:
    """Returns the mean and the deviation of y."""
    rank = np.searchsorted(CUTS, cut)
    return 2.0 * price + 3.0 * rank, 0.5 + 0.5 * rank


def table() -> pd.DataFrame:
    cut, price = RNG.choice(CUTS, N), RNG.normal(0.0, 1.0, N)
    mean, std = known(cut, price)
    y = RNG.normal(mean, std)
    return pd.DataFrame({"cut": pd.Categorical(cut), "y": y, "price": price})


FRAME = table()
SIZES: dict[str, dict[str, Any]] = {
    "ddpm": {"timesteps": 50}, "nfdm": {}, "diffflow": {"num_steps": 10, "steps": 1200},
    "dinof": {},
}  # fmt: skip


@pytest.fixture(scope="module", params=["ddpm", *(
    pytest.param(name, marks=pytest.mark.slow) for name in ("nfdm", "diffflow", "dinof")
)])  # fmt: skip
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "dinof":
        pytest.importorskip("zuko")
    out = tmp_path_factory.mktemp("run") / request.param
    values: dict[str, Any] = {
        "condition": "cut,price", "steps": 400, "batch_size": 256, "width": 48, "depth": 2,
        "warmup": 20, "threads": 1, **SIZES[request.param],
    }  # fmt: skip
    config = configure(request.param, **values)
    train(config, out, data=FRAME, progress=False)
    return out


@pytest.fixture(scope="module")
def run(folder: Path) -> LoadedRun:
    return load_run(folder)


def test_samples_follow_the_known_distribution(run: LoadedRun) -> None:
    assert "cut (one of 'fair', 'good', 'ideal'), price (a number, from -3." in repr(run)
    for cut, price in (("fair", -1.0), ("good", 0.5), ("ideal", 1.0)):
        samples = run.sample(2000, given={"cut": cut, "price": price}, num_steps=None)
        assert samples.shape == (2000, 1)
        mean, std = known(cut, price)
        assert abs(float(samples.mean()) - mean) < 0.4
        # Networks as small as these smooth the narrow ones.
        assert 0.8 * std < float(samples.std()) < 1.5 * std + 0.5


def test_densities_are_those_given_the_own_condition(run: LoadedRun) -> None:
    rows = FRAME[:300]
    scores = run.log_prob(rows)
    mean, std = known(rows.cut.astype(str), rows.price.to_numpy())
    true = -0.5 * ((rows.y.to_numpy() - mean) / std) ** 2 - np.log(std) - math.log(2 * math.pi) / 2
    assert abs(float(scores.mean()) - true.mean()) < 0.5
    swapped = rows.assign(price=np.roll(rows.price, 1))
    assert float(run.log_prob(swapped).mean()) < float(scores.mean()) - 1.0
    same = rows[["price", "y", "cut"]].assign(other=1)
    assert torch.equal(run.log_prob(same), scores)
    given = run.log_prob(rows[["y"]].to_numpy(), given=rows)
    assert torch.equal(given, scores)
    one = rows[rows.cut == "good"].assign(price=0.5)
    of_all = run.log_prob(one[["y"]], given={"cut": "good", "price": 0.5})
    assert torch.equal(of_all, run.log_prob(one))
    with pytest.raises(ValueError, match="expected given, because the run is conditioned on cut"):
        run.log_prob(rows[["y"]].to_numpy())
    with pytest.raises(ValueError, match="which has no 'price'"):
        run.log_prob(rows[["y", "cut"]])


def test_frames_have_the_conditions(run: LoadedRun) -> None:
    given = FRAME[:40]
    samples = run.sample_frame(40, given=given, seed=2)
    assert [*samples.columns] == ["y", "cut", "price"]
    assert samples[["cut", "price"]].equals(given[["cut", "price"]])
    own = given.set_axis([*"ab"] * 20)[["price", "cut"]].astype({"price": "Float32", "cut": "str"})
    typed = run.sample_frame(40, given=own.assign(other=1), seed=2)
    assert [*typed.columns] == ["y", "cut", "price"]
    assert typed[["price", "cut"]].equals(own)
    assert np.allclose(typed.y, samples.y, rtol=1e-3, atol=1e-3)
    one = run.sample_frame(2, given={"price": 0.1, "cut": "good"})
    assert [*one.price] == [0.1, 0.1]
    assert one.cut.dtype == FRAME.cut.dtype
    # A sample depends on the seed, its index and its own condition.
    few = run.sample_frame(10, given=given[:10], seed=2)
    assert np.allclose(few.y, samples.y[:10], rtol=1e-3, atol=1e-3)


def test_guidance(run: LoadedRun) -> None:
    ideal, fair = ({"cut": cut, "price": 0.0} for cut in ("ideal", "fair"))
    plain = run.sample(500, given=ideal)
    assert torch.equal(run.sample(500, given=ideal, guidance=1.0), plain)
    strong = run.sample(500, given=ideal, guidance=2.0)
    assert not torch.equal(strong, plain)
    if run.config.name == "ddpm":
        assert float(strong.mean()) > float(plain.mean())
        # The forward process of NFDM and the flow of DiNof have the condition too.
        free = (run.sample(50, given=given, guidance=0.0) for given in (ideal, fair))
        assert torch.equal(*free)
    with pytest.raises(ValueError, match="expected given, because"):
        run.sample(5, guidance=2.0)


def test_missing_values_are_drawn_given_the_conditions_of_their_row(run: LoadedRun) -> None:
    gaps = pd.DataFrame({"y": [np.nan, np.nan], "cut": ["fair", "ideal"], "price": [-1.0, 0.5]})
    frames = run.impute(gaps.set_axis(["i", "j"]), 400, seed=1)
    assert [*frames[0].index] == ["i", "j"]
    assert [*frames[0].columns] == ["y", "cut", "price"]
    assert [*frames[0].cut] == ["fair", "ideal"]
    drawn = np.stack([frame.y for frame in frames])
    mean, std = known(gaps.cut, gaps.price.to_numpy())
    assert np.abs(drawn.mean(0) - mean).max() < 0.4
    assert (drawn.std(0) > 0.7 * std).all()
    assert (drawn.std(0) < 1.5 * std + 0.5).all()
    rows = gaps[["y"]].to_numpy()
    given = run.impute(rows, 2, given=gaps, seed=1)
    assert torch.equal(given[1], run.impute(rows, 2, given=gaps, seed=1)[1])
    assert abs(float(given[1][1, 0]) - mean[1]) < 6.0
    with pytest.raises(
        ValueError, match=r"impute: expected a value, got nan in row 1 .*column 'price'"
    ):
        run.impute(gaps.assign(price=[0.5, np.nan]))
    with pytest.raises(ValueError, match="impute: expected given, because the run is conditioned"):
        run.impute(rows)
    with pytest.raises(ValueError, match="expected no options of a sampler"):
        run.impute(gaps, num_steps=5)


def test_evaluation_is_given_the_conditions_of_the_test_data(folder: Path, run: LoadedRun) -> None:
    result = evaluate(folder, 200, data=FRAME, ode_n=50, figures=False)
    name = next(iter(result["estimators"]))
    # The marginal of y has a deviation of 3.2: its likelihood is far lower.
    assert result[name] < result["gaussian_nll"] - 0.3
    # Samples given the conditions of the test data have the distribution of these.
    assert result["energy_distance"] < 0.1


def test_the_program(folder: Path, run: LoadedRun, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.csv", tmp_path / "x.csv"
    FRAME[:20].to_csv(rows, index=False)
    words = ["--n", "30", "--given", "cut=ideal,price=1", "--guidance", "2"]
    assert main(["sample", str(folder), *words, "--out", str(out)]) == 0
    samples = pd.read_csv(out)
    expected = run.sample_frame(30, given={"cut": "ideal", "price": 1}, guidance=2.0)
    assert [*samples.columns] == ["y", "cut", "price"]
    assert np.allclose(samples.y, expected.y)
    assert set(samples.cut) == {"ideal"}
    assert np.allclose(samples.price, 1.0)
    assert main(["score", str(folder), str(rows), "--out", str(tmp_path / "s.csv")]) == 0
    scores = pd.read_csv(tmp_path / "s.csv").log_prob
    assert np.allclose(scores, run.log_prob(FRAME[:20]), rtol=1e-4, atol=1e-4)
    # Without columns of the condition, it is given.
    FRAME[["y"]][:20].to_csv(rows, index=False)
    words = ["score", str(folder), str(rows), "--out", str(tmp_path / "given.csv")]
    assert main(words) == 2
    assert main([*words, "--given", "cut=good,price=0"]) == 0
    given = run.log_prob(FRAME[["y"]][:20], given={"cut": "good", "price": 0})
    assert np.allclose(pd.read_csv(tmp_path / "given.csv").log_prob, given, rtol=1e-4, atol=1e-4)


def test_errors_of_the_program(folder: Path, tmp_path: Path, capsys: Any) -> None:
    out = ["--out", str(tmp_path / "x.npy")]
    assert main(["sample", str(folder), *out]) == 2
    assert "--given cut=..." in capsys.readouterr().err
    assert main(["sample", str(folder), "--given", "cut=great,price=1", *out]) == 2
    assert "'fair', 'good', 'ideal', got 'great'" in capsys.readouterr().err
    assert not (tmp_path / "x.npy").exists()


# --- what holds for runs of a few steps ---------------------------------------------------------

TINY: dict[str, Any] = {
    "steps": 6, "batch_size": 10, "width": 8, "depth": 1, "warmup": 2, "threads": 1,
    "save_every": 2, "log_every": 1, "seed": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "t.csv"
    FRAME[:200].to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "set"
    write_images(folder, 8)
    return folder


@pytest.mark.parametrize("model", ["ddpm", "nfdm", "diffflow", "dinof"])
def test_a_killed_run_ends_with_the_same_bits(model: str, csv: Path, tmp_path: Path) -> None:
    if model == "dinof":
        pytest.importorskip("zuko")
    config = configure(model, data=str(csv), condition="price,cut", label_dropout=0.3, **TINY)
    train(config, tmp_path / "whole", progress=False)
    train_until_killed(config, tmp_path / "run", 3)
    train(config, tmp_path / "run", resume=True, progress=False)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_several_processes(csv: Path, tmp_path: Path) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    words = ["train", "ddpm", str(csv), "--condition", "cut,price", *flags]
    run_processes(1, *words, "--out", str(tmp_path / "alone"))
    for more in ("--no-shard", "--shard"):
        run_processes(2, *words, more, "--out", str(tmp_path / more))
        assert_like(tmp_path / more, tmp_path / "alone")


@pytest.mark.parametrize("net", ["mlp", "unet"])
@pytest.mark.parametrize("model", ["ddpm", "diffflow", "nfdm", "dinof"])
def test_labels_of_images(model: str, net: str, images: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = TINY | {"net": net, "condition": "label", "label_dropout": 0.2}
    if net == "unet":
        del values["width"], values["depth"]
        values |= {"unet_base": 8, "unet_mults": "1", "unet_blocks": 1, "unet_attention": "off"}
    more = {"dinof": {"flow": "none"}, "nfdm": {"forward": "linear"} if net == "mlp" else {}}
    values |= {"num_steps": 3} if model in ("diffflow", "nfdm") else {}
    values |= {"timesteps": 5} if model == "ddpm" else {}
    train(configure(model, data=str(images), **values, **more.get(model, {})), tmp_path / "run",
          progress=False)  # fmt: skip
    run = load_run(tmp_path / "run")
    assert run.record.conditions is not None
    assert run.record.conditions.num_classes == 2
    options: dict[str, Any] = {} if model != "dinof" else {"num_steps": 3}
    samples = [run.sample(4, given={"label": label}, **options) for label in (0, 1)]
    assert samples[0].shape == (4, 1, 8, 8)
    mixed = run.sample(4, given=[0, 1, 0, 1], units="training", **options)
    one, two = (run.sample(4, given=[i] * 4, units="training", **options) for i in (0, 1))
    assert torch.allclose(mixed[::2], one[::2], atol=1e-4)
    assert torch.allclose(mixed[1::2], two[1::2], atol=1e-4)
    # A U-Net's value starts at zero, so the label has had some steps to matter.
    assert not torch.equal(one, two)
    if model == "ddpm":
        scores = [run.log_prob(samples[0], given={"label": label}) for label in (0, 1)]
        assert not torch.equal(*scores)
        with pytest.raises(ValueError, match=r"conditioned on label \(0 to 1\)"):
            run.log_prob(samples[0])
        assert evaluate(tmp_path / "run", 60, figures=False, ode_n=0)["bound_n"] == 60


def test_records_of_runs_without_conditions(csv: Path, tmp_path: Path) -> None:
    train(configure("ddpm", data=str(csv), **TINY), tmp_path / "run", progress=False)
    meta = load_latest(tmp_path / "run" / "checkpoints").meta
    assert "conditions" not in meta["data"]
    assert not {"condition", "label_dropout"} & {*meta["config"]}
    run = load_run(tmp_path / "run")
    assert run.record.conditions is None
    with pytest.raises(ValueError, match=r"guidance=2\.0: the sampler of ddpm has .*; leave"):
        run.sample(3, units="training", guidance=2.0)
    with pytest.raises(ValueError, match="expected no given, because the run has no condition"):
        run.sample(3, units="training", given={"cut": "good"})
    conditional = configure("ddpm", data=str(csv), condition="cut", **TINY)
    with pytest.raises(ValueError, match="condition='cut': the run to resume has None"):
        train(conditional, tmp_path / "run", resume=True)


def test_other_data_than_those_of_the_run(csv: Path, tmp_path: Path) -> None:
    config = configure("ddpm", data=str(csv), condition="cut", **TINY)
    train(config, tmp_path / "run", progress=False)
    rows = FRAME[:200].assign(cut=np.roll(FRAME.cut[:200].astype(str), 1))
    rows.to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(ValueError, match="its values have changed since the run began"):
        evaluate(tmp_path / "run", data=str(tmp_path / "other.csv"))
    run, other = load_run(tmp_path / "run"), open_dataset(FRAME[:200], condition="price")
    with pytest.raises(ValueError, match="expected the condition of the run, cut, got price"):
        run.record.require(other)


def test_guidance_needs_samples_without_conditions(csv: Path, tmp_path: Path) -> None:
    config = configure("ddpm", data=str(csv), condition="cut,price", label_dropout=0.0, **TINY)
    train(config, tmp_path / "run", progress=False)
    run, given = load_run(tmp_path / "run"), {"cut": "good", "price": 0.0}
    assert torch.equal(run.sample(3, given=given, guidance=1.0), run.sample(3, given=given))
    with pytest.raises(
        ValueError, match=r"guidance=2\.0: expected a run .* label_dropout above 0"
    ):
        run.sample(3, given=given, guidance=2.0)


@pytest.mark.filterwarnings("ignore:evaluate. distances are left out")
def test_frames_given_with_spaces_in_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({" x ": rng.normal(size=60), "y": rng.normal(size=60)})
    config = configure("ddpm", timesteps=3, width=8, depth=1, steps=2, warmup=1, batch_size=8,
                       threads=1, condition="x")  # fmt: skip
    train(config, tmp_path / "run", data=frame, progress=False)
    run = load_run(tmp_path / "run")
    samples = run.sample_frame(60, given=frame)
    assert [*samples.columns] == ["y", "x"]
    assert [*samples.x] == [*frame[" x "]]
    assert [*run.impute(frame)[0].x] == [*frame[" x "]]


def test_paths_have_the_conditions(tmp_path: Path) -> None:
    frame = FRAME[:200].assign(z=np.arange(200.0)[::-1])
    config = configure("diffflow", condition="cut,price", **TINY)
    train(config, tmp_path / "run", data=frame, progress=False)
    run, data = load_run(tmp_path / "run"), open_dataset(frame, condition="cut,price")
    evaluate(tmp_path / "run", 20, data=frame, ode_n=0)
    assert (tmp_path / "run" / "figures" / "trajectories.png").exists()
    recipe, x0 = run.recipe.given(data.given_of("test")), data.test[:2]
    assert "states, drifts and scores are finite" in recipe.where_not_finite(x0, 0, 0)
    other = run.recipe.given(data.given_of("train"))
    assert not torch.equal(recipe.sample_losses(x0, 0, 0), other.sample_losses(x0, 0, 0))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_data_sets_in_memory(tmp_path: Path) -> None:
    data = open_dataset(FRAME[:200], condition="cut")
    config = configure("ddpm", condition="cut", **TINY)
    train(config, tmp_path / "run", data=data, progress=False)
    assert load_run(tmp_path / "run").record.conditions == data.conditions
    with pytest.raises(ValueError, match="expected that of the dataset in memory, which has cut"):
        train(config.replaced(condition="price"), tmp_path / "other", data=data)


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        ("flow", {}, "the flows of model='flow' take no context"),
        ("ffjord", {}, "the flows of model='ffjord' take no context"),
        ("dinof", {"is_image": True}, "Glow, takes no context, .* take flow='none', or nfdm"),
        ("diffflow", {"is_image": True, "prior": "flow"}, "Glow, .* take prior='normal'"),
        ("ddpm", {"condition": None, "label_dropout": 0.1}, "only for runs with a condition"),
        ("diffflow", {"cuda_graph": "on"}, "a step that is one CUDA graph has no condition"),
    ],
)
def test_what_is_refused(model: str, values: dict[str, Any], message: str) -> None:
    is_image = values.get("is_image", False)
    own = {name: value for name, value in values.items() if name != "is_image"}
    with pytest.raises(ValueError, match=message):
        resolve(configure(model, **{"data": "x", "condition": "a", **own}), is_image=is_image)
