"""Rows of estimators: columns and their names, what is refused, and what is left behind."""

from __future__ import annotations

import signal
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import NotFittedError

from diffflow_ext.estimators import DiffFlowDensity
from diffflow_ext.training import TrainingError
from diffflow_ext.training.loop import trainer

SMALL: dict[str, Any] = {
    "steps": 3, "batch_size": 8, "num_steps": 2, "width": 4, "depth": 1,
    "device": "cpu", "threads": 1, "random_state": 0,
}  # fmt: skip


@pytest.fixture
def frame() -> pd.DataFrame:
    values = np.random.default_rng(0).normal(size=(60, 2))
    return pd.DataFrame(values * [1.0, 50.0] + [0.0, 1000.0], columns=["b", "a"])


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_columns_of_frames_keep_their_names(frame: pd.DataFrame) -> None:
    density = DiffFlowDensity(**SMALL).fit(frame)
    assert [*density.feature_names_in_] == ["b", "a"]
    assert density.n_features_in_ == 2
    assert density.run_.record.columns == ("b", "a")
    plain = DiffFlowDensity(**SMALL).fit(frame.to_numpy())
    assert not hasattr(plain, "feature_names_in_")
    assert np.array_equal(density.score_samples(frame), plain.score_samples(frame.to_numpy()))
    for other in (frame[["a", "b"]], frame.rename(columns={"a": "c"})):
        with pytest.raises(ValueError, match="feature names should match those that were passed"):
            density.score_samples(other)
    with pytest.raises(ValueError, match="1 features, but DiffFlowDensity is expecting 2"):
        plain.score_samples(frame.to_numpy()[:, :1])


def test_names_go_when_it_is_fitted_to_an_array(frame: pd.DataFrame) -> None:
    density = DiffFlowDensity(**SMALL).fit(frame)
    density.fit(frame.to_numpy()[:, :1])
    assert density.n_features_in_ == 1
    assert not hasattr(density, "feature_names_in_")
    assert density.sample(3, random_state=0).shape == (3, 1)


def test_whole_numbers_and_lists_are_rows(frame: pd.DataFrame) -> None:
    whole = frame.round().astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Of columns with few values.
        densities = [
            DiffFlowDensity(**SMALL).fit(rows)
            for rows in (whole.to_numpy(), whole.to_numpy(float), whole.to_numpy().tolist())
        ]
    scores = [density.score_samples(whole.to_numpy()) for density in densities]
    assert np.array_equal(scores[0], scores[1])
    assert np.array_equal(scores[0], scores[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f[:19], "at least 20 rows, got X with n_samples=19 and n_features=2; collect"),
        (lambda f: f.assign(a=1.0), r"columns that vary, got constant ones \(a\), .*leave them"),
        (lambda f: f.assign(a=1.0).to_numpy(), r"got constant ones \(x2\)"),
        (lambda f: f.assign(a=[f"n{i}" for i in range(len(f))]), r"got a, .*another text in most"),
        (lambda f: f.assign(a=np.nan), "Input X contains NaN"),
        (lambda f: f.assign(a=np.inf), "Input X contains infinity"),
        (lambda f: f.assign(a="x"), r"got a, which would be left out: a \(one value alone\)"),
        (lambda f: f.to_numpy()[:, 0], "Expected 2D array, got 1D array instead"),
        (lambda f: f.to_numpy() * 1j, "Complex data not supported"),
    ],
)
def test_rows_that_do_not_suit(
    frame: pd.DataFrame, temporary: Path, change: Any, message: str
) -> None:
    density = DiffFlowDensity(**SMALL).fit(frame)
    with pytest.raises(ValueError, match=message):
        density.fit(change(frame))
    with pytest.raises(NotFittedError):
        density.score_samples(frame)
    assert not any(temporary.iterdir())


def test_rows_to_score_that_do_not_suit(frame: pd.DataFrame) -> None:
    density = DiffFlowDensity(**SMALL).fit(frame)
    with pytest.raises(ValueError, match="Input X contains NaN"):
        density.score_samples(frame.assign(a=np.nan))
    with pytest.raises(ValueError, match=r"within 1e12 deviations .*got 1e\+30 .*column 'a'"):
        density.score_samples(frame.assign(a=1e30))
    with pytest.raises(ValueError, match="n=0"):
        density.sample(0)


def test_arrays_and_frames_have_the_same_scores(frame: pd.DataFrame) -> None:
    named, unnamed = DiffFlowDensity(**SMALL).fit(frame), DiffFlowDensity(**SMALL)
    unnamed.fit(frame.to_numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Of scikit-learn, of names.
        for density in (named, unnamed):
            scores = density.score_samples(frame)
            assert np.array_equal(density.score_samples(frame.to_numpy()), scores)
    numbered = DiffFlowDensity(**SMALL).fit(pd.DataFrame(frame.to_numpy()))
    assert np.array_equal(
        numbered.score_samples(frame.to_numpy()), unnamed.score_samples(frame.to_numpy())
    )


def test_texts_integers_and_gaps(frame: pd.DataFrame) -> None:
    """The columns of a frame keep their kinds, and samples are a frame if there are texts."""
    rng = np.random.default_rng(2)
    n = len(frame)
    mixed = frame.assign(
        colour=pd.Categorical(rng.choice(["red", "blue"], n)), count=rng.poisson(50, n)
    )
    density = DiffFlowDensity(**SMALL).fit(mixed)
    assert density.n_features_in_ == 4
    assert bool(np.isfinite(density.score_samples(mixed)).all())
    samples = density.sample(50, random_state=1)
    assert samples.dtypes.astype(str).to_dict() == mixed.dtypes.astype(str).to_dict()
    with pytest.raises(ValueError, match="one of 'blue', 'red', got 'green' in row 0"):
        density.score_samples(mixed.assign(colour="green"))
    gaps = frame.copy()
    gaps.iloc[::4, 0] = np.nan
    density = DiffFlowDensity(**{**SMALL, "options": {"missing": "mask"}}).fit(gaps)
    assert bool(np.isfinite(density.score_samples(gaps)).all())
    assert np.isnan(density.sample(200, random_state=1)).any()
    heavy = DiffFlowDensity(**{**SMALL, "options": {"columns": "heavy"}}).fit(frame)
    assert heavy.run_.record.encoding is not None
    assert heavy.run_.record.encoding.columns[0].kind == "heavy"
    with pytest.raises(TypeError, match=r"numbers or texts, 'rows' has a .datetime"):
        density.fit(frame.assign(a=pd.date_range("2020-01-01", periods=len(frame))))


def test_doubts_stay_warnings(frame: pd.DataFrame) -> None:
    with pytest.warns(UserWarning, match=r"columns that are copies of others, .*\(c\)"):
        DiffFlowDensity(**SMALL).fit(frame.assign(c=frame["a"] * 2))


def test_nothing_is_fitted_before(frame: pd.DataFrame, tmp_path: Path) -> None:
    density = DiffFlowDensity(**SMALL)
    calls = (
        lambda: density.score_samples(frame), lambda: density.score(frame), density.sample,
        lambda: density.save(tmp_path / "run"), lambda: density.run_,
    )  # fmt: skip
    for call in calls:
        with pytest.raises(NotFittedError, match="This DiffFlowDensity instance is not fitted"):
            call()
    assert not (tmp_path / "run").exists()


def test_nothing_is_left_behind(
    frame: pd.DataFrame, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a fit, an error in the middle of one, and an interrupt."""
    density = DiffFlowDensity(**SMALL).fit(frame)
    assert not any(temporary.iterdir())
    options = {"warmup": 0, "clip_norm": 1e30}
    density.set_params(learning_rate=1e30, steps=50, options=options)
    with pytest.raises(TrainingError, match="finite"):
        density.fit(frame)
    assert not any(temporary.iterdir())
    assert not hasattr(density, "checkpoint_")

    seen = list[list[Path]]()

    def interrupt(*arguments: Any) -> bool:
        seen.append([*temporary.iterdir()])
        if len(seen) == 1:
            signal.raise_signal(signal.SIGINT)
        return False

    monkeypatch.setattr(trainer, "is_logged", interrupt)
    with pytest.raises(KeyboardInterrupt, match="fit: stopped by SIGINT; nothing is kept"):
        DiffFlowDensity(**SMALL).fit(frame)
    assert len(seen[0]) == 1
    assert not any(temporary.iterdir())


def test_a_bar_is_shown_if_wished(frame: pd.DataFrame, capfd: pytest.CaptureFixture[str]) -> None:
    DiffFlowDensity(**SMALL).fit(frame)
    assert capfd.readouterr() == ("", "")
    DiffFlowDensity(**SMALL, verbose=1).fit(frame)
    assert "3/3" in capfd.readouterr().err
