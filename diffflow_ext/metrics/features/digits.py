"""A small classifier of grey images, trained here, whose last hidden layer serves as features."""

from __future__ import annotations

import copy
import hashlib
import operator
import re

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ..points import Images, byte_images

Labels = Tensor | NDArray[np.integer]
WIDTH = 64  # number of features
MIN_SIZE, MAX_SIZE = 14, 32
MAX_CLASSES = 1000
RATE = 2e-3  # of learning
HASH_DIGITS = 12
BATCH_SIZE = 512  # images that are evaluated at a time


class DigitClassifier(nn.Module):
    r"""A small convolutional classifier whose last hidden layer serves as features.

    Two times 3x3 convolution (16, then 32 channels), ReLU and 2x2 maximum, a linear layer to the
    64 features, ReLU, a linear layer to the logits. The features are taken before their ReLU:
    none is constant, and their distribution is nearer to a normal one.

    Arguments:
        size: Height and width S of the images, 14 to 32.
        num_classes: The number of classes, 2 to 1000.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, size: int, num_classes: int = 10) -> None:
        """Draws the weights from torch's global generator."""
        super().__init__()
        if not MIN_SIZE <= size <= MAX_SIZE or not 2 <= num_classes <= MAX_CLASSES:
            raise ValueError(
                f"DigitClassifier: expected a size from {MIN_SIZE} to {MAX_SIZE} and 2 to "
                f"{MAX_CLASSES} classes, got size={size}, num_classes={num_classes}; resize the "
                "images, or number the classes from 0"
            )
        self.size, self.num_classes = size, num_classes
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * (size // 4) ** 2, WIDTH),
        )
        self.head = nn.Linear(WIDTH, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits, with shape (n, num_classes), of images (n, 1, S, S) in [-1, 1]."""
        return self.head(self.trunk(x).relu())


class DigitExtractor:
    """The features of a `DigitClassifier`, with a name and a hash, and its verdicts.

    It takes images of bytes, so that samples and data, which are kept as uint8, differ in nothing
    but what they show. `diffflow_ext.likelihood.quantise` makes them of a model's samples.

    Arguments:
        classifier: The classifier. A copy is kept, in evaluation mode and without gradients.
        name: What the features are called in scores; letters, digits and ``._+-``.

    Attributes:
        name: The name.
        hash: The first 12 hexadecimal digits of the SHA-256 of the weights that make the features,
            and their names.

    Raises:
        ValueError: If the name has other characters.
    """

    def __init__(self, classifier: DigitClassifier, name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._+-]+", name):
            raise ValueError(
                f"DigitExtractor: expected a name of letters, digits and ._+-, got {name!r}; "
                "rename it"
            )
        self.classifier = copy.deepcopy(classifier).cpu().eval().requires_grad_(False)
        self.name, self.hash = name, hash_of(self.classifier.trunk)

    @property
    def identity(self) -> str:
        """Name and hash."""
        return f"{self.name}@{self.hash}"

    def label(self, n: int) -> str:
        """Returns what a Fréchet distance in these features of n samples is called."""
        return f"FD({self.identity}, n={n})"

    @torch.no_grad()
    def features(self, images: Images) -> Tensor:
        """Returns the features of images, float32 on the CPU, with shape (n, 64).

        Arguments:
            images: uint8, shape (n, 1, S, S), n >= 1, with the classifier's size S.

        Raises:
            TypeError: If `images` are not uint8.
            ValueError: If their shape doesn't fit.
        """
        levels, size = byte_images(self.name, images), self.classifier.size
        if levels.shape[1:] != (1, size, size):
            raise ValueError(
                f"{self.name}: expected images of shape (n, 1, {size}, {size}), got "
                f"{tuple(levels.shape)}; train an extractor for this size, or resize the images"
            )
        batches = levels.cpu().split(BATCH_SIZE)
        return torch.cat([self.classifier.trunk(batch.float() / 127.5 - 1.0) for batch in batches])

    @torch.no_grad()
    def classify(self, images: Images) -> Tensor:
        """Returns the most likely class of each image, int64 on the CPU, with shape (n,)."""
        return self.classifier.head(self.features(images).relu()).argmax(dim=1)

    def accuracy(self, images: Images, labels: Labels) -> float:
        """Returns the part of the images that get their label."""
        truth = _labels("accuracy", labels, len(images))
        return float((self.classify(images) == truth).double().mean())


def hash_of(module: nn.Module) -> str:
    """The hash of a module: its class's name, its weights and their names."""
    # "float" says what the module takes: numbers from -1 to 1.
    digest = hashlib.sha256(f"{type(module).__name__} float".encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:HASH_DIGITS]


def train_extractor(
    images: Images,
    labels: Labels,
    *,
    seed: int = 0,
    epochs: int = 3,
    batch_size: int = 128,
    name: str | None = None,
) -> DigitExtractor:
    """Trains a classifier on labelled grey images and returns its features' extractor.

    On the CPU, by Adam at a rate that falls along a cosine from 2e-3 to 0, in about 15 seconds an
    epoch for 60,000 images of 28x28 on one core. The weights depend on the arguments alone for
    one build of torch, kind of processor and number of threads; elsewhere rounding differs, and
    with it the hash: keep an extractor by `save_extractor` to compare scores over time.

    Arguments:
        images: uint8, shape (n, 1, S, S), S from 14 to 32.
        labels: Whole numbers from 0, shape (n,).
        seed: The seed of the weights and of the order.
        epochs: How often each image is seen.
        batch_size: The images in a step.
        name: What the features are called; classifier-SxS if None.

    Returns:
        The extractor. See `DigitExtractor.accuracy` for how good the classifier is.

    Raises:
        TypeError: If images or labels have another type.
        ValueError: If a shape or number doesn't fit.
    """
    op = "train_extractor"
    levels = _training_images(op, images)
    truth = _labels(op, labels, len(levels))
    if operator.index(epochs) < 1 or operator.index(batch_size) < 1 or seed < 0:
        raise ValueError(
            f"{op}: expected epochs >= 1, batch_size >= 1 and seed >= 0, got epochs={epochs}, "
            f"batch_size={batch_size}, seed={seed}; mend the one out of range"
        )
    size = levels.shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = DigitClassifier(size, int(truth.max()) + 1)
    _fit(classifier, levels, truth, seed, epochs, batch_size)
    return DigitExtractor(classifier, name or f"classifier-{size}x{size}")


def _fit(
    classifier: DigitClassifier,
    levels: Tensor,
    truth: Tensor,
    seed: int,
    epochs: int,
    batch_size: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(classifier.parameters(), lr=RATE)
    steps = epochs * -(-len(levels) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    with torch.enable_grad():
        for _ in range(epochs):
            for rows in torch.randperm(len(levels), generator=generator).split(batch_size):
                logits = classifier(levels[rows].float() / 127.5 - 1.0)
                optimiser.zero_grad()
                functional.cross_entropy(logits, truth[rows]).backward()
                optimiser.step()
                schedule.step()


def _training_images(op: str, images: Images) -> Tensor:
    levels = byte_images(op, images).cpu()
    _, channels, height, width = levels.shape
    if channels != 1 or height != width or not MIN_SIZE <= width <= MAX_SIZE:
        raise ValueError(
            f"{op}: expected images of shape (n, 1, S, S) with S from {MIN_SIZE} to {MAX_SIZE}, "
            f"got {tuple(levels.shape)}; resize them, or average their channels"
        )
    return levels


def _labels(op: str, labels: Labels, n: int) -> Tensor:
    """Labels as int64 on the CPU, one for each of n images."""
    whole = torch.as_tensor(labels)
    if whole.is_floating_point() or whole.is_complex():
        raise TypeError(f"{op}: expected labels as whole numbers, got {whole.dtype}; convert them")
    if whole.shape != (n,) or int(whole.min()) < 0:
        raise ValueError(
            f"{op}: expected {n} labels from 0 on, one for each image, got shape "
            f"{tuple(whole.shape)}{'' if not whole.numel() else f', least {int(whole.min())}'}; "
            "give the class of each"
        )
    return whole.long().cpu()
