"""scikit-learn's own checks of estimators."""

from __future__ import annotations

from typing import Any

import pytest
from sklearn.base import clone, is_outlier_detector
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import check_estimator

from diffflow_ext.estimators import DDPMDensity, DiffFlowDensity, DiNofDensity, NFDMDensity

SMALL: dict[str, Any] = {
    "steps": 2, "batch_size": 8, "width": 4, "depth": 1, "device": "cpu", "threads": 1,
}  # fmt: skip

#: They fit on tables that are too small. What they check is checked in test_rows.py.
TOO_SMALL = {
    "check_n_features_in_after_fitting": "15 rows; a density is learned from 20 at least",
    "check_estimators_nan_inf": "10 rows; a density is learned from 20 at least",
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "estimator",
    [
        DiffFlowDensity(**SMALL, num_steps=2),
        pytest.param(DDPMDensity(**SMALL, timesteps=3), marks=pytest.mark.slow),
        pytest.param(DiNofDensity(**SMALL, flow="none"), marks=pytest.mark.slow),
        pytest.param(NFDMDensity(**SMALL, num_steps=2), marks=pytest.mark.slow),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_checks_of_scikit_learn(estimator: Any) -> None:
    """All pass but those of tables that are too small, which fail for that reason alone."""
    found = check_estimator(estimator, expected_failed_checks=TOO_SMALL, on_skip=None)
    assert sum(result["status"] == "passed" for result in found) > 30
    failed = {r["check_name"]: str(r["exception"]) for r in found if r["status"] == "xfail"}
    assert failed.keys() == TOO_SMALL.keys()
    assert all("expected at least 20 rows" in text for text in failed.values())


def test_it_is_a_density_estimator() -> None:
    estimator = DiffFlowDensity(steps=5)
    assert get_tags(estimator).estimator_type == "density_estimator"
    assert not is_outlier_detector(estimator)
    assert repr(estimator) == repr(clone(estimator)) == "DiffFlowDensity(steps=5)"
    assert "DiffFlowDensity" in estimator._repr_html_()
