"""Evaluation: each number against its definition, and the same numbers for the same seed."""

from __future__ import annotations

import errno
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import write_table

from diffflow_ext import NoiseKey
from diffflow_ext.data import open_dataset, toy_entropy
from diffflow_ext.functional import memory
from diffflow_ext.metrics import c2st, energy_distance, gaussian_nll, sliced_wasserstein
from diffflow_ext.training import (
    configure,
    evaluate,
    format_table,
    load_run,
    train,
)
from diffflow_ext.training.config.schedules import sampling_grid
from diffflow_ext.training.evaluation import evaluate as evaluate_module
from diffflow_ext.training.evaluation import sampling
from diffflow_ext.training.evaluation.table import spell
from diffflow_ext.training.store.directory import RunDirectory

pytest.importorskip("matplotlib")

N = 120


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on 2000 rows of three columns, of which 200 are held out."""
    root = tmp_path_factory.mktemp("evaluated")
    data = str(write_table(root / "points.csv", rows=2000, columns=3, seed=1))
    config = configure(data=data, steps=60, num_steps=5, width=16, depth=1, threads=1)
    train(config, root / "run")
    return root / "run"


@pytest.fixture(scope="module")
def result(run: Path) -> dict[str, Any]:
    return evaluate(run, N, seed=3, device="cpu")


def test_result_is_written_and_repeats(run: Path, result: dict[str, Any]) -> None:
    text = (run / "evaluation.json").read_text()
    assert json.loads(text) == result
    evaluate(run, N, seed=3, device="cpu", figures=False)
    assert (run / "evaluation.json").read_text() == text
    other = evaluate(run, N, seed=4, device="cpu", figures=False)
    assert other["energy_distance"] != result["energy_distance"]
    assert other["energy_distance_floor"] == result["energy_distance_floor"]
    assert (result["n"], result["step"], result["seed"]) == (N, 60, 3)


def test_pictures_are_drawn(run: Path, result: dict[str, Any]) -> None:
    names = {path.name for path in (run / "figures").iterdir() if path.stat().st_size > 0}
    assert names == {"samples.png", "trajectories.png", "loss.png"}


def test_bound_is_the_mean_on_test_data(run: Path, result: dict[str, Any]) -> None:
    loaded = load_run(run)
    dataset = open_dataset(loaded.config.data.data)
    test = dataset.test[:N]
    key = NoiseKey(3, stream=sampling.EVALUATION_STREAM)
    with torch.no_grad():
        nats = -loaded.model.elbo(test, sampling_grid(loaded.config), key).double()
    assert result["bound_n"] == N
    assert result["bound"] == pytest.approx(float(nats.mean()), rel=1e-12)
    assert result["bound_median"] == pytest.approx(float(nats.median()), rel=1e-12)
    assert result["bound_error"] == pytest.approx(float(nats.std()) / math.sqrt(N), rel=1e-12)
    gaussian, _ = gaussian_nll(dataset.train, test)
    assert result["gaussian_nll"] == pytest.approx(gaussian, rel=1e-12)
    assert result["bound_minus_gaussian"] == pytest.approx(result["bound"] - gaussian, abs=1e-12)


def test_bound_in_data_units_undoes_the_standardising(run: Path, result: dict[str, Any]) -> None:
    loaded = load_run(run)
    assert loaded.record.encoding is not None
    shift = sum(math.log(column.std) for column in loaded.record.encoding.columns)
    assert result["bound_data_units"] - result["bound"] == pytest.approx(shift, abs=1e-9)
    assert result["bound_data_units_error"] == pytest.approx(result["bound_error"])
    rows = Path(loaded.config.data.data).read_text().split()[1:]
    raw = torch.tensor([[float(v) for v in line.split(",")] for line in rows])
    assert shift == pytest.approx(float(raw.std(0).log().sum()), abs=0.1)


def test_distances_stand_beside_their_floor(run: Path, result: dict[str, Any]) -> None:
    loaded = load_run(run)
    dataset = open_dataset(loaded.config.data.data)
    samples = loaded.sample(N, seed=3, units="training")
    for measure in (energy_distance, sliced_wasserstein):
        name = measure.__name__
        assert result[name] == pytest.approx(measure(samples, dataset.test[:N]), rel=1e-12)
        # Four disjoint parts of the training data, in an order that is none of our business.
        order = torch.randperm(4 * N, generator=torch.Generator().manual_seed(0))
        parts = dataset.train[: 4 * N][order].split(N)
        floors = [measure(part, dataset.test[:N]) for part in parts]
        assert result[f"{name}_floor"] == pytest.approx(sum(floors) / 4, rel=1e-12)
        assert result[f"{name}_ratio"] == result[name] / result[f"{name}_floor"]
        spread = float(np.std(floors, ddof=1))
        assert result[f"{name}_floor_spread"] == pytest.approx(spread, rel=1e-9)
    accuracy = c2st(samples, dataset.test[:N]).accuracy
    assert result["c2st"] == pytest.approx(accuracy)
    assert abs(result["c2st_floor"] - 0.5) < 0.15


def test_n_is_cut_to_what_the_data_have(run: Path) -> None:
    assert evaluate(run, 10_000, device="cpu", figures=False)["n"] == 200


def test_too_few_samples_leave_the_likelihoods(run: Path) -> None:
    with pytest.warns(UserWarning, match="at least 50 samples and as many data, got n=49, 1600"):
        result = evaluate(run, 49, device="cpu")
    assert result["n"] == 0
    assert result["bound_n"] == 49
    assert math.isfinite(result["bound"])
    assert "energy_distance" not in result
    assert "energy distance" not in format_table(result)
    assert list((run / "figures").iterdir())


def test_pictures_that_cannot_be_drawn_lose_no_numbers(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*args: object) -> None:
        raise ImportError("expected matplotlib")

    monkeypatch.setattr(evaluate_module, "draw_pictures", missing)
    with pytest.warns(UserWarning, match="pictures are left out: expected matplotlib"):
        assert evaluate(run, 60, device="cpu")["n"] == 60


def test_columns_that_repeat_leave_out_the_gaussian(tmp_path: Path) -> None:
    values = torch.randn(600, 1, generator=torch.Generator().manual_seed(0)).expand(600, 2)
    np.save(tmp_path / "twice.npy", values.numpy())
    config = configure(
        data=str(tmp_path / "twice.npy"), steps=3, batch_size=8, width=4, model="ddpm"
    )
    with pytest.warns(UserWarning, match=r"copies of others.*\(x2\)"):
        train(config, tmp_path / "run", progress=False)
    with (
        pytest.warns(UserWarning, match=r"copies of others.*\(x2\)"),
        pytest.warns(UserWarning, match="no Gaussian to compare with"),
    ):
        result = evaluate(tmp_path / "run", device="cpu", figures=False)
    assert result["gaussian_nll"] is None
    assert "against a Gaussian" not in format_table(result)


def test_changed_data_are_refused(run: Path, result: dict[str, Any]) -> None:
    data = Path(load_run(run).config.data.data)
    text = data.read_text()
    head, rest = text.split("\n", 1)
    try:
        data.write_text("c0,c1,other\n" + rest)
        with pytest.raises(
            ValueError, match="expected column 3 to be 'c2' as in the run, got 'other'"
        ):
            evaluate(run, N, device="cpu")
        data.write_text(head + "\n" + rest.replace("1", "2"))
        with pytest.raises(ValueError, match="values have changed"):
            evaluate(run, N, device="cpu")
    finally:
        data.write_text(text)


def test_table_shows_the_numbers(result: dict[str, Any]) -> None:
    table = format_table(result)
    for name in ("bound", "ode", "gaussian_nll", "bound_data_units", "ode_data_units"):
        assert f"{result[name]:.4f}" in table
    for name in ("energy_distance", "sliced_wasserstein"):
        assert f"{result[name]:.5f}" in table
        assert f"{result[f'{name}_floor']:.5f}" in table
        assert f"{result[f'{name}_ratio']:.2f} times real data" in table
        assert f"{result[f'{name}_floor']:.5f} ± {result[f'{name}_floor_spread']:.2g}" in table
    assert f"{result['c2st']:.5f}" in table
    assert all(len(line) <= 99 for line in table.splitlines())
    moved = format_table({**result, "data": "/a/long/folder/fruit.csv"})
    assert moved.startswith("fruit.csv, ")


@pytest.mark.parametrize(
    ("value", "spread", "said"),
    [
        (0.74, 0.2, "0.74 times real data, within scatter"),
        (1.3, 0.2, "1.30 times real data, within scatter"),
        (1.5, 0.2, "1.50 times real data"),
        (0.5, 0.2, "0.50 times real data, no better"),
        (1.3, None, "1.30 times real data"),
    ],
)
def test_a_distance_is_read_beside_the_scatter_of_real_data(
    result: dict[str, Any], value: float, spread: float | None, said: str
) -> None:
    distance = {"energy_distance": value, "energy_distance_floor": 1.0}
    more = {"energy_distance_ratio": value, "energy_distance_floor_spread": spread}
    line = next(
        line
        for line in format_table({**result, **distance, **more}).splitlines()
        if line.startswith("energy distance")
    )
    assert line.endswith(f"  {said}")


def test_data_that_have_moved(run: Path, result: dict[str, Any], tmp_path: Path) -> None:
    data = Path(load_run(run).config.data.data)
    moved, out = tmp_path / "elsewhere.csv", tmp_path / "a" / "b"
    data.rename(moved)
    before = tree(run)
    try:
        with pytest.raises(FileNotFoundError, match=r"if they have moved, .*\(--data PATH\)"):
            evaluate(run, N, seed=3, device="cpu")
        again = evaluate(run, N, seed=3, device="cpu", figures=False, data=moved, out=out)
        assert again == result
        other = write_table(tmp_path / "other.csv", rows=2000, columns=3, seed=2)
        with pytest.raises(ValueError, match="values have changed since the run began"):
            evaluate(run, N, seed=3, device="cpu", data=other, out=out)
        other.write_text("a,b\n" + "1,2\n" * 30)
        with pytest.raises(ValueError, match=r"that varies.*\. The run's own `key`"):
            evaluate(run, N, seed=3, device="cpu", data=other, out=out)
    finally:
        moved.rename(data)
    assert json.loads((out / "evaluation.json").read_text()) == result
    assert tree(run) == before


def test_a_run_that_may_not_be_changed(
    run: Path, result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is never written, also not where the system would allow it (root may all)."""
    before, real = tree(run), tempfile.TemporaryFile
    evaluate(run, 60, device="cpu", ode_n=0, out=tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"evaluation.json", "figures"}
    assert (tmp_path / "out" / "figures" / "loss.png").exists()
    assert tree(run) == before
    evaluate(run, 60, device="cpu", ode_n=0, out=tmp_path / "out")
    # In the folder of a run, pictures of earlier versions have the mark of matplotlib alone.
    old = b"\x89PNG tEXtSoftware\0Matplotlib version3.10"
    (tmp_path / "out" / "figures" / "loss.png").write_bytes(old)
    assert RunDirectory(tmp_path / "out").pictures_of_others()
    (tmp_path / "out" / "config.toml").write_bytes((run / "config.toml").read_bytes())
    assert not RunDirectory(tmp_path / "out").pictures_of_others()
    (tmp_path / "out" / "config.toml").unlink()
    (tmp_path / "out" / "figures" / "loss.png").write_bytes(b"\x89PNG of somebody else")
    with pytest.raises(ValueError, match=r"no picture of another program .*loss\.png'; move it"):
        evaluate(run, 60, device="cpu", ode_n=0, out=tmp_path / "out")
    assert (tmp_path / "out" / "figures" / "loss.png").read_bytes().endswith(b"somebody else")
    (tmp_path / "out" / "figures" / "loss.png").unlink()
    (tmp_path / "out" / "evaluation.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"without evaluation\.json of another program"):
        evaluate(run, 60, device="cpu", ode_n=0, out=tmp_path / "out")

    def refuse(**options: Any) -> Any:
        if options["dir"] == run:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(**options)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OSError, match=r"Permission denied; name another one .*\(--out FOLDER\)"):
        evaluate(run, 60, device="cpu", ode_n=0)
    assert tree(run) == before


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """The files of a folder, with their sizes and times of change."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def test_estimators_are_those_of_the_model(run: Path, result: dict[str, Any]) -> None:
    assert list(result["estimators"]) == ["bound", "ode"]
    assert result["ode_n"] == N
    loaded = load_run(run)
    test = open_dataset(loaded.config.data.data).test
    sde: Any = loaded.model
    ode = -sde.log_prob(test[:40], sampling_grid(loaded.config, 50)).double()
    more = evaluate(run, N, seed=3, device="cpu", figures=False, num_paths=4, ode_n=40)
    assert list(more["estimators"]) == ["bound", "importance_weighted", "ode"]
    assert more["bound"] == result["bound"]
    assert more["importance_weighted"] <= more["bound"] + 3 * more["bound_error"]
    assert more["ode_n"] == 40
    assert more["ode"] == pytest.approx(float(ode.mean()), rel=1e-6)
    without = evaluate(run, N, seed=3, device="cpu", figures=False, ode_n=0)
    assert list(without["estimators"]) == ["bound"]


def test_another_sampler(run: Path, result: dict[str, Any]) -> None:
    loaded = load_run(run)
    options = {"num_steps": 9, "stochasticity": 0.0, "solver": "heun"}
    again = evaluate(run, N, seed=3, device="cpu", figures=False, ode_n=0, **options)
    assert (result["num_steps"], again["num_steps"]) == (5, 9)
    assert again["sampler"] == {"stochasticity": 0.0, "solver": "heun"}
    assert "stochasticity 0.0, solver heun" in format_table(again)
    samples = loaded.sample(N, seed=3, **options, units="training")
    test = open_dataset(loaded.config.data.data).test[:N]
    assert again["energy_distance"] == pytest.approx(energy_distance(samples, test), rel=1e-12)
    assert again["energy_distance"] != result["energy_distance"]
    assert again["bound"] != result["bound"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 0.5}, "eta=0.5: the sampler of diffflow has num_steps, stochasticity"),
        ({"num_paths": 0}, "num_paths=0: expected at least 1"),
        ({"ode_n": -1}, "ode_n=-1: expected at least 0"),
        ({"extractor": "x.safetensors"}, "the data are not images"),
        ({"n": 1}, "n=1: expected at least 2"),
    ],
)
def test_options_that_do_not_suit(run: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(run, **{"n": N, "device": "cpu", "figures": False, **options})


def test_table_of_a_set_with_known_entropy(result: dict[str, Any]) -> None:
    entropy = toy_entropy("checkerboard")
    assert entropy is not None
    table = format_table({**result, "entropy": entropy})
    assert f"{result['bound_data_units'] - entropy:+.4f} against the entropy" in table
    assert "entropy" not in format_table(result)


def test_numbers_that_are_not_finite_are_null(result: dict[str, Any]) -> None:
    text = spell({**result, "bound": math.inf, "bound_error": math.nan})
    assert json.loads(text)["bound"] is None
    assert json.loads(text)["bound_error"] is None


def test_samples_in_data_units(run: Path) -> None:
    loaded = load_run(run)
    record = loaded.record
    samples = loaded.sample(500, seed=0, units="training").double()
    assert record.encoding is not None
    pairs = [(column.mean, column.std) for column in record.encoding.columns]
    mean, std = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    torch.testing.assert_close(record.in_data_units(samples.float()), samples * std + mean)


def test_numbers_do_not_depend_on_the_chunks(
    run: Path, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "VECTORS_AT_A_TIME", 50)
    again = evaluate(run, N, seed=3, device="cpu", figures=False)
    for name in ("bound", "bound_error", "ode", "energy_distance", "sliced_wasserstein"):
        assert again[name] == pytest.approx(result[name], rel=1e-4), name


def test_samples_beyond_memory_are_refused_before_the_first(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_run(run)
    monkeypatch.setattr(memory, "memory_of", lambda _: 1000)
    with pytest.raises(ValueError, match=r"^sample: n=100: .* 1,000 bytes .*; draw fewer"):
        loaded.sample(100, seed=0, units="training")


def test_no_samples_are_refused(run: Path) -> None:
    for n, seed, said in ((0, 0, "n=0: expected a whole number from 1"), (1, -1, "seed=-1: exp")):
        with pytest.raises(ValueError, match=said):
            load_run(run).sample(n, seed=seed, units="training")


def test_what_half_the_steps_of_the_equation_change(run: Path) -> None:
    result = evaluate(run, 60, seed=3, device="cpu", figures=False, ode_n=20)
    loaded = load_run(run)
    test, sde = open_dataset(loaded.config.data.data).test[:16], loaded.model
    fine, coarse = (
        -sde.log_prob(test, sampling_grid(loaded.config, n)).double()
        for n in (50, 25)  # pyright: ignore
    )
    assert result["ode_step_error"] == pytest.approx(float((coarse - fine).mean()), rel=1e-4)
    line = next(x for x in format_table(result).splitlines() if "with half the steps" in x)
    assert f"{result['ode_step_error']:+.4f}" in line
