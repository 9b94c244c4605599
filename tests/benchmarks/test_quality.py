"""The comparisons run, go on where they were cut off, and make the page; measures hold."""

from __future__ import annotations

import json
import math
import re
import subprocess
import time

import numpy as np
import pytest
import torch
from torch import nn
from training_runs import write_images

from benchmarks.common import machine
from benchmarks.common.reports import read_samples
from benchmarks.pages import defaults, pictures, quality, tables, write
from benchmarks.quality import (
    compare_2d,
    compare_images,
    compare_tables,
    defaults_sweep,
    digits_by_class,
    dinof_sweep,
    imputation,
    trainings,
)
from benchmarks.quality.measures import Counter, drawn, energy_floor, energy_ratios
from benchmarks.quality.trainings import Training
from diffflow_ext.data import Dataset, open_dataset
from diffflow_ext.metrics import energy_distance
from diffflow_ext.nets import FourierMLP
from diffflow_ext.training import LoadedRun, configure, load_run
from diffflow_ext.training.config.defaults import resolve
from diffflow_ext.training.recipes.build import build_recipe

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(**changes) -> Training:
    fields = {"data": "8-gaussians", "steps": 3, "batch_size": 8, "width": 4}
    return Training("ddpm", fields | changes)


@pytest.fixture(scope="session")
def reports(tmp_path_factory):
    """Every comparison of vectors with tiny numbers."""
    pytest.importorskip("zuko")
    root = tmp_path_factory.mktemp("comparisons")
    table = root / "rings.csv"
    rows = open_dataset("four-rings").train[:1000].numpy()
    np.savetxt(table, rows, delimiter=",", header="a,b", comments="")

    before = torch.get_num_threads()

    def run(module, *words):
        where = [
            "--out",
            str(root / module.__name__.rpartition(".")[2]),
            "--results",
            str(root / "results"),
        ]
        module.main(["--smoke", *where, *words])

    minutes = ["--minutes", "0.005"]
    run(compare_2d, "--sets", "checkerboard", "--models", "diffflow", "ddpm", *minutes)
    models = ["gaussian", "gmm", "spline", "diffflow"]
    run(compare_tables, "--sets", str(table), "--models", *models, *minutes)
    run(dinof_sweep, "--sets", "2-spirals", "--cutoffs", "0.2", *minutes)
    torch.set_num_threads(before)
    return root, run, minutes


def read(root, name):
    return json.loads((root / "results" / f"{name}.json").read_text())


# --- reports -------------------------------------------------------------------------------------


def test_report_of_2d_says_what_was_done(reports):
    root, *_ = reports
    report = read(root, "compare_2d_checkerboard")
    assert list(report["models"]) == ["diffflow", "ddpm"]
    one = report["models"]["diffflow"]
    config = root / "compare_2d/checkerboard/diffflow/run/config.toml"
    assert one["config"] == trainings.tomllib.loads(config.read_text())
    assert "width = 4" in config.read_text()
    assert 1 <= one["steps"] <= one["steps_asked_for"]
    assert one["train_cpu_seconds"] > 0
    assert set(one["likelihood"]) == {"bound", "importance_weighted", "ode"}
    assert [way["evaluations"] for way in one["sampling"]] == [2.0, 2.0]
    assert report["machine"]["threads"] == 1
    assert report["entropy"] == pytest.approx(math.log(6))
    samples = read_samples(root / "results" / report["samples"])
    assert set(samples) == {"data", "diffflow", "ddpm"}
    assert samples["diffflow"].shape == (compare_2d.SMOKE.shown, 2)


def test_trainings_take_the_time_that_was_asked_for(reports):
    root, *_ = reports
    for name, one in read(root, "compare_2d_checkerboard")["models"].items():
        pilot = json.loads((root / f"compare_2d/checkerboard/{name}/pilot.json").read_text())
        asked = max(1, round(60 * 0.005 / pilot["seconds_per_step"]))
        assert one["steps_asked_for"] == asked


def test_finished_parts_are_not_done_again(reports, monkeypatch):
    root, run, minutes = reports
    monkeypatch.setattr(trainings, "train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(compare_2d, "likelihood", lambda *_, **__: pytest.fail("measured again"))
    before = read(root, "compare_2d_checkerboard")["models"]
    run(compare_2d, "--sets", "checkerboard", "--models", "diffflow", "ddpm", *minutes)
    assert read(root, "compare_2d_checkerboard")["models"] == before


def test_parts_with_other_arguments_are_not_taken(reports):
    root, run, _ = reports
    words = ("--sets", "checkerboard", "--models", "ddpm", "--minutes", "0.5")
    with pytest.raises(ValueError, match=r"ddpm: expected a part with .*0\.5.*, found one"):
        run(compare_2d, *words)
    assert read(root, "compare_2d_checkerboard")["minutes"] == 0.005


def test_gaussian_of_the_table_is_that_of_numpy(reports):
    root, *_ = reports
    found = read(root, "compare_tables_rings")["models"]["gaussian"]["likelihood"]["exact"]
    data = open_dataset(str(root / "rings.csv"))
    train, test = data.train.double().numpy(), data.test[: found["n"]].double().numpy()
    covariance, centred = np.cov(train.T, bias=True), test - train.mean(0)
    square = np.einsum("ni,ij,nj->n", centred, np.linalg.inv(covariance), centred)
    nll = 0.5 * (square + np.linalg.slogdet(covariance)[1] + 2 * math.log(2 * math.pi))
    assert found["nats"] == pytest.approx(nll.mean(), abs=1e-5)
    assert found["error"] == pytest.approx(nll.std(ddof=1) / math.sqrt(len(nll)), abs=1e-5)


def test_sweep_has_both_ends(reports):
    root, *_ = reports
    parts = read(root, "dinof_sweep_2-spirals")["parts"]
    assert list(parts) == ["flow", "0.2", "diffusion"]
    assert [one["t_cutoff"] for one in parts.values()] == [None, 0.2, 1.0]
    # The sampler takes 1000 steps for the whole time, and a flow alone none.
    assert [one["sampling"]["evaluations"] for one in parts.values()] == [0.0, 200.0, 1000.0]


def test_imputation_scores_draws_of_hidden_values(tmp_path, monkeypatch):
    monkeypatch.setattr(imputation, "DATA", "checkerboard")
    monkeypatch.setattr(
        imputation, "open_dataset", lambda name: open_dataset(name, num_points=500)
    )
    where = ["--smoke", "--minutes", "0.005", "--out", str(tmp_path / "out")]
    models = ["marginal", "diffflow", "masks"]
    with pytest.warns(UserWarning, match="fewer than 5 candidates count"):
        imputation.main([*where, "--results", str(tmp_path), "--models", *models])
    report = json.loads((tmp_path / "imputation_checkerboard.json").read_text())
    assert [*report["models"]] == models
    for one in report["models"].values():
        assert one["crps"]["mean"] > 0.0
        assert 0.0 <= one["within_80"] <= 1.0


def test_crps_is_that_of_normals():
    """For y = 0 and draws of N(0, 1) it is (sqrt(2) - 1) / sqrt(pi)."""
    draws = torch.randn((400, 2000), generator=torch.Generator().manual_seed(0))
    scores = imputation.crps(draws, torch.zeros(2000))
    assert float(scores.mean()) == pytest.approx((math.sqrt(2) - 1) / math.sqrt(math.pi), abs=2e-3)


def test_stages_of_diffflow_follow_its_updates():
    assert compare_images.stages(1000) == "0:3,470:6,790:12,960:30"
    each = [3] * 47 + [6] * 32 + [12] * 17 + [30] * 4
    assert compare_images.mean_num_steps() == pytest.approx(sum(each) / 100)


@pytest.mark.slow
def test_sweep_of_defaults_changes_one_thing(tmp_path, monkeypatch):
    write_images(tmp_path / "mnist", 28, count=500, held_out=100)
    monkeypatch.setenv("DIFFFLOW_DATA", str(tmp_path))
    where = ["--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    for name in ("OF_VECTORS", "OF_IMAGES"):
        variants = getattr(defaults_sweep, name)
        few = {part: variants[part] for part in ("default", "g x 2")}
        monkeypatch.setattr(defaults_sweep, name, few)
    monkeypatch.setattr(defaults_sweep, "SEEDS_OF_VECTORS", (0, 1))
    defaults_sweep.main(["--smoke", *where, "--sets", "mnist", "olympic-rings"])
    results = write.read_results(tmp_path / "results")
    for name, g, seeds in (("mnist", 3.0, 1), ("olympic-rings", 0.2, 2)):
        variants = list(results[f"defaults_sweep_{name}"]["variants"].values())
        values = [(one["variant"], one["config"]["model"]["diffusion_start"]) for one in variants]
        assert values == [("default", g), ("g x 2", 2 * g)] * seeds
        plain, double = (one["config"] for one in variants[:2])
        plain["model"]["diffusion_start"] *= 2
        plain["model"]["diffusion_end"] *= 2
        plain["network"]["score_scale"] = double["network"]["score_scale"]
        assert plain == double
    for block in ("bounds", "samples", "costs", "conditions"):
        assert defaults.BLOCKS[f"defaults-{block}"](results) != tables.MISSING


@pytest.mark.slow
def test_images_run(tmp_path, monkeypatch):
    write_images(tmp_path / "mnist", 28, count=500, held_out=100)
    monkeypatch.setenv("DIFFFLOW_DATA", str(tmp_path))
    where = ["--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    words = ["--smoke", *where, "--models", "diffflow", "ddpm", "straight", "--minutes", "0.005"]
    compare_images.main(words)
    report = json.loads((tmp_path / "results/compare_images_mnist16.json").read_text())
    assert re.fullmatch(r"FD\(classifier-16x16@[0-9a-f]{12}, n=80\)", report["label"])
    assert set(report["models"]["diffflow"]["bound_by_steps"]) == {"1", "2"}
    assert [one["num_steps"] for one in report["models"]["straight"]["sampling"]] == [1, 2, 3] * 2
    page = "<!-- begin steps-images -->\n<!-- end steps-images -->\n"
    results = write.read_results(tmp_path / "results")
    assert write.filled(page, quality.BLOCKS, results).count("DDPM, DDIM, N =") == 2
    drawn_paths = pictures.draw_pictures(results, tmp_path / "results", tmp_path)
    assert all(path.stat().st_size > 1000 for path in drawn_paths)


@pytest.mark.slow
def test_digits_are_judged_by_class(tmp_path, monkeypatch):
    write_images(tmp_path / "mnist", 28, count=500, held_out=100)
    monkeypatch.setenv("DIFFFLOW_DATA", str(tmp_path))
    where = ["--out", str(tmp_path / "runs"), "--results", str(tmp_path)]
    digits_by_class.main(["--smoke", *where, "--minutes", "0.005"])
    results = write.read_results(tmp_path)
    report = results["digits_by_class_mnist16"]
    assert report["held_out"]["of_class"] <= 1.0
    for one in report["models"].values():
        assert one["config"]["data"]["condition"] == "label"
        assert [way["guidance"] for way in one["sampling"]] == [*digits_by_class.GUIDANCE]
        assert all(len(way["of_each_class"]) == 2 for way in one["sampling"])
    text = quality.BLOCKS["digits-by-class"](results)
    assert text.count("w = 0 |") == 2
    (path,) = pictures.draw_pictures(results, tmp_path, tmp_path)
    assert path.stat().st_size > 1000


def test_page_is_made_from_the_reports_alone(reports, tmp_path):
    root, *_ = reports
    names, results = quality.BLOCKS, write.read_results(root / "results")
    slots = [f"<!-- begin {n} -->\nstale words\n<!-- end {n} -->\nprose\n" for n in names]
    text = write.filled("".join(slots), names, results)
    assert text.count("prose\n") == len(names)
    assert "stale words" not in text
    bound = results["compare_2d_checkerboard"]["models"]["diffflow"]["likelihood"]["bound"]
    cell = f"{bound['nats']:.2f} ± {bound['error']:.2f}"
    assert re.search(rf"\| DiffFlow, bound \| (\*\*)?{re.escape(cell)}", text)
    assert write.filled(text, names, results) == text
    drawn_paths = pictures.draw_pictures(results, root / "results", tmp_path)
    assert [path.stem for path in drawn_paths] == [
        "compare_2d", "compare_2d_steps", "dinof_sweep_2-spirals",
    ]  # fmt: skip


# --- training within a time ----------------------------------------------------------------------


def test_training_stops_when_its_time_is_up(tmp_path):
    training = tiny(steps=10**6)
    start = time.process_time()
    done = trainings.trained(training, tmp_path, cap_minutes=1.5 / 60)
    assert 0 < done.steps < training.fields["steps"]
    assert done.head()["cut_off"]
    assert 1.0 < done.cpu_seconds < time.process_time() - start + 0.1
    assert trainings.trained(training, tmp_path, cap_minutes=1.5 / 60) == done


def test_interrupted_training_begins_anew(tmp_path, monkeypatch):
    training, real, asked = tiny(), trainings.train, []

    def stopped(config, run, **options):
        real(config, run, **options)
        raise trainings.Interrupted(2, run)

    def noted(config, run, **options):
        asked.append(run)
        return real(config, run, **options)

    monkeypatch.setattr(trainings, "train", stopped)
    with pytest.raises(KeyboardInterrupt, match="begins anew"):
        trainings.trained(training, tmp_path)
    monkeypatch.setattr(trainings, "train", noted)
    assert trainings.trained(training, tmp_path) == trainings.trained(training, tmp_path)
    assert asked == [tmp_path / "run"]


def test_written_reports_and_pages_are_no_changes_of_what_is_measured(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path,
                       check=True, capture_output=True)  # fmt: skip

    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "notebooks").mkdir(parents=True)
    (tmp_path / "code.py").write_text("1")
    (tmp_path / "docs" / "notebooks" / "a.md").write_text("1")
    git("init")
    git("add", "-A")
    git("commit", "-m", "one")
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    (tmp_path / "benchmarks" / "results" / "x.json").write_text("{}")
    (tmp_path / "docs" / "notebooks" / "a.md").write_text("2")
    (tmp_path / "docs" / "notebooks" / "a.png").touch()
    assert machine.machine()["dirty"] is False
    (tmp_path / "code.py").write_text("2")
    assert machine.machine()["dirty"] is True


def test_steps_fit_into_the_time(tmp_path, monkeypatch):
    runs: list[int] = []

    def cost(training, run):
        assert not run.exists()
        run.mkdir()
        runs.append(training.fields["steps"])
        # The first run loads libraries.
        return 0.7 + 0.05 * runs[-1] + 9.0 * (len(runs) == 1)

    monkeypatch.setattr(trainings, "_cost", cost)
    assert trainings.steps_in(tiny(), 2.0, tmp_path, 10) == 2400
    # The pilot was run once.
    count = len(runs)
    assert trainings.steps_in(tiny(), 2.0, tmp_path, 10, growth=2.0) == 1200
    assert len(runs) == count


# --- measures ------------------------------------------------------------------------------------


def test_floor_of_energy_distance_is_that_of_normals():
    """E|X - X'| of standard normals in one dimension is 2 / sqrt(pi)."""
    data = torch.randn(8000, 1, generator=torch.Generator().manual_seed(0))
    assert energy_floor(data, 50) == pytest.approx(2 * 2 / math.sqrt(math.pi) / 50, rel=0.02)


def test_counter_weighs_networks_by_size():
    model = nn.ModuleList([FourierMLP(2, width=4), FourierMLP(2, width=8)])
    counter = Counter(model)
    with counter.watching():
        model[0](torch.tensor(0.5), torch.zeros(10, 2))
        model[0](torch.tensor(0.5), torch.zeros(10, 2))
    model[1](torch.tensor(0.5), torch.zeros(10, 2))
    sizes = [sum(p.numel() for p in net.parameters()) for net in model]
    assert counter.per_sample(10) == pytest.approx(2 * sizes[0] / sum(sizes))


@pytest.mark.parametrize("image", [False, True])
def test_counter_has_all_networks_of_nfdm(image):
    model = configure("nfdm", data="moons", **({"net": "unet"} if image else {}))
    shape = (1, 8, 8) if image else (2,)
    nfdm = build_recipe(resolve(model, is_image=image), shape).module
    g = sum(p.numel() for p in nfdm.parameters()) - Counter(nfdm).whole
    assert 0 <= g < 10


def test_compiled_code_draws_while_time_is_taken(tmp_path, monkeypatch):
    loaded = trainings.trained(tiny(), tmp_path).load()
    hooks = []
    plain = LoadedRun.sample

    def noted(loaded, n, **options):
        hooks.append(any(part._forward_hooks for part in loaded.model.modules()))
        return plain(loaded, n, **options)

    monkeypatch.setattr(LoadedRun, "sample", noted)
    drawn(loaded, 20, 0, 7)
    assert hooks == [False, True]


def test_draws_are_counted_and_independent(tmp_path):
    loaded = trainings.trained(tiny(), tmp_path).load()
    assert load_run(tmp_path / "run").step == 3
    _, cost = drawn(loaded, 20, 0, 7, sampler="ddim")
    assert cost["evaluations"] == 7.0
    data: Dataset = open_dataset("8-gaussians")
    parts = [data.test[:50], data.test[50:100]]
    first, found = energy_ratios(loaded, parts, 3, 4)
    assert len(set(found["ratios"])) == 3
    floor = energy_floor(torch.cat(parts), 50)
    assert found["ratios"][0] == pytest.approx(energy_distance(first, parts[0]) / floor)
