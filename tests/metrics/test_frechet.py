"""The Fréchet distance against torchmetrics, the matrix root and closed forms."""

from __future__ import annotations

import math
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import linalg, stats

from diffflow_ext.metrics import fid, frechet_distance
from diffflow_ext.metrics.frechet import distance_of_normals

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(57, 3)), RNG.normal(0.3, 1.4, size=(49, 3))


class Crop(torch.nn.Module):
    """Eight of the pixels, as features."""

    num_features = 8

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :8].double()


def images(n: int, high: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, high, (n, channels, 4, 4), dtype=torch.uint8, generator=generator)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


@pytest.mark.parametrize("channels", [1, 3])
def test_fid_is_the_distance_in_the_features_of_the_network(
    channels: int, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchmetrics with some pixels in the place of the Inception network's features."""
    module = pytest.importorskip("torchmetrics.image.fid", reason="needs torchmetrics")

    class StandIn(module.FrechetInceptionDistance):
        def __init__(self, **options: object) -> None:
            assert options == {
                "feature": 2048, "feature_extractor_weights_path": str(weights), "antialias": False
            }  # fmt: skip
            super().__init__(feature=Crop(), input_img_size=(3, 4, 4))
            self.set_dtype(torch.float64)

    monkeypatch.setattr(module, "FrechetInceptionDistance", StandIn)
    samples, data = images(60, 200, channels), images(90, 256, channels)
    expected = frechet_distance(*(x.flatten(1)[:, :8] for x in (samples, data)))
    assert fid(samples, data.numpy(), weights) == pytest.approx(expected, rel=1e-7)


def test_fid_says_what_is_missing(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(
        ImportError, match=r"fid: .*torch-fidelity .*pip install 'diffflow_ext\[fid"
    ):
        fid(images(3, 9), images(3, 9), weights)
    with pytest.raises(FileNotFoundError, match=r"no\.pth"):
        fid(images(3, 9), images(3, 9), "no.pth")


class _Bomb:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return (Path.touch, (Path("canary"),))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:Detected pickle")
def test_fid_executes_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": _Bomb()}, "code.pth")
    Path("pickle.pth").write_bytes(pickle.dumps(_Bomb()))
    Path("noise.pth").write_bytes(bytes(range(256)))
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save("script.pt")
    for path in sorted(Path().iterdir()):
        with pytest.raises(ValueError, match=f"fid: expected {path} to hold tensors alone"):
            fid(images(3, 9), images(3, 9), path)
    assert not Path("canary").exists()


def test_fid_refuses_images(weights: Path) -> None:
    good = images(3, 9)
    for wrong in (good.float(), good.int().numpy(), good.tolist()):
        with pytest.raises(TypeError, match="fid: expected images as uint8, got"):
            fid(wrong, good, weights)
    for wrong in (good[0], good[:0], good[:, :, :0]):
        with pytest.raises(ValueError, match=r"fid: expected images of shape \(n, C, H, W\)"):
            fid(good, wrong, weights)
    for wrong in (good[:1], good[:, :2]):
        with pytest.raises(
            ValueError, match=r"fid: expected data of shape .*n >= 2 and C = 1 or 3"
        ):
            fid(good, wrong, weights)


def test_frechet_distance_against_the_matrix_root() -> None:
    rng = np.random.default_rng(14)
    x, y = rng.normal(size=(80, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(70, 6))
    a, b = np.cov(x.T), np.cov(y.T)
    root = linalg.sqrtm(a @ b)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2.0 * np.real(root))
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_singular_covariances() -> None:
    """For covariances u u^T and v v^T the trace of the root is |u . v|."""
    rng = np.random.default_rng(15)
    u, v = rng.normal(size=(2, 50))
    x, y, unit = (torch.as_tensor(c) for c in (np.outer(u, u), np.outer(v, v), np.eye(50)))
    zero = torch.zeros(50, dtype=torch.float64)
    expected = u @ u + v @ v - 2.0 * abs(u @ v)
    assert distance_of_normals(zero, x, zero, y) == pytest.approx(expected, rel=1e-12)
    # Rounding error in the 49 empty directions mustn't enter: its roots are 1e-8 each.
    expected = u @ u + 50.0 - 2.0 * math.sqrt(u @ u)
    assert distance_of_normals(zero, x, zero, unit) == pytest.approx(expected, rel=1e-12)
    assert distance_of_normals(zero, x, zero, x) == pytest.approx(0.0, abs=1e-12 * (u @ u))
    constant = np.c_[X, np.full(57, 3.0)]
    assert frechet_distance(constant, np.c_[Y, np.full(49, 3.0)]) == pytest.approx(
        frechet_distance(X, Y), rel=1e-9
    )
    assert frechet_distance(np.ones((9, 2)), np.zeros((9, 2))) == pytest.approx(2.0)


def test_frechet_distance_refuses_few_rows() -> None:
    for name, sets in (("x", (X[:3], Y)), ("y", (X, Y[:3]))):
        words = f"more rows than the 3 features, got 3 rows of {name}.*singular"
        with pytest.raises(ValueError, match=words):
            frechet_distance(*sets)


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
