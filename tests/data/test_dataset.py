"""Splits, standardisation, fingerprints and the order of batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffflow_ext.data import Table, batch_indices, dataset, open_dataset, sample_toy, split_table


def _table(values: np.ndarray, names: str = "abcdefgh") -> Table:
    return Table(values, list(names[: values.shape[1]]), "memory")


ROWS = np.random.default_rng(1).normal([5.0, -300.0], [0.1, 40.0], size=(1003, 2))


def test_toy_splits() -> None:
    data = open_dataset("four_rings", num_points=3_000)
    assert data.name == "four-rings"
    assert data.dim == 2
    assert data.columns == ["x1", "x2"]
    assert [len(part) for part in (data.train, data.valid, data.test)] == [3_000, 10_000, 20_000]
    assert all(part.dtype == torch.float32 for part in (data.train, data.valid, data.test))
    assert data.encoding is not None
    assert torch.equal(data.encoding.decoded(data.train), data.train.double())
    assert torch.equal(data.encoding.inputs(data.train, None), data.train)
    assert not data.encoding.log_weight(data.test, data.test).any()
    assert not torch.equal(data.train, data.valid[:3_000])
    assert not torch.equal(data.valid, data.test[:10_000])
    assert np.array_equal(data.train.numpy(), sample_toy("four-rings", 3_000, 0))


def test_splits_of_several_seeds_never_share_points() -> None:
    opened = [open_dataset("moons", seed=seed, num_points=10_000) for seed in range(4)]
    parts = [part[:50] for data in opened for part in (data.train, data.valid, data.test)]
    assert len(np.unique(np.concatenate(parts), axis=0)) == 12 * 50


def test_table_split_keeps_every_row_once() -> None:
    data = split_table(_table(ROWS))
    assert [len(part) for part in (data.train, data.valid, data.test)] == [803, 100, 100]
    assert data.encoding is not None
    back = data.encoding.decoded(torch.cat([data.train, data.valid, data.test])).numpy()
    order, truth = np.lexsort(back.T[::-1]), np.lexsort(ROWS.T[::-1])
    assert np.allclose(back[order], ROWS[truth], rtol=1e-6, atol=1e-6)
    assert not np.allclose(back[:100], ROWS[:100])


def test_standardised_by_the_training_split_alone() -> None:
    data = split_table(_table(ROWS))
    train = data.train.double()
    assert torch.allclose(train.mean(0), torch.zeros(2).double(), atol=1e-6)
    assert torch.allclose(train.std(0, correction=0), torch.ones(2).double(), atol=1e-6)
    assert data.encoding is not None
    mean = torch.tensor([column.mean for column in data.encoding.columns]).double()
    assert torch.allclose(data.encoding.decoded(data.train).mean(0), mean)
    assert data.columns == ["a", "b"]


def test_the_split_of_a_table_ignores_the_seed(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    first, second = (open_dataset(tmp_path / "a.npy", seed=seed) for seed in (0, 9))
    assert torch.equal(first.test, second.test)
    assert first.fingerprint == second.fingerprint
    assert first.name == str(tmp_path / "a.npy")


def test_the_split_is_the_stated_permutation() -> None:
    words = np.random.Philox(key=np.array([211007579, 0], np.uint64)).random_raw(len(ROWS))
    expected = ROWS[np.argsort(words)][-100:]
    data = split_table(_table(ROWS))
    assert data.encoding is not None
    assert np.allclose(data.encoding.decoded(data.test).numpy(), expected, rtol=1e-6)


def test_fingerprint_follows_the_data() -> None:
    first = split_table(_table(ROWS)).fingerprint
    assert len(first) == 64
    assert first == split_table(_table(ROWS.copy())).fingerprint
    changed = ROWS.copy()
    changed[17, 0] += 0.01
    others = {
        first,
        split_table(_table(changed)).fingerprint,
        split_table(_table(ROWS[:1002])).fingerprint,
        open_dataset("moons", num_points=100).fingerprint,
        open_dataset("moons", num_points=101).fingerprint,
        open_dataset("moons", num_points=100, seed=1).fingerprint,
    }
    assert len(others) == 6


def test_a_name_that_is_nothing(tmp_path: Path) -> None:
    for wrong, right in {"mons": "moons", "mnsit": "mnist", "cifar-10": "cifar10"}.items():
        with pytest.raises(ValueError, match=rf"is neither; did you mean '{right}'\?"):
            open_dataset(wrong)
    with pytest.raises(ValueError, match=r"found nothing at .*; check the spelling"):
        open_dataset(tmp_path / "zzzzzzzzzz.csv")
    with pytest.raises(ValueError, match="is neither; check the spelling"):
        open_dataset("x\0y")
    with pytest.raises(ValueError, match=r"batches in the folder .*found none"):
        open_dataset(tmp_path)


def test_bad_tables() -> None:
    rows = ROWS.copy()
    rows[3, 1] = np.inf
    with pytest.raises(ValueError, match=r"row 3 \(counted from 0\), column 'b'"):
        split_table(_table(rows))
    lonely = np.c_[ROWS, np.zeros(len(ROWS))]
    words = np.random.Philox(key=np.array([211007579, 0], np.uint64)).random_raw(len(ROWS))
    lonely[np.argsort(words)[-1], 2] = 1.0
    with pytest.raises(ValueError, match="training split, not so 'c'"):
        split_table(_table(lonely))
    with pytest.raises(ValueError, match="not so 'a'"):
        split_table(_table(ROWS * 1e200))
    far = ROWS.copy()
    far[np.argsort(words)[-1], 1] = 1e30
    with pytest.raises(ValueError, match=r"within 1e12 deviations.*column 'b' of 'memory'"):
        split_table(_table(far))
    with pytest.raises(ValueError, match="at least 20 rows"):
        split_table(_table(ROWS[:19]))
    with pytest.raises(ValueError, match="got -1 and 5"):
        open_dataset("moons", seed=-1, num_points=5)


@pytest.mark.parametrize("n", [1, 7, 64])
def test_every_row_once_per_epoch(n: int) -> None:
    rows = torch.cat([batch_indices(n, 1, 5, step) for step in range(6 * n)])
    epochs = rows.reshape(6, n)
    assert rows.dtype == torch.int64
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(n).expand_as(epochs))


def test_batches_don_t_depend_on_the_order_of_calls() -> None:
    forward = [batch_indices(23, 9, 2, step) for step in range(40)]
    dataset._permutation.cache_clear()
    for step in np.random.default_rng(0).permutation(40):
        assert torch.equal(batch_indices(23, 9, 2, int(step)), forward[step])
        batch_indices(23, 9, 3, int(step)).zero_()
    assert torch.equal(batch_indices(23, 9, 2, 39), forward[39])


def test_batches_are_slices_of_one_sequence() -> None:
    """The sequence does not depend on the batch size: borders fall where they should."""
    ones = torch.cat([batch_indices(11, 1, 0, step) for step in range(60)])
    for batch_size in (2, 5, 11, 30):
        rows = torch.cat([batch_indices(11, batch_size, 0, s) for s in range(60 // batch_size)])
        assert torch.equal(rows, ones[: len(rows)])


def test_batches_change_with_seed_and_epoch() -> None:
    a, b = batch_indices(1000, 1000, 0, 0), batch_indices(1000, 1000, 1, 0)
    c = batch_indices(1000, 1000, 0, 1)
    for other in (b, c):
        assert int((a == other).sum()) < 10
    assert batch_indices(10, 4, (1 << 64) - 1, 10**12).shape == (4,)


def test_first_place_is_uniform_over_rows() -> None:
    first = torch.stack([batch_indices(8, 1, 1, 8 * epoch)[0] for epoch in range(4_000)])
    counts = torch.bincount(first, minlength=8)
    assert float(((counts - 500.0) ** 2 / 500.0).sum()) < 30.0  # chi^2, 7 degrees: p = 1e-4


@pytest.mark.parametrize(
    "arguments", [(0, 1, 0, 0), (5, 0, 0, 0), (5, 1, -1, 0), (5, 1, 0, -1), (5, 1, 1 << 64, 0)]
)
def test_batch_errors(arguments: tuple[int, int, int, int]) -> None:
    n, batch_size, seed, step = arguments
    text = f"n={n}, batch_size={batch_size}, step={step}, seed={seed}"
    with pytest.raises(ValueError, match=text):
        batch_indices(*arguments)
    with pytest.raises(TypeError):
        batch_indices(5, 1.5, 0, 0)  # type: ignore[arg-type]
