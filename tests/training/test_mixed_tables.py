"""Tables with categories, integers and missing values, from a frame to samples like it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from diffflow_ext.cli import main
from diffflow_ext.data import open_dataset
from diffflow_ext.training import LoadedRun, configure, evaluate, load_run, train
from diffflow_ext.training.evaluation.sample_file import to_frame, write_samples

pytest.importorskip("zuko")
N = 600
RNG = np.random.default_rng(11)


def mixed() -> pd.DataFrame:
    """Returns a table in which every column depends on the first."""
    cut = RNG.choice(["fair", "good", "ideal"], N, p=[0.2, 0.3, 0.5])
    rank = np.searchsorted(["fair", "good", "ideal"], cut)
    length = RNG.normal(rank, 0.5)
    length[::7] = np.nan
    return pd.DataFrame(
        {
            "cut": pd.Categorical(cut),
            "sold": RNG.uniform(size=N) < 0.2 + 0.3 * rank,
            "price": RNG.poisson(200 + 100 * rank).astype("int32"),
            "rating": RNG.integers(1, 6, N),
            "length": length.astype("float32"),
            "income": np.exp(RNG.normal(rank, 2.0)),
        }
    )


FRAME = mixed()


@pytest.fixture(scope="module", params=["frame", "csv"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    folder: Path = tmp_path_factory.mktemp(request.param)
    values: dict[str, Any] = {
        "steps": 60, "batch_size": 64, "threads": 1, "missing": "mask", "width": 16, "depth": 1,
        "num_steps": 3, "warmup": 5,
    }  # fmt: skip
    out = folder / "run"
    if request.param == "frame":
        train(configure("diffflow", **values), out, data=FRAME, progress=False)
    else:
        FRAME.to_csv(folder / "t.csv", index=False)
        config = configure("diffflow", data=str(folder / "t.csv"), **values)
        train(config, out, progress=False)
    return load_run(out)


def test_kinds_are_recorded(run: LoadedRun) -> None:
    assert run.record.encoding is not None
    kinds = {column.name: column.kind for column in run.record.encoding.columns}
    assert kinds == {
        "cut": "category", "sold": "category", "price": "integer", "rating": "category",
        "length": "continuous", "income": "heavy",
    }  # fmt: skip
    assert run.record.event_shape == (7,)


def test_samples_are_like_the_frame(run: LoadedRun) -> None:
    samples = run.sample_frame(400, seed=1)
    assert [*samples.columns] == [*FRAME.columns]
    assert set(samples.cut.unique()) <= {"fair", "good", "ideal"}
    assert set(samples.rating.unique()) <= {1, 2, 3, 4, 5}
    assert samples.price.between(FRAME.price.min(), FRAME.price.max()).all()
    assert samples.length.isna().any()
    assert samples.length.notna().any()
    if run.config.data.data:
        assert samples.price.dtype == np.int64
    else:
        assert samples.dtypes.astype(str).to_dict() == FRAME.dtypes.astype(str).to_dict()
        assert [*samples.cut.cat.categories] == [*FRAME.cut.cat.categories]
    assert samples.equals(run.sample_frame(400, seed=1))
    with pytest.raises(ValueError, match="columns of numbers, cut, sold have texts; take"):
        run.sample(3)
    assert run.sample(3, units="training").shape == (3, 7)


def test_rows_are_scored_from_frames_and_files(run: LoadedRun, tmp_path: Path) -> None:
    rows = FRAME[:50]
    scores = run.log_prob(rows)
    assert bool(scores.isfinite().all())
    assert torch.equal(run.log_prob(rows[[*reversed(FRAME.columns)]].assign(other="x")), scores)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    from diffflow_ext.training.evaluation.run_data import rows_of_run

    read = rows_of_run(run, str(tmp_path / "rows.csv")).values
    assert torch.allclose(run.log_prob(read), scores, rtol=1e-5)
    # Noise of a row depends on its index alone.
    assert torch.allclose(run.log_prob(rows[:20]), scores[:20], rtol=1e-4)
    assert not torch.allclose(run.log_prob(rows, seed=1), scores, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cut": "great"}, "one of 'fair', 'good', 'ideal', got 'great' in row 0"),
        ({"price": 2.5}, "steps of 1 from there, got 2.5 in row 0 .*column 'price'"),
        ({"price": np.nan}, "got nan in row 0.*column had none missing"),
        ({"rating": 9}, "one of 1, 2, 3, 4, 5, got 9 in row 0"),
        ({"income": np.inf}, "got inf in row 0"),
    ],
)
def test_values_that_were_never_seen(run: LoadedRun, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run.log_prob(FRAME[:5].assign(**change))


def test_evaluation_and_files_of_samples(run: LoadedRun, tmp_path: Path) -> None:
    if not run.config.data.data:
        pytest.skip("the program reads files")
    folder = str(Path(run.config.data.data).parent / "run")
    out = str(tmp_path / "s.csv")
    assert main(["sample", folder, "--n=30", f"--out={out}"]) == 0
    samples = pd.read_csv(out)
    assert [*samples.columns] == [*FRAME.columns]
    assert samples.price.dtype == np.int64
    assert set(samples.sold.astype(str)) <= {"True", "False"}
    assert main(["score", folder, out, f"--out={tmp_path / 'p.csv'}"]) == 0
    assert np.isfinite(pd.read_csv(tmp_path / "p.csv").log_prob).all()
    assert main(["sample", folder, "--n=30", f"--out={tmp_path / 's.npy'}"]) == 2
    result = evaluate(folder, 50, device="cpu", out=tmp_path / "evaluation")
    assert np.isfinite(result["bound_data_units"])
    assert (tmp_path / "evaluation" / "figures" / "samples.png").exists()


def test_probabilities_of_a_small_discrete_set_are_those_of_the_data(tmp_path: Path) -> None:
    """Averaged over noise, those of all rows sum to one, and are the shares that were drawn."""
    shares = np.array([[0.3, 0.05], [0.1, 0.25], [0.05, 0.25]])
    cells = RNG.choice(6, 20_000, p=shares.ravel())
    frame = pd.DataFrame({"a": np.array(["x", "y", "z"])[cells // 2], "b": cells % 2})
    values: dict[str, Any] = {"steps": 300, "batch_size": 256, "threads": 1, "warmup": 20}
    config = configure("flow", flow_transforms=2, flow_hidden="16", learning_rate=5e-3, **values)
    train(config, tmp_path / "run", data=frame, progress=False)
    run = load_run(tmp_path / "run")
    pairs = [*itertools.product("xyz", (0, 1))]
    many = pd.DataFrame([pair for pair in pairs for _ in range(2000)], columns=["a", "b"])
    scores = run.log_prob(many).reshape(6, 2000)
    mass = scores.exp().mean(1)
    assert float(mass.sum()) == pytest.approx(1.0, abs=0.03)
    assert np.allclose(mass.numpy(), shares.ravel(), atol=0.03)
    assert bool((scores.mean(1) <= mass.log()).all())
    # The bound is near: a density of one coordinate would be 0.69 nats a column above it.
    gap = float(torch.from_numpy(shares.ravel()) @ (mass.log() - scores.mean(1)))
    assert gap < 0.2


def test_samples_on_grids_are_values_of_the_data(tmp_path: Path) -> None:
    """In frames and in files: 0.2 + 4 * 0.01 is not 0.24, nor does a third have one decimal."""
    steps = np.arange(300).repeat(4)
    frame = pd.DataFrame(
        {"hundredths": (steps + 20) / 100, "single": ((steps + 20) / 100).astype("float32"),
         "thirds": steps + 1 / 3, "below": (10 * steps - 1625) / 10_000}
    )  # fmt: skip
    data = open_dataset(frame)
    assert data.encoding is not None
    assert {column.kind for column in data.encoding.columns} == {"integer"}
    x = data.encoding.inputs(data.train, torch.zeros(len(data.train), 4))
    rows = data.encoding.decoded(x)
    samples = to_frame(data.encoding, rows)
    write_samples(tmp_path / "x.csv", rows, data.encoding.columns)
    read = pd.read_csv(tmp_path / "x.csv", float_precision="round_trip")
    read = read.astype({"single": "float32"})
    for name in frame:
        assert samples[name].dtype == frame[name].dtype
        assert samples[name].isin(frame[name]).all(), name
        assert read[name].isin(frame[name]).all(), name
