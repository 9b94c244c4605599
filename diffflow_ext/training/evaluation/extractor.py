"""Training of features of images on a labelled set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from diffflow_ext.data import open_dataset
from diffflow_ext.data.conditions import LABEL
from diffflow_ext.metrics.features.digits import train_extractor
from diffflow_ext.metrics.features.files import save_extractor

from ..config.rules import SEED, checked, whole


def make_extractor(
    data: str, out: str | Path, *, image_size: int = 0, seed: int = 0, epochs: int = 3
) -> str:
    """Trains a classifier on a labelled set and writes the extractor of its features to a file.

    Returns a line of text with the file, the name of the features and the test accuracy. See
    `features.save_extractor` for the file; `image_size` 0 keeps the size of the images.
    """
    checked("extractor", "seed", seed, Annotated[int, SEED])
    checked("extractor", "epochs", epochs, Annotated[int, whole(1)])
    expected = "extractor: expected images with labels, such as mnist (diffflow data list)"
    try:
        dataset = open_dataset(data, image_size=image_size or None, condition=LABEL)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{expected}, and no other data: {error}") from error
    labels = dataset.labels
    if not dataset.is_image or labels is None:
        raise ValueError(f"{expected}, {dataset.name!r} has none; take another set")
    extractor = train_extractor(dataset.train, labels["train"], seed=seed, epochs=epochs)
    save_extractor(out, extractor)
    accuracy = extractor.accuracy(dataset.test, labels["test"])
    return f"{out}: {extractor.identity}, {100 * accuracy:.2f} % of the test images known"
