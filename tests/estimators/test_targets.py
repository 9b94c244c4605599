"""Densities given y against closed forms, and what y may be."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags

from diffflow_ext.estimators import DDPMDensity, DiffFlowDensity, DiNofDensity, NFDMDensity
from diffflow_ext.estimators.targets import conditioned, target_frame
from diffflow_ext.training import configure, load_run

TRAINED: dict[str, Any] = {
    "width": 48, "depth": 2, "device": "cpu", "threads": 1, "random_state": 0,
    "options": {"warmup": 20}, "conditional": True, "batch_size": 256,
}  # fmt: skip
SMALL: dict[str, Any] = {
    "steps": 3, "batch_size": 8, "width": 4, "depth": 1, "device": "cpu", "threads": 1,
    "random_state": 0, "conditional": True, "num_steps": 2,
}  # fmt: skip
RNG = np.random.default_rng(0)
X, LABELS = RNG.normal(size=(80, 2)), np.repeat(["no", "yes"], 40)


def gaussian(n: int, seed: int) -> tuple[Any, Any]:
    """Returns x ~ N(5 + 3 y, (1 + |y|) / 2) and y ~ N(0, 1)."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=n)
    return rng.normal(5 + 3 * y, (1 + np.abs(y)) / 2)[:, None], y


@pytest.mark.parametrize(
    "density",
    [
        DDPMDensity(**TRAINED, steps=400, timesteps=50),
        pytest.param(NFDMDensity(**TRAINED, steps=800), marks=pytest.mark.slow),
        pytest.param(DiffFlowDensity(**TRAINED, steps=1000, num_steps=10), marks=pytest.mark.slow),
        pytest.param(DiNofDensity(**TRAINED, steps=800, flow="none"), marks=pytest.mark.slow),
    ],
    ids=lambda density: type(density).__name__,
)
def test_a_gaussian_that_depends_on_a_number(density: Any) -> None:
    """Its log-density given y; that of x alone is lower by half a nat and more."""
    density.fit(*gaussian(4000, 0))
    x, y = gaussian(800, 1)
    true = norm.logpdf(x[:, 0], 5 + 3 * y, (1 + np.abs(y)) / 2)
    scores = density.score_samples(x, y)
    assert scores.shape == (800,)
    assert abs((scores - true).mean()) < 0.15
    assert density.score(x, y) == scores.mean()
    assert density.score(x, np.roll(y, 1)) < scores.mean() - 0.5
    for value in (-1.0, 0.8):
        samples = density.sample(2000, random_state=1, y=value)
        assert samples.shape == (2000, 1)
        assert abs(samples.mean() - (5 + 3 * value)) < 0.3
        assert abs(np.log(samples.std() / ((1 + abs(value)) / 2))) < 0.3


@pytest.mark.slow
def test_two_classes() -> None:
    """The narrow one and the wide one; guidance by the class, and a class that is new."""
    rng = np.random.default_rng(1)
    wide = np.repeat(["narrow", "wide"], 1500)
    x = rng.normal(np.where(wide == "wide", 4.0, -2.0), np.where(wide == "wide", 2.0, 0.5))
    density = DDPMDensity(**TRAINED, steps=800, timesteps=50).fit(x[:, None], wide)
    points = np.linspace(-3, 6, 40)[:, None]
    for name, mean, std in (("narrow", -2.0, 0.5), ("wide", 4.0, 2.0)):
        near = np.abs(points[:, 0] - mean) < 2 * std
        scores = density.score_samples(points, [name] * 40)
        assert np.abs(scores - norm.logpdf(points[:, 0], mean, std))[near].mean() < 0.25
        samples = density.sample(1500, random_state=0, y=name)
        assert abs(samples.mean() - mean) < 0.3 * std
        assert abs(np.log(samples.std() / std)) < 0.3
    both = density.sample(6, random_state=0, y=["wide", "narrow"] * 3)
    assert np.allclose(both[::2], density.sample(6, random_state=0, y="wide")[::2], atol=1e-3)
    strong = density.sample(1500, random_state=0, y="wide", guidance=np.float64(2.0))
    assert strong.mean() > density.sample(1500, random_state=0, y="wide").mean() + 0.05
    with pytest.raises(ValueError, match="one of 'narrow', 'wide', got 'great' in row 0"):
        density.sample(3, y="great")
    with pytest.raises(ValueError, match="one of 'narrow', 'wide', got 'great' in row 1"):
        density.score_samples(points[:2], ["wide", "great"])


# --- what y may be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "kinds"),
    [
        (LABELS, {"y": "category"}),
        ([*LABELS], {"y": "category"}),
        (LABELS == "yes", {"y": "category"}),
        (pd.Categorical(np.where(LABELS == "yes", "1", "0")), {"y": "category"}),
        (np.where(LABELS == "yes", "1", "0").astype(object), {"y": "category"}),
        (np.arange(80) % 7, {"y": "category"}),
        (np.arange(80) % 30, {"y": "integer"}),
        (X[:, 0], {"y": "continuous"}),
        (torch.tensor(X[:, :1]), {"y": "continuous"}),
        (np.column_stack([X[:, 0], np.arange(80) % 2]), {"y1": "continuous", "y2": "category"}),
        (
            pd.Series(X[:, 0], index=range(5, 85), name="age, in years"),
            {"age, in years": "contin"},
        ),
        (
            pd.DataFrame({"age": X[:, 0], 3: LABELS}, index=[*range(9, 89)]),
            {"age": "continuous", "3": "category"},
        ),
    ],
)
def test_kinds_of_y(y: Any, kinds: dict[str, str], tmp_path: Path) -> None:
    """They are found, recorded, and the same in a run that is saved and loaded."""
    density = DiffFlowDensity(**SMALL).fit(X, y)
    conditions = density.run_.record.conditions
    assert conditions is not None
    found = {column.name: column.kind for column in conditions.columns}
    assert found.keys() == kinds.keys()
    assert all(found[name].startswith(kind) for name, kind in kinds.items())
    assert density.n_features_in_ == 2
    assert {column.kind for column in density.run_.record.encoding.columns} == {"continuous"}
    scores, samples = density.score_samples(X, y), density.sample(80, random_state=1, y=y)
    assert bool(np.isfinite(scores).all())
    assert samples.shape == (80, 2)
    density.save(tmp_path / "run")
    loaded = DiffFlowDensity.load(tmp_path / "run")
    assert loaded.conditional
    for same in (loaded, pickle.loads(pickle.dumps(density)), clone(density).fit(X, y),
                 clone(loaded).fit(X, y)):  # fmt: skip
        assert np.array_equal(same.score_samples(X, y), scores)
        assert np.array_equal(same.sample(80, random_state=1, y=y), samples)
    given = target_frame("test", y, conditions.names)
    run = load_run(tmp_path / "run")
    assert np.array_equal(run.log_prob(X, given=given).numpy(), scores)


def test_kinds_of_y_may_be_named() -> None:
    frame = pd.DataFrame({"y": np.arange(80) % 7, "z": X[:, 0]})
    for columns in ("continuous,y=integer", {"*": "continuous", "y": "integer"}):
        config = conditioned(configure(columns=columns), frame)
        assert config == configure(columns="continuous,y=integer,z=continuous", condition="y,z")


def test_frames_with_texts_are_samples_too() -> None:
    frame = pd.DataFrame({"a": X[:, 0], "word": LABELS[::-1]})
    density = DiffFlowDensity(**SMALL).fit(frame, LABELS)
    samples = density.sample(5, random_state=0, y={"y": "no"})
    assert [*samples.columns] == ["a", "word"]
    assert np.array_equal(density.sample(5, random_state=0, y=["no"] * 5).a, samples.a)


# --- the conventions of scikit-learn -------------------------------------------------------------


def test_y_is_ignored_unless_it_is_asked_for() -> None:
    plain = DiffFlowDensity(**{**SMALL, "conditional": False})
    density = clone(plain).fit(X, LABELS)
    assert density.run_.record.conditions is None
    assert np.array_equal(density.score_samples(X), clone(plain).fit(X).score_samples(X))
    assert density.score(X, LABELS) == density.score(X)
    assert np.array_equal(cross_val_score(plain, X, LABELS, cv=2), cross_val_score(plain, X, cv=2))
    message = "expected no y, because the density was fitted without one, got a"
    with pytest.raises(ValueError, match=f"score_samples: {message}"):
        density.score_samples(X, LABELS)
    with pytest.raises(ValueError, match=f"sample: {message}"):
        density.sample(3, y="yes")
    with pytest.raises(ValueError, match=r"guidance=2\.0: the sampler of diffflow"):
        density.sample(3, guidance=2.0)


def test_y_reaches_it_through_the_tools_of_scikit_learn() -> None:
    density = DiffFlowDensity(**SMALL)
    order = np.random.default_rng(2).permutation(80)
    x, y = X[order], LABELS[order]
    folds = [*StratifiedKFold(2).split(x, y)]
    expected = [clone(density).fit(x[a], y[a]).score(x[b], y[b]) for a, b in folds]
    assert np.array_equal(cross_val_score(density, x, y, cv=folds), expected)
    pipeline = make_pipeline(StandardScaler(), density).fit(x, y)
    scaled = pipeline[0].transform(x)
    assert pipeline.score(x, y) == pipeline[-1].score(scaled, y)
    grid = {"options": [{"warmup": 1}, {"warmup": 2}]}
    search = GridSearchCV(density, grid, cv=folds).fit(x, y)
    assert search.score(x, y) == search.best_estimator_.score(x, y)
    assert get_tags(density).target_tags.required
    assert not get_tags(DiffFlowDensity()).target_tags.required


def frame(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"a": X[:, 0], "y": X[:, 1], **columns})


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, None, r"^fit: expected y, .*requires y to be passed, but the target y is None; pass"),
        (X, LABELS[:-1], r"inconsistent numbers of samples: \[80, 79\]"),
        (X, X[None], r"^fit: expected y of shape \(n,\) or \(n, k\), got the shape \(1, 80, 2\)"),
        (X, "yes", r"got the shape \(\)"),
        (X, X[:, 0] * np.inf, r"Input y contains infinity"),
        (X, np.where(LABELS == "no", np.nan, 1.0), "Input y contains NaN"),
        (
            X,
            np.ones(80),
            r"^fit: expected y that tells something of a row, got y \(one value alon",
        ),
        (
            X,
            [f"n{i}" for i in range(80)],
            r"got y \(another text in most rows\); leave it out, or",
        ),
        (
            frame(),
            LABELS,
            r"^fit: expected columns of y that X doesn't have, got y in both; renam",
        ),
    ],
)
def test_y_that_does_not_suit(x: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffFlowDensity(**SMALL).fit(x, y)


@pytest.fixture(scope="module")
def pair() -> DiffFlowDensity:
    y = pd.DataFrame({"age": X[:, 0], "kind": LABELS})
    return DiffFlowDensity(**SMALL).fit(X, y)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda d: d.score_samples(X),
            r"^score_samples: expected y, because .* conditioned on ag",
        ),
        (lambda d: d.score(X), r"^score_samples: expected y, because"),
        (lambda d: d.sample(2), r"^sample: expected y, because"),
        (lambda d: d.sample(2, y=1.0), r"^sample: expected y with age, kind, got 1.0; pass a map"),
        (
            lambda d: d.sample(2, y={"age": 1.0}),
            r"sample: expected given with age, kind, .*no 'kin",
        ),
        (lambda d: d.sample(2, y=X[:2, :1]), r"^sample: expected y with 2 columns, age, kind, as"),
        (
            lambda d: d.sample(1, y=frame(age=1, kind="no")[:3]),
            r"row for each of n_samples=1, .*3",
        ),
        (lambda d: d.score_samples(X, frame()), r"y with the columns age, kind, .*got a, y; name"),
        (
            lambda d: d.score_samples(X[:9], frame(age=1, kind="no")),
            r"inconsistent numbers of sam",
        ),
    ],
)
def test_y_that_does_not_suit_the_fitted_one(pair: Any, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(pair)


def test_spaces_at_the_ends_of_names_do_not_count(pair: Any) -> None:
    y = pd.DataFrame({"age": X[:, 0], "kind": LABELS})
    spaced = y.rename(columns={"age": " age", "kind": "kind "})
    assert (pair.score_samples(X, spaced) == pair.score_samples(X, y)).all()
    again = DiffFlowDensity(**SMALL).fit(X, spaced)
    assert (again.score_samples(X, spaced) == pair.score_samples(X, y)).all()


def test_columns_of_a_frame_are_found_by_their_names(pair: Any) -> None:
    own = pd.DataFrame({"other": 1, "kind": LABELS, "age": X[:, 0]}, index=range(3, 83))
    array = np.column_stack([X[:, 0].astype(object), LABELS])
    assert np.array_equal(pair.score_samples(X, own), pair.score_samples(X, array))
    with pytest.warns(UserWarning, match=r"^sample: age=50: far outside of .*, from -"):
        pair.sample(2, y={"age": 50, "kind": "no"})
