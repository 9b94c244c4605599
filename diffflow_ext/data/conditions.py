r"""What a model is conditioned on: the class of an image, some columns of a table, or any part.

The context of a network is the class itself, or of columns the vector

.. math:: c = (v_1, \dots, v_k, 1)

with :math:`v_i` the coordinate of a number, as `data.encoding` has it but without noise (an
integer is standardised), and of a category 1 at its value and 0 at all others. The last component
tells c from the vector 0 that stands for no context: a number may be 0, its mean. For any part of
the data itself see `data.masks`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .column import Column
from .encoding import Encoding
from .formats.columns import listed
from .masks import MASKS, Masks

#: The name of the class of an image.
LABEL = "label"
MOST_CLASSES = 32  # that are said by name


@dataclass(frozen=True)
class Conditions:
    """What a model is conditioned on.

    Attributes:
        encoding: The columns of a table; None for anything else.
        num_classes: The number of classes, 0 for anything else.
        classes: Their names in order, if they have names.
        masks: The masks of the part that is given; None for anything else.
    """

    encoding: Encoding | None = None
    num_classes: int = 0
    classes: tuple[str, ...] = ()
    masks: Masks | None = None

    def __post_init__(self) -> None:
        if self.classes and len(self.classes) != self.num_classes:
            raise ValueError(
                f"Conditions: expected {self.num_classes} names of classes, got "
                f"{len(self.classes)}"
            )
        if len({*self.classes}) < len(self.classes):
            raise ValueError(
                f"Conditions: expected different names of classes, got {listed(self.classes)};"
                " give each its own"
            )
        kinds = (self.encoding is not None, self.num_classes > 0, self.masks is not None)
        if sum(kinds) != 1:
            raise ValueError(
                "Conditions: expected columns, classes or masks, got"
                f" num_classes={self.num_classes} and {sum(kinds)} of them"
            )

    def __repr__(self) -> str:
        return f"Conditions({self.describe()})"

    @classmethod
    def from_meta(cls, values: Mapping[str, Any]) -> Conditions:
        """Returns the conditions from the plain data of `to_meta`."""
        if "num_classes" in values:
            names = tuple(map(str, values.get("classes", ())))
            return cls(num_classes=int(values["num_classes"]), classes=names)
        if "masks" in values:
            return cls(masks=Masks.from_meta(values["masks"]))
        return cls(Encoding.from_meta(values["columns"]))

    def to_meta(self) -> dict[str, Any]:
        """Returns plain data for a manifest."""
        if self.masks is not None:
            return {"masks": self.masks.to_meta()}
        if self.encoding is None:
            meta: dict[str, Any] = {"num_classes": self.num_classes}
            return meta | ({"classes": list(self.classes)} if self.classes else {})
        return {"columns": self.encoding.to_meta()}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the conditions."""
        if self.encoding is not None:
            return self.encoding.names
        return (LABEL,) if self.masks is None else (MASKS,)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of a table; none of anything else."""
        return () if self.encoding is None else self.encoding.columns

    @property
    def texts(self) -> tuple[str, ...]:
        """The names of columns of texts."""
        return () if self.encoding is None else self.encoding.texts

    @property
    def context_dim(self) -> int:
        """The components of c, 0 for classes."""
        if self.masks is not None:
            return math.prod(self.masks.context_shape)
        widths = [len(c.shares) if c.kind == "category" else 1 for c in self.columns]
        return sum(widths) + 1 if widths else 0

    def describe(self) -> str:
        """Returns the names, each with the values that it may have."""
        if self.masks is not None:
            return f"{MASKS} (any part, which given= has)"
        if self.classes:
            names = [f"{i} = {name}" for i, name in enumerate(self.classes)]
            return f"{LABEL} ({listed(names, MOST_CLASSES)})"
        if self.encoding is None:
            return f"{LABEL} (0 to {self.num_classes - 1})"
        return ", ".join(f"{column.name} ({_values(column)})" for column in self.columns)

    def context(self, stored: Tensor) -> Tensor:
        """Returns contexts: classes, int64 of shape (n,), or c, float32 of shape (n, context_dim).

        Arguments:
            stored: Classes, contexts of masks themselves, or what the encoding stores of rows,
                shape (n, columns).
        """
        if self.encoding is None:
            return stored
        rows = stored.double()
        parts = [_coordinates(column, rows[:, i]) for i, column in enumerate(self.columns)]
        return torch.cat([*parts, torch.ones_like(rows[:, :1])], dim=1).float()

    def without(self, context: Tensor, dropped: Tensor) -> Tensor:
        """Returns contexts of which those of `dropped` rows, shape (n,), stand for none."""
        # The null context of networks: one more class, or the vector 0.
        rows = dropped.reshape(-1, *(1,) * (context.dim() - 1))
        return torch.where(rows, torch.full_like(context, self.num_classes), context)

    def values(self, stored: Tensor) -> Tensor:
        """Returns values in the units of the data, float64 on the CPU, shape (n, conditions).

        Those of text columns are indices, as `Encoding.decoded` has them.
        """
        rows = stored.cpu().double()
        if self.encoding is None:
            return rows[:, None]
        return torch.stack([_decoded(c, rows[:, i]) for i, c in enumerate(self.columns)], dim=1)


def _coordinates(column: Column, stored: Tensor) -> Tensor:
    if column.kind == "category":
        return functional.one_hot(stored.long(), len(column.shares)).to(stored)
    return column.input(stored, torch.full_like(stored, 0.5))[:, None]


def _decoded(column: Column, stored: Tensor) -> Tensor:
    if column.kind != "category":
        return column.decoded(_coordinates(column, stored)[:, 0])
    if column.is_text:
        return stored
    known = torch.tensor([*column.values, torch.nan], dtype=torch.float64)
    return known[stored.long()]


def _values(column: Column) -> str:
    if column.kind == "category":
        return f"one of {listed([repr(value) for value in column.values])}"
    return f"a number, {column.span} in training" if column.span else "a number"
