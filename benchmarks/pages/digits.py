"""The table and the picture of digits given their class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffflow_ext import figures

from ..common.reports import read_samples
from .tables import NONE, Report, number, table, with_error

#: Weights of guidance that the picture shows.
SHOWN = (1.0, 4.0)


def table_of_digits(report: Report) -> str:
    """The classifier's verdict on each model's samples, and their quality, for each guidance."""
    rows = []
    for one in report["models"].values():
        for way in one["sampling"]:
            title = f"{one['title']}, w = {way['guidance']:g}"
            costs = [number(way["evaluations"]), number(way["cpu_seconds_per_10000"] / 10)]
            rows.append([title, *_verdict(way), number(way["fd"]), *_balls(way), *costs])
    held_out, real = report["held_out"], report["floors"]["test"]
    rows.append(["*test images*", *_verdict(held_out), *[NONE] * 6])
    rows.append(["*training images*", NONE, NONE, number(real["fd"]), *_balls(real), NONE, NONE])
    head = [report["label"], "of the class", "of the worst class", "FD", "precision", "recall",
            "coverage", "evaluations", "s per 1,000"]  # fmt: skip
    cost = [
        [one["title"], f"{one['parameters']:,}", f"{one['steps']:,}",
         f"{one['train_cpu_seconds'] / 60:.1f}"]
        for one in report["models"].values()
    ]  # fmt: skip
    return table(head, rows) + "\n" + table(["", "parameters", "updates", "CPU minutes"], cost)


def _verdict(found: Report) -> list[str]:
    shares = found["of_class"], min(found["of_each_class"])
    return [f"{100 * share:.1f} %" for share in shares]


def _balls(found: Report) -> list[str]:
    return [with_error(found[part]) for part in ("precision", "recall", "coverage")]


def picture_of_digits(report: Report, folder: Path, out: Path) -> Path:
    """A row for each class: data, and samples of each model with two weights of guidance."""
    samples = read_samples(folder / report["samples"])
    groups = {"data": samples["data"]}
    for one in report["models"].values():
        for way in one["sampling"]:
            if way["guidance"] in SHOWN:
                groups[f"{one['title']}, w = {way['guidance']:g}"] = samples[way["key"]]
    count = len(report["held_out"]["of_each_class"])
    gap = np.full_like(samples["data"][:1], 255)
    rows = dict[str, np.ndarray]()
    parts = [np.split(images, count) for images in groups.values()]
    for label in range(count):
        spaced = [images for part in parts for images in (part[label], gap)]
        rows[str(label)] = np.concatenate(spaced[:-1])
    weights = " and ".join(f"{weight:g}" for weight in SHOWN)
    models = [f"{one['title']}, w = {weights}" for one in report["models"].values()]
    title = "from the left: " + "; ".join(["data", *models])
    return figures.save(figures.image_rows(rows, title), out / "digits_by_class.png")
