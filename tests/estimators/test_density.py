"""Densities and samples of estimators against closed forms, and tools of scikit-learn."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from diffflow_ext.estimators import DDPMDensity, DiffFlowDensity, DiNofDensity, NFDMDensity

MEAN, COVARIANCE = np.array([3.0, -100.0]), np.array([[4.0, 24.0], [24.0, 225.0]])
TRAINED: dict[str, Any] = {
    "width": 32, "depth": 2, "device": "cpu", "threads": 1, "random_state": 0,
    "options": {"warmup": 50},
}  # fmt: skip
SMALL: dict[str, Any] = {
    "steps": 3, "batch_size": 8, "width": 4, "depth": 1, "device": "cpu", "threads": 1,
}  # fmt: skip
FIRST = DiffFlowDensity(**SMALL, num_steps=2, random_state=0)
KINDS = [
    FIRST,
    DDPMDensity(**SMALL, timesteps=3, random_state=0),
    DiNofDensity(**SMALL, flow="none", random_state=0),
    pytest.param(NFDMDensity(**SMALL, num_steps=2, random_state=0), marks=pytest.mark.slow),
]


def gaussian(n: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).multivariate_normal(MEAN, COVARIANCE, n)


ROWS = gaussian(60)


@pytest.mark.parametrize(
    "density",
    [
        DiffFlowDensity(**TRAINED, steps=300, num_steps=8, batch_size=128),
        pytest.param(DDPMDensity(**TRAINED, steps=1000, timesteps=100), marks=pytest.mark.slow),
        pytest.param(DiNofDensity(**TRAINED, steps=600, flow="none"), marks=pytest.mark.slow),
        pytest.param(NFDMDensity(**TRAINED, steps=600), marks=pytest.mark.slow),
    ],
    ids=lambda density: type(density).__name__,
)
def test_a_gaussian_is_learned(density: Any) -> None:
    """Within 0.1 nats on average and 0.3 a row, in the units of the data.

    In standardised units the entropy would be smaller by log(2 * 15) = 3.4 nats.
    """
    density.fit(gaussian(4000))
    rows = gaussian(1000, seed=1)
    wrong = density.score_samples(rows) - multivariate_normal(MEAN, COVARIANCE).logpdf(rows)
    assert abs(wrong.mean()) < 0.1
    assert abs(wrong).mean() < 0.3
    samples = density.sample(4000, random_state=2)
    deviations = np.sqrt(np.diag(COVARIANCE))
    assert np.abs((samples.mean(axis=0) - MEAN) / deviations).max() < 0.1
    scaled = np.cov(samples.T) / np.outer(deviations, deviations)
    assert np.abs(scaled - [[1.0, 0.8], [0.8, 1.0]]).max() < 0.2


@pytest.mark.parametrize("estimator", KINDS, ids=lambda density: type(density).__name__)
def test_copies_are_equal(estimator: Any) -> None:
    """Fitted again with the same seed; pickled, copied: the same bits."""
    density = clone(estimator).fit(ROWS)
    scores, samples = density.score_samples(ROWS), density.sample(5, random_state=3)
    assert scores.shape == (60,)
    assert scores.dtype == samples.dtype == np.float64
    assert density.score(ROWS) == scores.mean()
    again = clone(density)
    assert not hasattr(again, "checkpoint_")
    copies = [copy.copy(density), copy.deepcopy(density), pickle.loads(pickle.dumps(density)),
              again.fit(ROWS), again.fit(ROWS, np.zeros(60))]  # fmt: skip
    for other in copies:
        assert other.get_params() == estimator.get_params()
        assert np.array_equal(other.score_samples(ROWS), scores)
        assert np.array_equal(other.sample(5, random_state=3), samples)
    for copied in (copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator))):
        assert copied.get_params() == estimator.get_params()


def test_a_fit_depends_on_its_seed_alone() -> None:
    np.random.seed(1)
    drawn = DiffFlowDensity(**SMALL, num_steps=2).fit(ROWS).score(ROWS)
    assert DiffFlowDensity(**SMALL, num_steps=2).fit(ROWS).score(ROWS) != drawn
    np.random.seed(1)
    assert DiffFlowDensity(**SMALL, num_steps=2).fit(ROWS).score(ROWS) == drawn
    state = np.random.get_state()[1].copy()  # pyright: ignore
    density = clone(FIRST).fit(ROWS)
    assert np.array_equal(np.random.get_state()[1], state)  # pyright: ignore
    assert not np.array_equal(density.sample(5), density.sample(5))
    more = density.sample(9, random_state=3)
    assert np.array_equal(more[:5], density.sample(np.int64(5), random_state=3))


def test_a_device_may_be_changed_after() -> None:
    density = clone(FIRST).fit(ROWS)
    run, scores = density.run_, density.score_samples(ROWS)
    assert density.run_ is run
    density.set_params(device="auto")
    assert density.run_ is not run
    assert next(density.run_.model.parameters()).device.type in ("cpu", "cuda")
    assert np.allclose(density.score_samples(ROWS), scores, rtol=1e-3)
    density.set_params(device="cuda:99")
    with pytest.raises((ValueError, RuntimeError), match="cuda"):
        density.score_samples(ROWS)


def test_history_is_the_log() -> None:
    density = clone(FIRST).set_params(options={"log_every": 1}).fit(ROWS)
    assert [line["step"] for line in density.history_] == [1, 2, 3]
    assert all(np.isfinite(line["loss"]) for line in density.history_)


def test_a_pipeline_scores_in_its_own_units() -> None:
    pipeline = make_pipeline(StandardScaler(), clone(FIRST)).fit(ROWS)
    scaled = pipeline[0].transform(ROWS)
    assert np.array_equal(pipeline.score_samples(ROWS), pipeline[-1].score_samples(scaled))
    assert pipeline.score(ROWS) == pipeline[-1].score(scaled)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_grid_search_takes_the_better_setting() -> None:
    """An untrained model against one that is trained, by the mean log-density of held-out rows."""
    density = DiffFlowDensity(num_steps=4, width=16, depth=1, batch_size=64, random_state=0,
                              device="cpu", threads=1, options={"warmup": 0})  # fmt: skip
    grid = {"steps": np.array([2, 100])}
    search = GridSearchCV(density, grid, cv=2).fit(gaussian(300))
    assert search.best_params_ == {"steps": 100}
    low, high = search.cv_results_["mean_test_score"]
    assert high > low + 0.1
    assert search.score(ROWS) == search.best_estimator_.score(ROWS)


def test_scores_of_folds() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = cross_val_score(clone(FIRST), ROWS, cv=2)
    expected = [clone(FIRST).fit(ROWS[30:]).score(ROWS[:30]),
                clone(FIRST).fit(ROWS[:30]).score(ROWS[30:])]  # fmt: skip
    assert np.array_equal(scores, expected)
