r"""The Fréchet distance of two samples, by their means and covariances alone.

.. math:: |\mu_x - \mu_y|^2 + \operatorname{tr} \Sigma_x + \operatorname{tr} \Sigma_y
          - 2 \operatorname{tr} (\Sigma_x \Sigma_y)^{1/2}

With factors :math:`\Sigma = R^T R` the last trace is the sum of the singular values of
:math:`R_x R_y^T`: no root of a product that isn't symmetric is taken, and covariances may be
singular. Means and covariances can be exchanged in place of samples, as .npz files with the
entries mu and sigma that other tools write.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .npy import parse_npy
from .points import Points, points

__all__ = [
    "Statistics",
    "feature_statistics",
    "frechet_distance",
    "load_statistics",
    "save_statistics",
]


MAX_ENTRY_BYTES = 2**30  # a covariance of 11,585 features


TOLERANCE = 1e-5  # of covariances that were kept in float32


# What reading a file that holds anything at all can raise.
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and covariance of a sample, all that the Fréchet distance takes from it.

    Attributes:
        mean: float64, shape (d,).
        covariance: With the divisor n - 1; float64, shape (d, d).
        count: The number of rows n; None if not known.
        extractor: Name and hash of what made the features, as in `Extractor.label`; empty if not
            known.

    Raises:
        ValueError: If shapes don't fit, values aren't finite, or the covariance isn't one.
    """

    mean: Tensor
    covariance: Tensor
    count: int | None = None
    extractor: str = ""

    def __post_init__(self) -> None:
        _check(self)


def feature_statistics(x: Points, *, extractor: str = "") -> Statistics:
    """Returns mean and covariance of a sample.

    Arguments:
        x: Features, with shape (n, d), n >= 2.
        extractor: What made them; samples of different extractors are refused later.

    Raises:
        TypeError: If `x` is neither a tensor nor an array of real numbers.
        ValueError: If its shape doesn't fit or values aren't finite.
    """
    rows = points("feature_statistics", "x", x, 2)
    mean = rows.mean(dim=0)
    centred = rows - mean
    return Statistics(mean, centred.T @ centred / (len(rows) - 1), len(rows), extractor)


def frechet_distance(
    x: Points | Statistics, y: Points | Statistics, *, allow_singular: bool = False
) -> float:
    r"""Returns the Fréchet distance of two samples (see above), or of their statistics.

    The squared 2-Wasserstein distance of the normal distributions with these means and
    covariances. It's biased upwards, by about 1/n, and its size depends on the features: name
    them and n beside it, as `Extractor.label` does, and compare equal n only. It's called FID
    where they are those of the Inception network, and only there.

    Arguments:
        x: Features with shape :math:`(n, d)`, or their statistics.
        y: The same of the other sample.
        allow_singular: Compute it for n <= d too. The covariances are then singular and the
            distance, though well defined, says more about n than about the samples.

    Returns:
        The distance, in squared units of the features, >= 0; computed in float64.

    Raises:
        TypeError: If an argument is no statistics, tensor or array of real numbers.
        ValueError: If shapes don't fit, values aren't finite, a sample has no more rows than
            features (statistics of unknown count pass), the extractors differ, or a covariance
            has negative eigenvalues.

    References:
        | GANs Trained by a Two Time-Scale Update Rule (Heusel et al., 2017)
        | https://arxiv.org/abs/1706.08500
    """
    a, b = _statistics("x", x), _statistics("y", y)
    _require_comparable(a, b, allow_singular)
    device = a.mean.device
    root_a, root_b = _factor("x", a.covariance), _factor("y", b.covariance).to(device)
    shared = float(torch.linalg.svdvals(root_a @ root_b.T).sum())
    spread = float(root_a.square().sum() + root_b.square().sum())
    apart = float((a.mean - b.mean.to(device)).square().sum())
    return apart + max(0.0, spread - 2.0 * shared)


def save_statistics(path: str | os.PathLike[str], statistics: Statistics) -> Path:
    """Writes statistics as .npz, with the entries mu, sigma, n and extractor.

    A reader finds the old file or the new one, never a part.

    Raises:
        ValueError: If the path doesn't end in .npz.
        OSError: If it can't be written.
    """
    file = Path(path)
    if file.suffix.lower() != ".npz":
        raise ValueError(
            f"save_statistics: expected a path ending in .npz, got {str(file)!r}; add the ending"
        )
    entries: dict[str, NDArray[np.generic]] = {
        "mu": statistics.mean.cpu().numpy(),
        "sigma": statistics.covariance.cpu().numpy(),
    }
    if statistics.count is not None:
        entries["n"] = np.array(statistics.count, np.int64)
    if statistics.extractor:
        entries["extractor"] = np.array(statistics.extractor)
    aside = file.with_name(f".tmp-{file.name}")
    try:
        with aside.open("wb") as stream:
            np.savez(stream, **entries)  # pyright: ignore[reportArgumentType]
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)
    return file


def load_statistics(path: str | os.PathLike[str]) -> Statistics:
    """Reads statistics from .npz: mu and sigma as all tools write them, n and extractor if there.

    Nothing in the file is executed: entries that would need pickle are refused.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or its entries aren't a mean and a covariance.
    """
    op, file = "load_statistics", Path(path)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {name: _entry(archive, name) for name in ("mu", "sigma", "n", "extractor")}
    except _BROKEN as error:
        raise ValueError(
            f"{op}: expected {file} to be an .npz with numeric arrays mu and sigma, got: {error}; "
            "write it anew with save_statistics or numpy.savez"
        ) from error
    mean, covariance, count, extractor = entries.values()
    if (
        mean is None
        or covariance is None
        or mean.dtype.kind != "f"
        or covariance.dtype.kind != "f"
    ):
        raise ValueError(
            f"{op}: expected floating-point entries mu and sigma in {file}, got "
            f"{sorted(name for name, entry in entries.items() if entry is not None)}; "
            "write it anew with save_statistics or numpy.savez"
        )
    return Statistics(
        torch.from_numpy(mean.astype(np.float64)),
        torch.from_numpy(covariance.astype(np.float64)),
        None if count is None or count.shape or count.dtype.kind not in "iu" else int(count),
        "" if extractor is None or extractor.dtype.kind != "U" else str(extractor),
    )


def _statistics(name: str, x: Points | Statistics) -> Statistics:
    if isinstance(x, Statistics):
        return x
    return feature_statistics(points("frechet_distance", name, x, 2))


def _require_comparable(a: Statistics, b: Statistics, allow_singular: bool) -> None:
    op = "frechet_distance"
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"{op}: expected x and y with as many features, got {len(a.mean)} and "
            f"{len(b.mean)}; compare features of one extractor"
        )
    if a.extractor and b.extractor and a.extractor != b.extractor:
        raise ValueError(
            f"{op}: expected features of one extractor, got {a.extractor!r} and "
            f"{b.extractor!r}; extract both with one"
        )
    for name, one in (("x", a), ("y", b)):
        if one.count is not None and one.count <= len(one.mean) and not allow_singular:
            raise ValueError(
                f"{op}: expected more rows than the {len(one.mean)} features, got {one.count} "
                f"rows of {name}, whose covariance is singular; add rows, use kernel_distance, "
                "or set allow_singular"
            )


def _factor(name: str, covariance: Tensor) -> Tensor:
    """R with R^T R = covariance; directions of no more than rounding error are left out."""
    values, vectors = torch.linalg.eigh(0.5 * (covariance + covariance.T))
    largest = float(values.abs().max())
    if float(values[0]) < -TOLERANCE * largest:
        raise ValueError(
            f"frechet_distance: expected a covariance without negative eigenvalues, that of "
            f"{name} has {float(values[0]):.3g}, its largest is {largest:.3g}; compute it anew "
            "in float64"
        )
    cutoff = len(values) * torch.finfo(values.dtype).eps * largest
    roots = values.where(values > cutoff, values.new_zeros(())).sqrt()
    return roots[:, None] * vectors.T


def _check(s: Statistics) -> None:
    op, dim = "Statistics", len(s.mean) if s.mean.ndim == 1 else 0
    shapes = f"{tuple(s.mean.shape)} and {tuple(s.covariance.shape)}"
    if dim < 1 or s.covariance.shape != (dim, dim):
        raise ValueError(
            f"{op}: expected a mean of shape (d,) and a covariance of shape (d, d), got {shapes}; "
            "give those of one sample"
        )
    if s.mean.dtype != torch.float64 or s.covariance.dtype != torch.float64:
        raise ValueError(
            f"{op}: expected float64, got {s.mean.dtype} and {s.covariance.dtype}; convert them"
        )
    if not bool(s.mean.isfinite().all() and s.covariance.isfinite().all()):
        raise ValueError(f"{op}: expected finite values, got NaN or infinity; find their cause")
    scale = float(s.covariance.abs().max())
    asymmetry = float((s.covariance - s.covariance.T).abs().max())
    if asymmetry > TOLERANCE * scale:
        raise ValueError(
            f"{op}: expected a symmetric covariance, got entries that differ by {asymmetry:.3g} "
            f"from their mirror image, the largest being {scale:.3g}; is it a covariance?"
        )


def _entry(archive: zipfile.ZipFile, name: str) -> NDArray[np.generic] | None:
    """An array of an .npz, read no further than the file's own sizes allow; None if absent."""
    member = f"{name}.npy"
    if member not in archive.namelist():
        return None
    size = archive.getinfo(member).file_size
    if size > MAX_ENTRY_BYTES:
        raise ValueError(f"{name} has {size} bytes, of at most {MAX_ENTRY_BYTES}")
    try:
        return parse_npy(archive.read(member))
    except ValueError as error:
        raise ValueError(f"{name} holds {error}") from error
