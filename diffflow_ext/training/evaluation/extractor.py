"""Trains features of images on a labelled set and writes them to a file."""

from __future__ import annotations

from pathlib import Path

from diffflow_ext.data import open_dataset
from diffflow_ext.metrics.features.digits import train_extractor
from diffflow_ext.metrics.features.files import save_extractor


def make_extractor(
    data: str, out: str | Path, *, image_size: int = 0, seed: int = 0, epochs: int = 3
) -> str:
    """Trains a classifier on the training images of a set and writes its features' extractor.

    Arguments:
        data: The set, with labels.
        out: The file; see `features.save_extractor`.
        image_size: Side to which images are scaled; 0 leaves them.
        seed: Seed of the weights and the order.
        epochs: How often each image is seen.

    Returns:
        A line for a person: the file, the name of the features, and how many held-out images the
        classifier knows.

    Raises:
        ValueError: If the set has no labels, or its images don't suit the classifier.
    """
    dataset = open_dataset(data, image_size=image_size or None)
    labels = dataset.labels
    if not dataset.is_image or labels is None:
        raise ValueError(
            f"extractor: expected images with labels, {dataset.name!r} has none; take mnist or"
            " fashion-mnist (diffflow data list)"
        )
    extractor = train_extractor(dataset.train, labels["train"], seed=seed, epochs=epochs)
    save_extractor(out, extractor)
    known = extractor.accuracy(dataset.test, labels["test"])
    return f"{out}: {extractor.identity}, {100 * known:.2f} % of the test images known"
