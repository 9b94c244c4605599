"""Fixed networks that turn images into features, each known by a name and a hash."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["Extractor", "Images", "hash_of", "pca_extractor", "quantise"]


Images = Tensor | NDArray[np.generic]


HASH_DIGITS = 12


class Extractor:
    """A fixed network that maps images to features, with a name and a hash.

    Images are first rounded to 256 levels (`quantise`), so that samples and data, which are kept
    as uint8, differ in nothing but what they show.

    Arguments:
        module: Takes images (n, C, H, W), returns features (n, d). A copy is kept, in evaluation
            mode and without gradients. Resizing and normalising are its own task.
        name: What the features are called in scores; letters, digits and ``._+-``.
        pixels: What the module takes: float32 from -1 to 1, or uint8.

    Attributes:
        name: The name.
        hash: The first 12 hexadecimal digits of the SHA-256 of the weights and their names, the
            name of the module's class and `pixels`. It doesn't cover the module's code.

    Raises:
        TypeError: If `module` is no module.
        ValueError: If the name has other characters, or `pixels` is unknown.
    """

    def __init__(
        self, module: nn.Module, name: str, *, pixels: Literal["float", "uint8"] = "float"
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"Extractor: expected a torch.nn.Module, got {type(module).__name__}; wrap it in "
                "one whose forward returns features of shape (n, d)"
            )
        if not re.fullmatch(r"[A-Za-z0-9._+-]+", name) or pixels not in ("float", "uint8"):
            raise ValueError(
                "Extractor: expected a name of letters, digits and ._+- and pixels 'float' or "
                f"'uint8', got name={name!r}, pixels={pixels!r}; mend the one that doesn't fit"
            )
        self._module = copy.deepcopy(module).eval().requires_grad_(False)
        self._pixels = pixels
        self.name = name
        self.hash = hash_of(self._module, pixels)

    @property
    def identity(self) -> str:
        """Name and hash, as in `Statistics.extractor`."""
        return f"{self.name}@{self.hash}"

    def label(self, n: int) -> str:
        """Returns what a Fréchet distance in these features of n samples is called."""
        return f"FD({self.identity}, n={n})"

    @torch.no_grad()
    def features(self, images: Images, *, batch_size: int = 512) -> Tensor:
        """Returns the features of images, float32 on the CPU, with shape (n, d).

        Arguments:
            images: uint8, or floats that are 0 for grey and -1 and 1 for black and white; shape
                (n, C, H, W), n >= 1.
            batch_size: The number of images that the module is given at a time.

        Raises:
            TypeError: If `images` are neither uint8 nor floats.
            ValueError: If their shape doesn't fit, they have NaN, or the module returns no finite
                features of shape (n, d).
        """
        batches = self._batches(images, batch_size)
        return torch.cat([self._checked(self._module(batch), len(batch)) for batch in batches])

    def _batches(self, images: Images, batch_size: int) -> Iterator[Tensor]:
        levels = quantise(images)
        if len(levels) < 1 or batch_size < 1:
            raise ValueError(
                f"{self.name}: expected at least one image and batch_size >= 1, got "
                f"{len(levels)} images and batch_size={batch_size}; mend the one out of range"
            )
        self._require_shape(tuple(levels.shape))
        weight = next(iter(self._module.state_dict().values()), levels)
        for batch in levels.split(batch_size):
            moved = batch.to(weight.device)
            yield moved if self._pixels == "uint8" else moved.float() / 127.5 - 1.0

    def _require_shape(self, shape: tuple[int, ...]) -> None:
        """Refuses images that the module would fail on; any other module decides by itself."""

    def _checked(self, features: object, n: int) -> Tensor:
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != n:
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features)
            raise ValueError(
                f"{self.name}: expected features of shape ({n}, d) for {n} images, got {got}; "
                "wrap the module in one that flattens its output"
            )
        if not bool(features.isfinite().all()):
            raise ValueError(
                f"{self.name}: expected finite features, got NaN or infinity; check the weights "
                "and what range of pixels the module takes"
            )
        return features.float().cpu()


def quantise(images: Images) -> Tensor:
    r"""Returns images as uint8: level :math:`\lfloor 128 (x + 1) \rfloor`, clamped to 0 ... 255.

    The inverse of :math:`x = 2 (k + u) / 256 - 1` with :math:`0 \leq u < 1`, by which data become
    continuous. Samples slightly outside of [-1, 1] are clamped, as every picture of them is.

    Arguments:
        images: uint8, which stay as they are, or floats; shape (n, C, H, W).

    Raises:
        TypeError: If they are neither.
        ValueError: If the shape doesn't fit, they have NaN, or are clearly on another scale.
    """
    op = "quantise"
    x = images
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(np.ascontiguousarray(x))
    if not isinstance(x, Tensor) or not (x.dtype == torch.uint8 or x.is_floating_point()):
        raise TypeError(
            f"{op}: expected images as uint8 or floats, got "
            f"{getattr(x, 'dtype', type(x).__name__)}; convert them first"
        )
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(
            f"{op}: expected images of shape (n, C, H, W), got {tuple(x.shape)}; grey images "
            "have C = 1: images[:, None]"
        )
    if x.dtype == torch.uint8:
        return x.detach()
    x = x.detach().float()
    if not bool(x.isfinite().all()):
        bad = int((~x.isfinite()).flatten(1).any(dim=1).sum())
        raise ValueError(
            f"{op}: expected finite values, {bad} of {len(x)} images have NaN or infinity; find "
            "the cause or leave such images out"
        )
    if len(x) and float(x.abs().mean()) > 2.0:
        raise ValueError(
            f"{op}: expected floats from -1 to 1, got values from {float(x.min()):.3g} to "
            f"{float(x.max()):.3g}; give 0 to 255 as uint8"
        )
    return ((x + 1.0) * 128.0).floor().clamp(0.0, 255.0).to(torch.uint8)


def pca_extractor(images: Images, width: int = 64) -> Extractor:
    r"""Returns the extractor of the first principal components of images.

    It needs no labels and no training, and takes images of any size and number of channels. It
    sees coarse structure: noise of a few hundredths, which a trained network notices, passes.

    Arguments:
        images: The images to take the components from; uint8 or floats in [-1, 1], shape
            (n, C, H, W), n > width.
        width: The number of components, at most C * H * W.

    Raises:
        TypeError: If `images` are neither uint8 nor floats.
        ValueError: If shapes don't fit, or there are too few images.
    """
    levels = quantise(images)
    rows = levels.cpu().flatten(1).double() / 127.5 - 1.0
    if not 1 <= width <= rows.shape[1] or len(rows) <= width:
        raise ValueError(
            f"pca_extractor: expected 1 <= width <= {rows.shape[1]}, the number of pixels, and "
            f"more images than that, got width={width} and {len(rows)} images; mend the one that "
            "doesn't fit"
        )
    mean = rows.mean(dim=0)
    vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean))[1].flip(1)[:, :width]
    return Extractor(_Projection(mean, vectors), f"pca-{width}")


class _Projection(nn.Module):
    """Subtracts a mean and projects on the columns of a matrix."""

    mean: Tensor
    vectors: Tensor

    def __init__(self, mean: Tensor, vectors: Tensor) -> None:
        super().__init__()
        # Eigenvectors have no sign of their own: their largest entry is made positive.
        largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
        self.register_buffer("mean", mean.float())
        self.register_buffer("vectors", (vectors * largest.sign()).float())

    def forward(self, x: Tensor) -> Tensor:
        if x[0].numel() != len(self.mean):
            raise ValueError(
                f"pca_extractor: expected images of {len(self.mean)} pixels, got shape "
                f"{tuple(x.shape)}; extract features of the size that the components are of"
            )
        return (x.flatten(1) - self.mean) @ self.vectors


def hash_of(module: nn.Module, pixels: str) -> str:
    """The hash of an extractor: weights and their names, class name, kind of pixels."""
    digest = hashlib.sha256(f"{type(module).__name__} {pixels}".encode())
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:HASH_DIGITS]
