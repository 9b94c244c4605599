"""Time grids: values against their formulas, exact ends, keyed draws, stages and errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from diffflow_ext import NoiseKey, ProgressiveGrid, TimeGrid

KEY = NoiseKey(seed=8, stream=2)


def grid_times(grid: TimeGrid) -> list[float]:
    return grid.times.tolist()


# --- power ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.3, 0.5, 0.9, 1.0, 2.0])
@pytest.mark.parametrize("t_start", [0.0, 0.01])
@pytest.mark.parametrize("num_steps", [1, 2, 30, 1000])
def test_power_grids_follow_their_formula(num_steps: int, t_start: float, power: float) -> None:
    t_end = 0.7
    grid = TimeGrid.power(num_steps, t_end, t_start, power)
    for i, time in enumerate(grid_times(grid)):
        even = t_start**power + i / num_steps * (t_end**power - t_start**power)
        assert time == pytest.approx(even ** (1 / power), rel=1e-13)
    assert len(grid) == grid.num_steps == num_steps
    assert grid.times.dtype == torch.float64


@given(
    num_steps=st.integers(1, 300),
    t_start=st.floats(0, 10),
    length=st.floats(1e-3, 100),
    power=st.floats(0.2, 5),
)
def test_ends_are_kept_exactly(
    num_steps: int, t_start: float, length: float, power: float
) -> None:
    t_end = t_start + length
    for grid in (
        TimeGrid.power(num_steps, t_end, t_start, power),
        TimeGrid.stratified(num_steps, t_end, t_start, power, key=KEY),
    ):
        assert (grid.t_start, grid.t_end) == (t_start, t_end)
        assert all(step > 0 for step in grid.steps())
        assert len(grid.steps()) == num_steps
        assert math.fsum(grid.steps()) == pytest.approx(length, rel=1e-9)


def test_a_power_below_one_makes_small_steps_near_the_data() -> None:
    """The meaning of the authors' code; the paper's printed exponent is the inverse."""
    steps = TimeGrid.power(30, 1.0).steps()
    assert steps == sorted(steps)
    assert steps[0] < 1 / 30 < steps[-1]
    assert TimeGrid.power(10, 1.0, power=1.0).steps() == pytest.approx([0.1] * 10)


# --- stratified ----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [1, 2, 3, 30, 257])
def test_one_inner_time_falls_into_each_stratum(num_steps: int) -> None:
    power, t_start, t_end = 0.6, 0.02, 0.9
    low, high = t_start**power, t_end**power
    inner = num_steps - 1
    for stream in range(20):
        grid = TimeGrid.stratified(num_steps, t_end, t_start, power, key=KEY.at(stream))
        assert grid.num_steps == num_steps
        fractions = (grid.times[1:-1] ** power - low) / (high - low)
        strata = torch.arange(inner, dtype=torch.float64)
        assert bool((fractions * inner > strata - 1e-9).all())
        assert bool((fractions * inner < strata + 1 + 1e-9).all())


def test_stratified_draws_are_a_function_of_their_key() -> None:
    one = TimeGrid.stratified(30, 1.0, key=KEY)
    assert TimeGrid.stratified(30, 1.0, key=NoiseKey(8, 2)) == one
    assert TimeGrid.stratified(30, 1.0, key=KEY.at(3)) != one
    assert TimeGrid.stratified(30, 1.0, key=NoiseKey(9, 2)) != one
    before = torch.get_rng_state()
    TimeGrid.stratified(30, 1.0, key=KEY)
    assert torch.equal(torch.get_rng_state(), before)
    # Without a key torch's generator gives one.
    first, second = TimeGrid.stratified(9, 1.0), TimeGrid.stratified(9, 1.0)
    torch.set_rng_state(before)
    assert TimeGrid.stratified(9, 1.0) == first != second


def test_stratified_times_are_uniform_within_their_stratum() -> None:
    grids = [
        TimeGrid.stratified(201, 1.0, power=1.0, key=KEY.at(stream)).times for stream in range(60)
    ]
    places = torch.stack(grids)[:, 1:-1] * 200 - torch.arange(200, dtype=torch.float64)
    assert stats.kstest(places.flatten().numpy(), "uniform").pvalue > 1e-3


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "times",
    [
        [0.0, 0.25, 1.0],
        (0, 0.25, 1),
        torch.tensor([0.0, 0.25, 1.0]),
        torch.tensor([0.0, 0.25, 1.0], dtype=torch.float16),
        iter([0.0, 0.25, 1.0]),
        (i**2 / 4 for i in range(3)),
    ],
    ids=["list", "tuple", "float32", "float16", "iterator", "generator"],
)
def test_from_times_takes_any_sequence_of_numbers(times: Any) -> None:
    grid = TimeGrid.from_times(times)
    assert grid.times.dtype == torch.float64
    assert grid.num_steps == 2
    assert grid.t_end == 1.0


def test_grids_are_values() -> None:
    source = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    grid = TimeGrid.from_times(source)
    source[1] = 0.7
    assert grid_times(grid) == [0.0, 0.5, 1.0]
    same = TimeGrid.from_times([0.0, 0.5, 1.0])
    assert grid == same
    assert hash(grid) == hash(same)
    assert grid != TimeGrid.from_times([0.0, 0.6, 1.0])
    assert grid != [0.0, 0.5, 1.0]
    assert repr(grid) == "TimeGrid(num_steps=2, t_start=0.0, t_end=1.0)"
    with pytest.raises(AttributeError):
        grid.times = source  # type: ignore[misc]


@pytest.mark.parametrize(
    ("times", "text"),
    [
        ([0.0], "expected at least 2 times in one dimension, got shape (1,)"),
        ([], "expected at least 2 times in one dimension, got shape (0,)"),
        (torch.zeros(2, 2), "expected at least 2 times in one dimension, got shape (2, 2)"),
        ([0.0, math.nan, 1.0], "expected finite times, got times[1]=nan"),
        ([0.0, 0.5, math.inf], "expected finite times, got times[2]=inf"),
        ([0.0, 0.5, 0.5, 1.0], "got times[1]=0.5 and times[2]=0.5; sort them and drop"),
        ([0.0, 0.7, 0.5, 1.0], "got times[1]=0.7 and times[2]=0.5; sort them and drop"),
        ([1.0, 0.0], "expected increasing times (t_0 at the data), got times[0]=1.0"),
        (torch.arange(2**24 + 2), "expected at most 2^24 steps, got 16777217"),
        ([0.0, 1e-310, 1.0], "expected finite steps of at least 2.23e-308, got 1e-310; rescale"),
        ([-1.5e308, 1.5e308], "expected finite steps of at least 2.23e-308, got inf; rescale"),
    ],
)
def test_bad_times_name_the_first_culprit(times: Any, text: str) -> None:
    with pytest.raises(ValueError, match="TimeGrid") as caught:
        TimeGrid.from_times(times)
    assert text in str(caught.value)


@pytest.mark.parametrize("kind", ["power", "stratified"])
@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((0, 1.0), ValueError, "expected 1 <= num_steps < 16777217, got num_steps=0"),
        ((-3, 1.0), ValueError, "expected 1 <= num_steps < 16777217, got num_steps=-3"),
        ((2**24 + 1, 1.0), ValueError, "got num_steps=16777217"),
        ((10**30, 1.0), ValueError, "expected 1 <= num_steps < 16777217, got num_steps=1000000"),
        ((2.0, 1.0), TypeError, "expected num_steps to be an integer, got 2.0"),
        ((True, 1.0), TypeError, "expected num_steps to be an integer, got True"),
        ((5, 0.0), ValueError, "expected 0 <= t_start < t_end, got t_start=0.0, t_end=0.0"),
        ((5, 1.0, 1.0), ValueError, "got t_start=1.0, t_end=1.0"),
        ((5, 1.0, -0.1), ValueError, "got t_start=-0.1, t_end=1.0"),
        ((5, math.inf), ValueError, "got t_start=0.0, t_end=inf"),
        ((5, math.nan), ValueError, "got t_start=0.0, t_end=nan"),
        ((5, 1.0, math.nan), ValueError, "got t_start=nan, t_end=1.0"),
        ((5, 1.0, 0.0, 0.0), ValueError, "expected power > 0, got power=0.0"),
        ((5, 1.0, 0.0, -1.0), ValueError, "expected power > 0, got power=-1.0"),
        ((5, 1.0, 0.0, math.nan), ValueError, "expected power > 0, got power=nan"),
    ],
)
def test_bad_arguments_are_refused(
    kind: str, arguments: tuple, error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        getattr(TimeGrid, kind)(*arguments)
    assert str(caught.value).startswith(f"TimeGrid.{kind}: ")
    assert text in str(caught.value)


@pytest.mark.parametrize("kind", ["power", "stratified"])
def test_times_that_are_no_normal_numbers_are_refused(kind: str) -> None:
    for n, t_end in ((1, 1e-320), (3, 1e-320), (4, 3e-308)):
        with pytest.raises(ValueError, match=r"TimeGrid: expected finite steps of at least 2\.2"):
            getattr(TimeGrid, kind)(n, t_end)
    assert getattr(TimeGrid, kind)(1, 3e-308).num_steps == 1


# --- progressive ---------------------------------------------------------------------------------


def test_stages_hold_until_the_next_begins() -> None:
    stages = ProgressiveGrid([(0, 10), (100, 30), (101, 64)])
    expected = {0: 10, 99: 10, 100: 30, 101: 64, 10**9: 64}
    assert {iteration: stages(iteration) for iteration in expected} == expected
    assert stages == ProgressiveGrid(((0, 10), (100, 30), (101, 64)))
    with pytest.raises(ValueError, match="expected iteration >= 0, got -1"):
        stages(-1)


@pytest.mark.parametrize(
    ("stages", "text"),
    [
        ([], "expected a first stage at iteration 0, got []"),
        ([(1, 10)], "expected a first stage at iteration 0, got [(1, 10)]"),
        ([(0, 10), (5, 20), (5, 30)], "expected increasing iterations, got 5 and 5"),
        ([(0, 10), (5, 20), (3, 30)], "expected increasing iterations, got 5 and 3"),
        ([(0, 10), (5, 0)], "expected at least 1 step, got 0 at iteration 5"),
    ],
)
def test_bad_stages_are_refused(stages: list[tuple[int, int]], text: str) -> None:
    with pytest.raises(ValueError, match="ProgressiveGrid") as caught:
        ProgressiveGrid(stages)
    assert text in str(caught.value)
