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
from diffflow_ext.data import open_dataset, read_rows
from diffflow_ext.training import LoadedRun, configure, evaluate, load_run, train
from diffflow_ext.training.evaluation.sample_file import to_frame, write_samples
from diffflow_ext.training.evaluation.scoring import table_with

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
TINY: dict[str, Any] = {"batch_size": 32, "threads": 1, "width": 8, "depth": 1, "num_steps": 2}


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


def test_truth_values_of_files_and_frames_are_the_same(tmp_path: Path) -> None:
    """What one of four sources has trained, rows of all of them are encoded by."""
    truth = np.random.default_rng(0).random(60) < 0.3
    frame = pd.DataFrame({"ok": truth, "x": np.random.default_rng(1).normal(size=60)})
    numbers = frame.assign(ok=truth.astype(int))
    numbers.to_csv(tmp_path / "numbers.csv", index=False)
    lower = frame.assign(ok=np.where(truth, "true", "false"))
    lower.to_csv(tmp_path / "texts.csv", index=False)
    sources = [frame, numbers, tmp_path / "numbers.csv", tmp_path / "texts.csv"]
    for source in sources:
        encoding = open_dataset(source).encoding
        assert encoding is not None
        assert encoding.columns[0].kind == "category"
        for rows in (*sources, numbers.to_numpy()):
            table = rows
            if isinstance(rows, Path):
                table = read_rows(rows, encoding.names, texts=encoding.texts)
            stored = encoding.stored(table_with(encoding, table))
            assert stored[:, 0].tolist() == truth.astype(float).tolist()


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


def test_noise_of_test_and_training_rows_is_not_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal rows with equal noise would be one point twice, and a floor too low."""
    from diffflow_ext.data import open_dataset
    from diffflow_ext.training.evaluation import quality

    data = open_dataset(RNG.integers(0, 2, (400, 2)).astype(float))
    seen = list[torch.Tensor]()

    def note(name: str, measure: Any, parts: Any, *, ratio: bool = False) -> dict[str, Any]:
        seen.extend(parts)
        return {}

    monkeypatch.setattr(quality, "_beside_floor", note)
    quality.vector_quality(torch.zeros(40, 2), data)
    _, test, train = seen[:3]
    assert len({tuple(row) for row in torch.cat([test, train]).tolist()}) == len(test) + len(train)


def test_runs_go_on_with_the_columns_that_they_have(tmp_path: Path) -> None:
    """Without their options, which the checkpoint has."""
    frame = FRAME[["price", "length", "cut"]]
    options = {"columns": "price=heavy", "missing": "mask"}
    train(configure(steps=4, **TINY, **options), tmp_path / "run", data=frame, progress=False)
    config = configure(steps=8, **TINY)
    with pytest.warns(UserWarning, match="what follows the end of a run"):
        result = train(config, tmp_path / "run", data=frame, resume=True, progress=False)
    assert result.step == 8
    encoding = load_run(tmp_path / "run").record.encoding
    assert encoding is not None
    assert [column.kind for column in encoding.columns] == ["heavy", "continuous", "category"]


def test_runs_of_earlier_versions_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their columns are all continuous, and their records have no kinds."""
    from diffflow_ext.training.loop import trainer
    from diffflow_ext.training.store import dataset

    rows = RNG.integers(0, 50, (200, 2)).astype(float)
    config = configure(steps=4, columns="continuous", **TINY)

    def old_meta(record: dataset.DatasetRecord) -> dict[str, Any]:
        assert record.encoding is not None
        columns = record.encoding.columns
        return {
            "name": record.name, "columns": [*record.columns], "fingerprint": record.fingerprint,
            "mean": [c.mean for c in columns], "std": [c.std for c in columns],
            "log_abs_scale": 0.0, "event_shape": [2], "is_image": False,
        }  # fmt: skip

    def old_record(config: Any) -> dict[str, Any]:
        fields = {n: v for n, v in config.values().items() if n not in ("columns", "missing")}
        return {"model": config.name, **{n: v for n, v in fields.items() if v is not None}}

    with monkeypatch.context() as patch:
        patch.setattr(dataset.DatasetRecord, "to_meta", old_meta)
        patch.setattr(trainer, "to_record", old_record)
        train(config, tmp_path / "run", data=rows, progress=False)
    path = tmp_path / "run" / "config.toml"
    path.write_text(path.read_text().replace('[columns]\n"*" = "continuous"\n', ""))
    run = load_run(tmp_path / "run")
    assert run.config.data.columns == "continuous"
    config = configure(steps=8, **TINY)
    with pytest.warns(UserWarning, match="what follows the end of a run"):
        result = train(config, tmp_path / "run", data=rows, resume=True, progress=False)
    assert result.step == 8


def typed() -> pd.DataFrame:
    """Returns a table of columns of many types."""
    n = 300
    return pd.DataFrame(
        {
            "wide": (RNG.normal(size=n) * 1e12).astype("int64"),
            "null": pd.array(
                np.where(RNG.uniform(size=n) < 0.3, None, RNG.integers(0, 90, n)), "Int64"
            ),
            "small": RNG.integers(0, 4, n).astype("uint8"),
            "float": pd.array(RNG.normal(size=n), "Float64"),
            "step": RNG.integers(0, 90, n) * 2.5,
            "eighth": RNG.integers(0, 90, n) * 0.125,
            "rank": pd.Categorical(RNG.choice([1, 2, 10], n), ordered=True),
            "truth": pd.array(RNG.choice([True, False, None], n), "boolean"),
            "text": pd.array(RNG.choice(["x", "y"], n), "string"),
        }
    )


def test_types_come_back(tmp_path: Path) -> None:
    frame = typed()
    config = configure(steps=4, missing="mask", columns="small=continuous", **TINY)
    with pytest.warns(UserWarning, match="few values"):
        train(config, tmp_path / "run", data=frame, progress=False)
    run = load_run(tmp_path / "run")
    samples = run.sample_frame(300)
    # Samples below 0 become 0, not 255.
    assert samples["small"].max() < 20
    assert samples["small"].min() == 0
    assert samples.dtypes.astype(str).to_dict() == frame.dtypes.astype(str).to_dict()
    assert samples["rank"].cat.ordered
    assert [*samples["rank"].cat.categories] == [1, 2, 10]
    for name, step in (("step", 2.5), ("eighth", 0.125)):
        assert np.allclose(samples[name] / step, np.round(samples[name] / step), atol=1e-9)
    assert bool(run.log_prob(samples).isfinite().all())
    samples.to_csv(tmp_path / "s.csv", index=False)
    from diffflow_ext.training.evaluation.sample_file import write_samples

    assert run.record.encoding is not None
    drawn = run.record.encoding.decoded(run.sample(300, units="training"))
    write_samples(tmp_path / "t.csv", drawn, run.record.encoding.columns)
    read = pd.read_csv(tmp_path / "t.csv")
    assert np.allclose(read["eighth"], samples["eighth"])
    assert np.allclose(read["step"], samples["step"])


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
