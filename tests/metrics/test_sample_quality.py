"""Sample quality against scikit-learn, torchmetrics, brute force and closed forms."""

from __future__ import annotations

import doctest
import io
import math
import pickle
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import linalg, stats

from diffflow_ext.metrics import (
    Statistics,
    c2st,
    distances,
    feature_statistics,
    floor,
    frechet_distance,
    kernel_distance,
    load_statistics,
    manifolds,
    precision_recall,
    save_statistics,
    two_sample,
    with_floor,
)

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(57, 3)), RNG.normal(0.3, 1.4, size=(49, 3))
# Few distinct points, most of them repeated: distances tie.
GRID_X, GRID_Y = RNG.integers(0, 4, size=(40, 2)), RNG.integers(1, 5, size=(40, 2))

small = arrays.arrays(
    np.int64, st.tuples(st.integers(8, 14), st.just(2)), elements=st.integers(-3, 3)
)


# --- the two-sample test -------------------------------------------------------------------------


def _halves(x: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = two_sample._halves(torch.as_tensor(x).double(), n, seed)
    return first.numpy(), second.numpy()


def _brute_c2st(x: np.ndarray, y: np.ndarray, k: int, seed: int) -> float:
    """Votes one by one, in fractions."""
    n = min(len(x), len(y))
    halves = [_halves(x, n, seed), _halves(y, n, seed)]
    right = Fraction(0)
    for own in (0, 1):
        for row in halves[own][1]:
            pool = [(((row - p) ** 2).sum(), s) for s in (0, 1) for p in halves[s][0]]
            last = sorted(d for d, _ in pool)[k - 1]
            closer = [s for d, s in pool if d < last]
            tied = [s for d, s in pool if d == last]
            share = Fraction(k - len(closer), len(tied))
            votes = closer.count(own) + share * tied.count(own)
            right += Fraction(1, 2) * (1 + (2 * votes > k) - (2 * votes < k))
    return float(right / sum(len(half[1]) for half in halves))


@pytest.mark.parametrize("k", [1, 5, 15])
@pytest.mark.parametrize("chunk", [1, 500, 1 << 22])
def test_c2st_against_scikit_learn(k: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    neighbors = pytest.importorskip("sklearn.neighbors", reason="needs scikit-learn")
    monkeypatch.setattr(two_sample, "CHUNK_ELEMENTS", chunk)
    (train_x, test_x), (train_y, test_y) = _halves(X, 49, 3), _halves(Y, 49, 3)
    model = neighbors.KNeighborsClassifier(k)
    model.fit(np.r_[train_x, train_y], np.repeat([0, 1], [len(train_x), len(train_y)]))
    truth = np.repeat([0, 1], [len(test_x), len(test_y)])
    expected = model.score(np.r_[test_x, test_y], truth)
    found = c2st(X, torch.as_tensor(Y), seed=3, neighbours=k)
    assert found.n == len(truth) == 50
    assert found.accuracy == pytest.approx(expected, abs=1e-12)
    assert found.error == pytest.approx(math.sqrt(expected * (1 - expected) / 50), abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 4, 7])
def test_c2st_with_ties_by_brute_force(k: int) -> None:
    for seed in range(4):
        found = c2st(GRID_X, GRID_Y, seed=seed, neighbours=k).accuracy
        assert found == pytest.approx(_brute_c2st(GRID_X, GRID_Y, k, seed), abs=1e-12)


def test_c2st_of_one_distribution_is_half_within_its_error() -> None:
    rng = np.random.default_rng(1)
    pairs = [(rng.normal(size=(120, 2)), rng.normal(size=(150, 2))) for _ in range(200)]
    z = np.array([(c2st(x, y).accuracy - 0.5) * 2.0 * math.sqrt(120) for x, y in pairs])
    assert abs(z.mean()) < 4.0 / math.sqrt(200)
    assert z.std() == pytest.approx(1.0, abs=0.2)


def test_c2st_of_far_equal_and_copied_samples() -> None:
    rng = np.random.default_rng(11)
    assert c2st(X, X + 100.0)[:2] == (1.0, 0.0)
    assert c2st(X, X, neighbours=4).accuracy == 0.5
    assert c2st(np.zeros((40, 2)), np.zeros((60, 2))).accuracy == 0.5
    copies = rng.permutation(X) + 1e-6
    assert c2st(X, copies, neighbours=1).accuracy < 0.4
    memorised = np.repeat(X[:4], 20, axis=0)
    assert c2st(memorised, rng.normal(size=(80, 3)), neighbours=3).accuracy > 0.8


def test_c2st_depends_on_its_seed() -> None:
    values = [c2st(X, Y, seed=seed).accuracy for seed in range(10)]
    assert values[0] == c2st(X, Y).accuracy
    assert len(set(values)) > 2


@given(small, small, st.integers(1, 3), st.integers(0, 9))
def test_c2st_of_any_samples(x: np.ndarray, y: np.ndarray, k: int, seed: int) -> None:
    found = c2st(x, y, neighbours=k, seed=seed)
    assert 0.0 <= found.accuracy <= 1.0
    assert found == c2st(y, x, neighbours=k, seed=seed)
    assert found == c2st(4.0 * x + 8.0, 4.0 * y + 8.0, neighbours=k, seed=seed)
    assert found.n == 2 * -(-min(len(x), len(y)) // 2)


# --- precision, recall, density, coverage --------------------------------------------------------


def _brute_precision_recall(x: np.ndarray, y: np.ndarray, k: int) -> list[float]:
    """From the definitions, one ball at a time; squared distances of whole numbers are exact."""

    def radii(a: np.ndarray) -> list[float]:
        return [sorted(((a - p) ** 2).sum(1))[k] for p in a]

    r_x, r_y = radii(x), radii(y)
    inside_y = [[((p - q) ** 2).sum() <= r for q, r in zip(y, r_y, strict=True)] for p in x]
    inside_x = [[((p - q) ** 2).sum() <= r for p, r in zip(x, r_x, strict=True)] for q in y]
    return [
        np.mean([any(row) for row in inside_y]),
        np.mean([any(row) for row in inside_x]),
        sum(map(sum, inside_y)) / (k * len(x)),
        np.mean([any(column) for column in zip(*inside_y, strict=True)]),
    ]


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("chunk", [1, 300, 1 << 22])
def test_precision_recall_by_brute_force(
    k: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifolds, "CHUNK_ELEMENTS", chunk)
    for x, y in ((X, Y), (Y[:20], X), (GRID_X, GRID_Y)):
        expected = _brute_precision_recall(x, y, k)
        assert list(precision_recall(x, y, k)) == pytest.approx(expected, abs=1e-12)


def test_precision_recall_against_scikit_learn() -> None:
    rng = np.random.default_rng(12)
    neighbors = pytest.importorskip("sklearn.neighbors", reason="needs scikit-learn")
    x, y, k = rng.normal(size=(300, 8)), rng.normal(0.2, 1.1, size=(250, 8)), 5
    trees = {name: neighbors.NearestNeighbors().fit(rows) for name, rows in (("x", x), ("y", y))}
    # Without rows given, a row isn't its own neighbour.
    radii = {name: tree.kneighbors(None, k)[0][:, -1] for name, tree in trees.items()}
    d = np.linalg.norm(x[:, None] - y, axis=2)
    nearest_sample = trees["x"].kneighbors(y, 1)[0][:, 0]
    expected = [
        (d <= radii["y"]).any(1).mean(),
        (d <= radii["x"][:, None]).any(0).mean(),
        (d <= radii["y"]).sum() / (k * 300),
        (nearest_sample <= radii["y"]).mean(),
    ]
    found = precision_recall(torch.as_tensor(x), y)
    assert list(found) == pytest.approx(expected, abs=1e-12)
    assert 0.1 < found.recall < 1.0


@pytest.mark.parametrize("k", [1, 3, 5])
def test_expected_density_and_coverage_of_one_distribution(k: int) -> None:
    """Naeem et al.: E density = 1; E coverage is known for any n, m and k, near 1 - 2^-k."""
    rng, n = np.random.default_rng(2), 400
    found = [
        precision_recall(rng.normal(size=(n, 4)), rng.normal(size=(n, 4)), k) for _ in range(20)
    ]
    missed = math.prod((n - i) / (2 * n - i) for i in range(1, k + 1))
    assert np.mean([f.coverage for f in found]) == pytest.approx(1.0 - missed, abs=0.015)
    assert np.mean([f.coverage for f in found]) == pytest.approx(1.0 - 2.0**-k, abs=0.015)
    assert np.mean([f.density for f in found]) == pytest.approx(1.0, abs=0.03)


def test_precision_recall_of_typical_failures() -> None:
    rng = np.random.default_rng(13)
    data, other = rng.normal(size=(2, 500, 2))
    assert precision_recall(data + 50.0, data) == (0.0, 0.0, 0.0, 0.0)
    memorised = precision_recall(np.repeat(other[:25], 20, axis=0), data)
    assert memorised.precision > 0.9
    assert memorised.recall < 0.05
    assert memorised.coverage < 0.4
    noisy = precision_recall(other + 5.0 * rng.normal(size=(500, 2)), data)
    assert noisy.precision < 0.4
    assert noisy.recall > 0.9


@given(small, small, st.integers(1, 4))
def test_precision_recall_of_any_samples(x: np.ndarray, y: np.ndarray, k: int) -> None:
    found, swapped = precision_recall(x, y, k), precision_recall(y, x, k)
    assert (found.precision, found.recall) == (swapped.recall, swapped.precision)
    assert all(0.0 <= value <= 1.0 for value in (found.precision, found.recall, found.coverage))
    assert found == precision_recall(4.0 * x + 8.0, 4.0 * y + 8.0, k)
    assert (found.density > 0.0) == (found.precision > 0.0) == (found.coverage > 0.0)
    same = precision_recall(x, x, k)
    assert (same.precision, same.recall, same.coverage) == (1.0, 1.0, 1.0)


# --- Frechet distance ----------------------------------------------------------------------------


def _stats(mean: np.ndarray, covariance: np.ndarray) -> Statistics:
    return Statistics(torch.as_tensor(mean).double(), torch.as_tensor(covariance).double())


def test_frechet_distance_against_torchmetrics() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid", reason="needs torchmetrics")

    class Crop(torch.nn.Module):
        """Eight of the pixels, as features."""

        num_features = 8

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :8].double()

    metric = fid.FrechetInceptionDistance(feature=Crop(), input_img_size=(3, 4, 4))
    metric.set_dtype(torch.float64)
    x, y = (
        torch.randint(0, high, (n, 3, 4, 4), dtype=torch.uint8)
        for n, high in ((60, 200), (90, 256))
    )
    metric.update(x, real=False)
    metric.update(y, real=True)
    found = frechet_distance(x.flatten(1)[:, :8], y.flatten(1)[:, :8].numpy())
    assert found == pytest.approx(float(metric.compute()), rel=1e-7)


def test_frechet_distance_against_the_matrix_root() -> None:
    rng = np.random.default_rng(14)
    x, y = rng.normal(size=(80, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(70, 6))
    a, b = np.cov(x.T), np.cov(y.T)
    root = linalg.sqrtm(a @ b)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2.0 * np.real(root))
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(y, feature_statistics(x)) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_in_closed_form() -> None:
    """For covariances with common axes, squared differences of the deviations."""
    turn = stats.ortho_group.rvs(4, random_state=1)
    s, t = np.array([3.0, 1.0, 0.1, 0.0]), np.array([1.0, 2.0, 0.0, 0.0])
    mean = np.array([1.0, -2.0, 0.0, 2.0])
    x = _stats(mean, turn @ np.diag(s**2) @ turn.T)
    y = _stats(0.0 * mean, turn @ np.diag(t**2) @ turn.T)
    expected = 9.0 + ((s - t) ** 2).sum()
    # The root of rounding error, 1e-8, stands where a deviation is zero.
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-7)


def test_frechet_distance_of_singular_covariances() -> None:
    """For covariances u u^T and v v^T the trace of the root is |u . v|."""
    rng = np.random.default_rng(15)
    u, v = rng.normal(size=(2, 50))
    x, y = _stats(0.0 * u, np.outer(u, u)), _stats(0.0 * u, np.outer(v, v))
    expected = u @ u + v @ v - 2.0 * abs(u @ v)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-12)
    # Rounding error in the 49 empty directions mustn't enter: its roots are 1e-8 each.
    unit = _stats(0.0 * u, np.eye(50))
    expected = u @ u + 50.0 - 2.0 * math.sqrt(u @ u)
    assert frechet_distance(x, unit) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-12 * (u @ u))
    constant = np.c_[X, np.full(57, 3.0)]
    assert frechet_distance(constant, np.c_[Y, np.full(49, 3.0)]) == pytest.approx(
        frechet_distance(X, Y), rel=1e-9
    )
    assert frechet_distance(np.ones((9, 2)), np.zeros((9, 2))) == pytest.approx(2.0)


def test_frechet_distance_of_normals_converges_from_above() -> None:
    """The bias falls like 1/n."""
    rng = np.random.default_rng(6)
    means = [
        np.mean([frechet_distance(*rng.normal(size=(2, n, 4))) for _ in range(40)])
        for n in (100, 400)
    ]
    assert means[0] / means[1] == pytest.approx(4.0, rel=0.3)


def test_frechet_distance_refuses_few_rows() -> None:
    with pytest.raises(
        ValueError, match=r"more rows than the 3 features, got 3 rows of x.*singul"
    ):
        frechet_distance(X[:3], Y)
    with pytest.raises(ValueError, match=r"got 3 rows of y"):
        frechet_distance(X, feature_statistics(Y[:3]))
    a, b = np.cov(X[:3].T), np.cov(Y.T)
    root = np.trace(np.real(linalg.sqrtm(a @ b + 0j)))
    expected = ((X[:3].mean(0) - Y.mean(0)) ** 2).sum() + np.trace(a + b) - 2.0 * root
    found = frechet_distance(X[:3], Y, allow_singular=True)
    assert found == pytest.approx(expected, rel=1e-6)  # of SciPy's root, which is less exact


@given(
    arrays.arrays(np.float64, (9, 3), elements=st.floats(-5.0, 5.0, width=16)),
    arrays.arrays(np.float64, (7, 3), elements=st.floats(-5.0, 5.0, width=16)),
    st.integers(0, 100),
)
def test_frechet_distance_of_any_samples(x: np.ndarray, y: np.ndarray, turn: int) -> None:
    found, scale = frechet_distance(x, y), 1.0 + np.square(x).sum() + np.square(y).sum()
    rotation = stats.ortho_group.rvs(3, random_state=turn)
    assert found >= 0.0
    assert found == pytest.approx(frechet_distance(y, x), abs=1e-7 * scale)
    assert found == pytest.approx(frechet_distance(x @ rotation, y @ rotation), abs=1e-7 * scale)
    assert frechet_distance(x, x[::-1].copy()) == pytest.approx(0.0, abs=1e-9 * scale)
    moved = frechet_distance(x, x + np.array([3.0, 0.0, 4.0]))
    assert moved == pytest.approx(25.0, abs=1e-9 * scale)


def test_statistics_are_means_and_covariances() -> None:
    found = feature_statistics(torch.as_tensor(X).float() + 1000.0, extractor="a@1")
    assert (found.count, found.extractor, found.mean.dtype) == (57, "a@1", torch.float64)
    exact = (X.astype(np.float32) + np.float32(1000.0)).astype(np.float64)
    assert np.allclose(found.mean, exact.mean(0), rtol=1e-14)
    assert np.allclose(found.covariance, np.cov(exact.T), rtol=1e-9)


def test_statistics_are_refused() -> None:
    eye, zero = torch.eye(2).double(), torch.zeros(2).double()
    for mean, covariance in ((eye, eye), (zero, zero), (zero[:1], eye), (zero[:0], eye[:0, :0])):
        with pytest.raises(ValueError, match=r"Statistics: expected a mean of shape \(d,\)"):
            Statistics(mean, covariance)
    with pytest.raises(ValueError, match=r"Statistics: expected float64, got torch\.float32"):
        Statistics(zero.float(), eye)
    with pytest.raises(ValueError, match="Statistics: expected finite"):
        Statistics(zero, eye / zero)
    with pytest.raises(ValueError, match="symmetric covariance"):
        Statistics(zero, torch.tensor([[1.0, 0.5], [0.4, 1.0]]).double())
    with pytest.raises(ValueError, match="without negative eigenvalues, that of y has -1"):
        frechet_distance(Statistics(zero, eye), Statistics(zero, -eye))
    with pytest.raises(ValueError, match="as many features, got 3 and 2"):
        frechet_distance(X, Statistics(zero, eye))
    one, other = (feature_statistics(X, extractor=name) for name in ("a@1", "a@2"))
    with pytest.raises(ValueError, match=r"one extractor, got 'a@1' and 'a@2'"):
        frechet_distance(one, other)
    assert frechet_distance(one, feature_statistics(X)) == pytest.approx(0.0, abs=1e-12)


# --- statistics in files -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "classifier-28x28@0123456789ab"])
def test_statistics_come_back(tmp_path: Path, name: str) -> None:
    written = feature_statistics(X, extractor=name)
    path = save_statistics(tmp_path / "a.npz", written)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.npz"]
    found = load_statistics(path)
    assert torch.equal(found.mean, written.mean)
    assert torch.equal(found.covariance, written.covariance)
    assert (found.count, found.extractor) == (57, name)
    with np.load(path) as plain:
        assert np.array_equal(plain["mu"], written.mean.numpy())


def test_statistics_of_other_tools(tmp_path: Path) -> None:
    """mu and sigma alone, of any precision, byte order and memory order."""
    mean, covariance = X.mean(0), np.cov(X.T)
    for kind in ("<f4", ">f8"):
        np.savez_compressed(
            tmp_path / "a.npz",
            mu=mean.astype(kind),
            sigma=np.asfortranarray(covariance.astype(kind)),
            other=np.arange(3),
        )
        found = load_statistics(tmp_path / "a.npz")
        assert (found.count, found.extractor) == (None, "")
        assert np.allclose(found.covariance, covariance, rtol=1e-6)
        assert frechet_distance(found, X) == pytest.approx(0.0, abs=1e-6)


class _Bomb:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return (Path.touch, (Path("canary"),))


def _npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def _npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def _saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_statistics_execute_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    held = np.empty(1, object)
    held[0] = _Bomb()
    good = _saved(np.eye(2))
    header = "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"
    for data in (_saved(held), _npy(header, pickle.dumps(held)), pickle.dumps(held)):
        with pytest.raises(ValueError, match=r"load_statistics: expected .* numeric arrays"):
            load_statistics(_npz(tmp_path / "a.npz", mu=data, sigma=good))
    (tmp_path / "b.npz").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(ValueError, match="load_statistics: expected"):
        load_statistics(tmp_path / "b.npz")
    assert not (tmp_path / "canary").exists()


def test_statistics_larger_than_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffflow_ext.metrics.frechet.MAX_ENTRY_BYTES", 10_000)
    shape = "{'descr': '<f8', 'fortran_order': False, 'shape': (%s,)}"
    for data in (
        _npy(shape % 2**60, bytes(16)),
        _npy(shape % "2**60"),
        _npy(shape % -2, bytes(16)),
        bytes(20_000),
        b"\x93NUMPY\x09\x00" + bytes(100),
        b"",
    ):
        with pytest.raises(ValueError, match="load_statistics: expected"):
            load_statistics(_npz(tmp_path / "a.npz", mu=data, sigma=_saved(np.eye(2))))


def test_statistics_that_are_missing_or_of_no_numbers(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_statistics(tmp_path / "no.npz")
    with pytest.raises(ValueError, match=r"entries mu and sigma .*got \['mu'\]"):
        load_statistics(_npz(tmp_path / "a.npz", mu=_saved(np.zeros(2))))
    with pytest.raises(ValueError, match="floating-point entries"):
        load_statistics(
            _npz(tmp_path / "a.npz", mu=_saved(np.zeros(2)), sigma=_saved(np.eye(2, dtype=int)))
        )
    with pytest.raises(ValueError, match="Statistics: expected finite"):
        load_statistics(
            _npz(tmp_path / "a.npz", mu=_saved(np.full(2, np.nan)), sigma=_saved(np.eye(2)))
        )
    with pytest.raises(ValueError, match=r"save_statistics: expected a path ending in \.npz"):
        save_statistics(tmp_path / "a.npy", feature_statistics(X))


def test_damaged_statistics_raise_one_kind_of_error(tmp_path: Path) -> None:
    """Truncated anywhere: an error. A changed byte: an error, or what was written."""
    written = feature_statistics(X, extractor="a@1")
    path = save_statistics(tmp_path / "a.npz", written)
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="load_statistics: expected"):
            load_statistics(path)
    rng, accepted = np.random.default_rng(3), 0
    for _ in range(500):
        broken = bytearray(data)
        broken[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        try:
            found = load_statistics(path)
        except ValueError:
            continue
        accepted += 1
        assert torch.equal(found.mean, written.mean)
        assert torch.equal(found.covariance, written.covariance)
    assert accepted < 300


# --- kernel distance -----------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 1 << 22])
def test_kernel_distance_by_brute_force(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "CHUNK_ELEMENTS", chunk)
    x, y = ((rows - Y.mean(0)) / Y.std(0, ddof=1) for rows in (X, Y))
    k = [(a @ b.T / 3 + 1.0) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    within = [(one.sum() - np.trace(one)) / (len(one) * (len(one) - 1)) for one in k[:2]]
    expected = sum(within) - 2.0 * k[2].mean()
    assert kernel_distance(X, Y) == pytest.approx(expected, rel=1e-11)


def test_kernel_distance_against_torchmetrics() -> None:
    kid = pytest.importorskip("torchmetrics.image.kid", reason="needs torchmetrics")
    x, y = (torch.as_tensor((rows[:49] - Y.mean(0)) / Y.std(0, ddof=1)) for rows in (X, Y))
    expected = float(kid.poly_mmd(x, y))
    assert kernel_distance(X[:49], Y) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_is_unbiased_and_free_of_units() -> None:
    rng = np.random.default_rng(8)
    values = np.array([kernel_distance(*rng.normal(size=(2, 30, 3))) for _ in range(300)])
    assert abs(values.mean()) < 4.0 * values.std() / math.sqrt(300)
    assert (values < 0.0).any()
    scale, shift = np.array([1e-3, 1.0, 1e5]), np.array([5.0, 0.0, -3.0])
    moved = kernel_distance(X * scale + shift, Y * scale + shift)
    assert moved == pytest.approx(kernel_distance(X, Y), rel=1e-9)


@pytest.mark.parametrize("level", [0.0, 0.1, 1.0 / 3.0, 0.7, 1e6 / 7.0])
def test_kernel_distance_leaves_constant_columns_out(level: float) -> None:
    """They add nothing to products, and one to the number of columns; so does rounding error."""
    rounding = 1.0 + 2e-16 * np.arange(3).repeat(19)
    columns = [np.c_[rows, level * rounding[: len(rows)]] for rows in (X, Y)]
    expected = [np.c_[rows, np.zeros(len(rows))] for rows in (X, Y)]
    assert kernel_distance(*columns) == pytest.approx(kernel_distance(*expected), rel=1e-8)


# --- floors --------------------------------------------------------------------------------------


class _Pair(NamedTuple):
    first: float
    second: float


def test_floor_by_hand() -> None:
    real = np.arange(10.0)[:, None]
    seen: list[list[float]] = []

    def measure(x: torch.Tensor, y: torch.Tensor) -> _Pair:
        seen.append(x[:, 0].tolist())
        assert y[:, 0].tolist() == [100.0, 200.0]
        return _Pair(float(x.sum()), float(y.mean()))

    found = with_floor(
        measure, np.array([[-1.0], [-2.0], [-3.0]]), [[100.0], [200.0]] * np.ones(1), real
    )
    *draws, samples = seen
    assert samples == [-1.0, -2.0, -3.0]
    assert [len(draw) for draw in draws] == [3, 3, 3]
    rows = [row for draw in draws for row in draw]
    assert len(set(rows)) == 9, "draws are disjoint"
    assert rows != sorted(rows), "and random"
    sums = [sum(draw) for draw in draws]
    assert found.value == {"first": -6.0, "second": 150.0}
    assert found.floor == pytest.approx({"first": np.mean(sums), "second": 150.0})
    assert found.spread == pytest.approx({"first": np.std(sums, ddof=1), "second": 0.0})
    assert (found.n, found.draws) == (3, 3)


def test_floor_of_the_measures() -> None:
    rng = np.random.default_rng(16)
    data = rng.normal(size=(900, 2))
    bad = rng.normal(2.0, 1.0, size=(200, 2))
    far = with_floor(frechet_distance, bad, data[:200], data[200:])
    assert far.draws == 3
    assert far.floor["value"] < 0.1 < 7.0 < far.value["value"]
    assert 0.0 < far.spread["value"] < 0.1
    told = with_floor(c2st, bad, data[:200], data[200:], draws=1)
    assert told.floor["accuracy"] < 0.65 < 0.8 < told.value["accuracy"]
    assert math.isnan(told.spread["accuracy"])
    again = with_floor(frechet_distance, bad, data[:200], data[200:])
    assert again == far
    other = with_floor(frechet_distance, bad, data[:200], data[200:], seed=1)
    assert other.floor != far.floor


def test_floor_example() -> None:
    names = {"precision_recall": precision_recall}
    assert doctest.testmod(floor, extraglobs=names) == (0, 3)


def test_floor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"real of shape \(l, 3\) with l >= 57.*got \(49, 3\)"):
        with_floor(frechet_distance, X, Y, Y)
    with pytest.raises(ValueError, match=r"real of shape \(l, 3\).*got \(57, 2\)"):
        with_floor(frechet_distance, X, Y, X[:, :2])
    with pytest.raises(ValueError, match="draws >= 1"):
        with_floor(frechet_distance, X, Y, X, draws=0)
    with pytest.raises(TypeError, match=r"returns a number or a named tuple.*got list"):
        with_floor(lambda x, y: [1.0], X, Y, X)


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [c2st, precision_recall, frechet_distance, kernel_distance])
def test_errors(function: Callable[..., object]) -> None:
    name = function.__name__
    count = "features, got 3 and 2" if function is frechet_distance else r"\(57, 3\) and \(49, 2\)"
    with pytest.raises(ValueError, match=rf"{name}: expected .*{count}"):
        function(X, Y[:, :2])
    with pytest.raises(ValueError, match=rf"{name}: expected .*\(n, d\).*\(57,\)"):
        function(X[:, 0], Y)
    with pytest.raises(ValueError, match=rf"{name}: .*\(1, 3\)"):
        function(X, Y[:1])
    broken = X.copy()
    broken[2] = np.nan
    with pytest.raises(ValueError, match="expected finite values, 1 of 57 rows"):
        function(broken, Y)
    with pytest.raises(TypeError, match=f"{name}: .*got list"):
        function(X.tolist(), Y)
    with pytest.raises(TypeError, match=f"{name}: .*complex"):
        function(X, torch.as_tensor(Y) + 1j)


def test_errors_of_single_arguments() -> None:
    with pytest.raises(ValueError, match=r"c2st: .*n >= 32.*\(31, 3\)"):
        c2st(X, Y[:31])
    for arguments in ({"neighbours": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="c2st: expected neighbours >= 1 and seed >= 0"):
            c2st(X, Y, **arguments)
    with pytest.raises(ValueError, match="precision_recall: expected k >= 1, got 0"):
        precision_recall(X, Y, 0)
    with pytest.raises(ValueError, match=r"n >= 6.*\(5, 3\)"):
        precision_recall(X, Y[:5])
