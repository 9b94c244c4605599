"""Sets that are known by name, as datasets: drawn ones, and tables that may have classes."""

from __future__ import annotations

import numpy as np
import torch

from .column import Column
from .conditions import LABEL, Conditions
from .dataset import ROLES, Dataset, split_table, table_dataset, with_given
from .encoding import Encoding
from .formats.columns import listed
from .formats.tables import Table
from .kinds import ALL
from .sets.toy import TOY_SETS, labelled_toy, toy_classes

NUM_POINTS = 200_000
NUM_VALID = 10_000
NUM_TEST = 20_000


def draw_dataset(name: str, seed: int, num_points: int, *, labelled: bool = False) -> Dataset:
    """Draws a two-dimensional set; see `open_dataset`."""
    if seed < 0 or num_points < 1:
        raise ValueError(
            f"open_dataset: expected seed >= 0 and num_points >= 1, got {seed} and {num_points}; "
            "give both as such integers"
        )
    classes = toy_classes(name)
    if labelled and not classes:
        known = listed([other for other in TOY_SETS if toy_classes(other)])
        raise ValueError(
            f"open_dataset: expected a set with classes for condition={LABEL!r}, got {name!r}; "
            f"take one of {known}, or leave it out"
        )
    sizes = (num_points, NUM_VALID, NUM_TEST)
    parts = [labelled_toy(name, n, 3 * seed + i) for i, n in enumerate(sizes)]
    points = [torch.from_numpy(np.array(part, np.float32)) for part, _ in parts]
    data = table_dataset(name, points, Encoding.linear(["x1", "x2"], [0.0] * 2, [1.0] * 2))
    if not labelled:
        return data
    shares = (1.0 / len(classes),) * len(classes)
    column = Column(LABEL, "category", values=classes, shares=shares)
    given = [torch.from_numpy(labels).float().unsqueeze(1) for _, labels in parts]
    return with_given(data, Conditions(Encoding((column,))), dict(zip(ROLES, given, strict=True)))


def labelled_table(table: Table, name: str) -> Dataset:
    """Splits the table of a known set; a column "label", if there is one, is the condition."""
    if LABEL not in table.columns:
        return split_table(table, name=name)
    kinds = {ALL: "continuous", LABEL: "category"}
    return split_table(table, name=name, columns=kinds, condition=[LABEL])
