"""Fixed networks that turn images into features, each known by a name and a hash."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..points import Images, byte_images

__all__ = ["Extractor", "hash_of"]


HASH_DIGITS = 12


class Extractor:
    """A fixed network that maps images to features, with a name and a hash.

    It takes images of bytes, so that samples and data, which are kept as uint8, differ in nothing
    but what they show. `diffflow_ext.likelihood.quantise` makes them of a model's samples.

    Arguments:
        module: Takes images (n, C, H, W) as float32 from -1 to 1, returns features (n, d). A copy
            is kept, in evaluation mode and without gradients. Resizing is its own task.
        name: What the features are called in scores; letters, digits and ``._+-``.

    Attributes:
        name: The name.
        hash: The first 12 hexadecimal digits of the SHA-256 of the weights, their names and the
            name of the module's class. It doesn't cover the module's code.

    Raises:
        TypeError: If `module` is no module.
        ValueError: If the name has other characters.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"Extractor: expected a torch.nn.Module, got {type(module).__name__}; wrap it in "
                "one whose forward returns features of shape (n, d)"
            )
        if not re.fullmatch(r"[A-Za-z0-9._+-]+", name):
            raise ValueError(
                f"Extractor: expected a name of letters, digits and ._+-, got {name!r}; rename it"
            )
        self._module = copy.deepcopy(module).eval().requires_grad_(False)
        self.name = name
        self.hash = hash_of(self._module)

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
            images: uint8, shape (n, C, H, W), n >= 1.
            batch_size: The number of images that the module is given at a time.

        Raises:
            TypeError: If `images` are not uint8.
            ValueError: If their shape doesn't fit, or the module returns no finite features of
                shape (n, d).
        """
        batches = self._batches(images, batch_size)
        return torch.cat([self._checked(self._module(batch), len(batch)) for batch in batches])

    def _batches(self, images: Images, batch_size: int) -> Iterator[Tensor]:
        levels = byte_images(self.name, images)
        if batch_size < 1:
            raise ValueError(f"{self.name}: expected batch_size >= 1, got {batch_size}")
        self._require_shape(tuple(levels.shape))
        weight = next(iter(self._module.state_dict().values()), levels)
        for batch in levels.split(batch_size):
            yield batch.to(weight.device).float() / 127.5 - 1.0

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
                "and what numbers the module takes"
            )
        return features.float().cpu()


def hash_of(module: nn.Module) -> str:
    """The hash of a module: its class's name, its weights and their names."""
    # "float" says what the module takes: numbers from -1 to 1.
    digest = hashlib.sha256(f"{type(module).__name__} float".encode())
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:HASH_DIGITS]
