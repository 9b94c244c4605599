"""The diagrams of the concepts show what the formulas say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the plot extra")

from benchmarks.pages import concepts


def test_the_step_that_is_shown_is_that_of_the_formulas() -> None:
    """x + f dt and noise lead to the next state, its reverse drift and the residual back."""
    i, states, g, dt = (
        concepts.SHOWN,
        concepts.paths()[:, concepts.ONE, 0],
        concepts.G,
        concepts.LENGTH,
    )
    x, x_next = float(states[i]), float(states[i + 1])
    score = -x_next / concepts.variances()[i + 1]
    mean, delta = concepts.residual(concepts.paths(), i)
    assert mean == pytest.approx(x_next - (-x_next - g * g * score) * dt)
    assert mean + g * dt**0.5 * delta == pytest.approx(x)
    # Variances are those of the states: of 60 paths, with their scatter.
    found = concepts.paths().var(1).flatten().numpy()
    assert np.allclose(found, concepts.variances(), rtol=0.5)


def test_halves_of_a_batch_have_its_noise() -> None:
    whole = concepts.table_of_noise(concepts.KEY, 0, concepts.BATCH)
    half = concepts.table_of_noise(concepts.KEY, concepts.HALF, concepts.BATCH - concepts.HALF)
    assert np.array_equal(whole[concepts.HALF :], half)
    shown = [panel.images[0].get_array() for panel in concepts.noise().axes[:3]]
    assert np.array_equal(shown[0], shown[1])
    assert not np.array_equal(shown[0], shown[2])


def test_all_diagrams_are_written(tmp_path: Path) -> None:
    names = [path.name for path in concepts.draw_diagrams(tmp_path)]
    assert names == ["concepts_path.png", "concepts_adjoint.png", "concepts_noise.png"]
    assert all((tmp_path / name).stat().st_size > 10_000 for name in names)
