r"""The Fréchet distance of two samples, by their means and covariances alone.

.. math:: |\mu_x - \mu_y|^2 + \operatorname{tr} \Sigma_x + \operatorname{tr} \Sigma_y
          - 2 \operatorname{tr} (\Sigma_x \Sigma_y)^{1/2}

With factors :math:`\Sigma = R^T R` the last trace is the sum of the singular values of
:math:`R_x R_y^T`: no root of a product that isn't symmetric is taken, and covariances may be
singular.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch
from torch import Tensor

from .points import Images, Points, byte_images, points

BATCH_SIZE = 50  # images that the Inception network is given at a time


def frechet_distance(x: Points, y: Points) -> float:
    r"""Returns the Fréchet distance of two samples (see above).

    The squared 2-Wasserstein distance of the normal distributions with these means and
    covariances. It's biased upwards, by about 1/n, and its size depends on the features: name
    them and n beside it, as `DigitExtractor.label` does, and compare equal n only. It's called
    FID where they are those of the Inception network (`fid`), and only there.

    Arguments:
        x: Features with shape :math:`(n, d)`, n > d.
        y: The same of the other sample.

    Returns:
        The distance, in squared units of the features, >= 0; computed in float64.

    Raises:
        TypeError: If an argument is no tensor or array of real numbers.
        ValueError: If shapes don't fit, values aren't finite, or a sample has no more rows than
            features.

    References:
        | GANs Trained by a Two Time-Scale Update Rule (Heusel et al., 2017)
        | https://arxiv.org/abs/1706.08500
    """
    op = "frechet_distance"
    a, b = points(op, "x", x, 2), points(op, "y", y, 2)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{op}: expected x and y with as many features, got {a.shape[1]} and {b.shape[1]}; "
            "compare features of one extractor"
        )
    for name, rows in (("x", a), ("y", b)):
        if len(rows) <= rows.shape[1]:
            raise ValueError(
                f"{op}: expected more rows than the {rows.shape[1]} features, got {len(rows)} "
                f"rows of {name}, whose covariance is singular; add rows, or use kernel_distance"
            )
    return distance_of_normals(a.mean(0), a.T.cov(), b.mean(0).to(a), b.T.cov().to(a))


def distance_of_normals(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Returns the squared 2-Wasserstein distance of two normal distributions."""
    root_a, root_b = _factor(cov_a), _factor(cov_b)
    shared = float(torch.linalg.svdvals(root_a @ root_b.T).sum())
    spread = float(root_a.square().sum() + root_b.square().sum())
    return float((mean_a - mean_b).square().sum()) + max(0.0, spread - 2.0 * shared)


def fid(samples: Images, data: Images, weights: str | os.PathLike[str]) -> float:
    """Returns the Fréchet inception distance of two sets of images, through torchmetrics.

    The Fréchet distance in 2048 features of the Inception network, whose weights are not part of
    this package and are not downloaded. Images are resized as the original code does, without
    antialiasing. It is biased upwards, by about 1/n: compare equal n only, 50,000 where others
    are to be compared with. `frechet_distance` of a `features.DigitExtractor` needs no such file.

    Arguments:
        samples: Images of the model, uint8, shape (n, C, H, W), n >= 2; with C = 3, or C = 1 for
            grey images, which are repeated.
        data: Images to compare with, uint8, shape (m, C, H, W), m >= 2.
        weights: The file of the weights as torch-fidelity publishes it,
            ``weights-inception-2015-12-05-6726825d.pth``. One that holds code is refused.

    Returns:
        The distance, computed on the device of the samples.

    Raises:
        ImportError: If torchmetrics or torch-fidelity is not installed.
        FileNotFoundError: If there is no such file.
        TypeError: If the images are not uint8.
        ValueError: If shapes don't fit, or the file holds more than tensors.

    References:
        | GANs Trained by a Two Time-Scale Update Rule (Heusel et al., 2017)
        | https://arxiv.org/abs/1706.08500
    """
    sets = {True: _colour_images("data", data), False: _colour_images("samples", samples)}
    metric = _inception_distance(weights).to(sets[False].device)
    for is_data, images in sets.items():
        for batch in images.split(BATCH_SIZE):
            metric.update(batch.to(sets[False].device), real=is_data)
    return float(metric.compute())


def _colour_images(name: str, images: Images) -> Tensor:
    x = byte_images("fid", images)
    if len(x) < 2 or x.shape[1] not in (1, 3):
        raise ValueError(
            f"fid: expected {name} of shape (n, C, H, W) with n >= 2 and C = 1 or 3, got "
            f"{tuple(x.shape)}; give more images, or their first three channels"
        )
    return x.expand(-1, 3, -1, -1)


def _inception_distance(weights: str | os.PathLike[str]) -> Any:
    """torchmetrics' metric with the network's weights out of a file."""
    file = os.fspath(weights)
    try:
        # torch-fidelity reads the file with weights_only=False: whatever it holds would run.
        torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # The classes differ between releases, and with what's broken.
        raise ValueError(
            f"fid: expected {file} to hold tensors alone, got: {str(error).splitlines()[0]}; it's "
            "damaged, or holds code, which isn't run here"
        ) from error
    try:
        module = importlib.import_module("torchmetrics.image.fid")
        return module.FrechetInceptionDistance(
            feature=2048, feature_extractor_weights_path=file, antialias=False
        )
    except ModuleNotFoundError as error:
        raise ImportError(
            "fid: expected torchmetrics and torch-fidelity to be installed; "
            "pip install 'diffflow_ext[fid]'"
        ) from error


def _factor(covariance: Tensor) -> Tensor:
    """R with R^T R = covariance; directions of no more than rounding error are left out."""
    values, vectors = torch.linalg.eigh(0.5 * (covariance + covariance.T))
    cutoff = len(values) * torch.finfo(values.dtype).eps * float(values.abs().max())
    roots = values.where(values > cutoff, values.new_zeros(())).sqrt()
    return roots[:, None] * vectors.T
