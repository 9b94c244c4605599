r"""What a context adds to the time embedding of a network.

.. math:: e(t) + E_y + W c

with a learned row :math:`E_y` for each class y and a linear layer of vectors c, without a bias.
"No class" is one more class, y = `num_classes`, and "no vector" is c = 0: networks are trained
without a context on samples whose labels and vectors are replaced by these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

#: A tensor of B rows, or such tensors by name.
Context = Tensor | Mapping[str, Tensor]


class ContextEmbedding(nn.Module):
    """Embeds labels, vectors or both.

    A context is the one tensor that the network takes, or a mapping with the entries "labels",
    int64 of shape (B,), and "vectors", shape (B, context_dim), as far as the network takes them;
    others are for other networks.

    Arguments:
        owner: The network's name, for messages.
        num_classes: The number of classes, 0 for none.
        context_dim: The components of a vector, 0 for none.
        width: The width of the time embedding.

    Raises:
        ValueError: If a number is negative.
    """

    def __init__(self, owner: str, num_classes: int, context_dim: int, width: int) -> None:
        super().__init__()
        self.owner, self.num_classes, self.context_dim = owner, num_classes, context_dim
        self.labels = nn.Embedding(num_classes + 1, width) if num_classes else None
        self.vectors = nn.Linear(context_dim, width, bias=False) if context_dim else None

    def forward(self, context: Any) -> Tensor:
        """Returns the sum of the embeddings, shape (B, width)."""
        parts = self._parts(context)
        terms = []
        if self.labels is not None:
            terms.append(self._embedded(self._checked_labels(parts["labels"])))
        if self.vectors is not None:
            terms.append(self.vectors(self._checked_vectors(parts["vectors"])))
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]

    def null(self, count: int) -> Context:
        """Returns the context of `count` samples without any."""
        parts: dict[str, Tensor] = {}
        if self.labels is not None:
            beside = self.labels.weight.device
            parts["labels"] = torch.full((count,), self.num_classes, device=beside)
        if self.vectors is not None:
            parts["vectors"] = self.vectors.weight.new_zeros(count, self.context_dim)
        return parts if len(parts) > 1 else next(iter(parts.values()))

    def _parts(self, context: Any) -> Mapping[str, Any]:
        names = [n for n in ("labels", "vectors") if getattr(self, n) is not None]
        if isinstance(context, Mapping) and all(name in context for name in names):
            return context
        if isinstance(context, Tensor) and len(names) == 1:
            return {names[0]: context}
        form = " or ".join(
            [*(["a tensor"] * (len(names) == 1)), "a mapping with " + _listed(names)]
        )
        given = _listed(list(context)) if isinstance(context, Mapping) else type(context).__name__
        mend = "; pass context=" if context is None else ""
        raise ValueError(f"{self.owner}: expected a context, {form}, got {given}{mend}")

    def _checked_labels(self, labels: Tensor) -> Tensor:
        if labels.dtype != torch.int64 or labels.dim() != 1:
            raise ValueError(
                f"{self.owner}: expected labels of shape (B,), int64, got {tuple(labels.shape)}, "
                f"{str(labels.dtype).removeprefix('torch.')}"
            )
        return labels

    def _embedded(self, labels: Tensor) -> Tensor:
        assert self.labels is not None
        try:
            return self.labels(labels)
        except IndexError as error:
            raise ValueError(
                f"{self.owner}: expected labels from 0 to {self.num_classes}, which stands for no "
                f"class, got some from {int(labels.min())} to {int(labels.max())}"
            ) from error

    def _checked_vectors(self, vectors: Tensor) -> Tensor:
        if vectors.dim() != 2 or vectors.shape[1] != self.context_dim:
            raise ValueError(
                f"{self.owner}: expected context vectors of shape (B, {self.context_dim}), got "
                f"{tuple(vectors.shape)}"
            )
        return vectors

    def extra_repr(self) -> str:
        """Returns the sizes, for `repr`."""
        return f"num_classes={self.num_classes}, context_dim={self.context_dim}"


def context_embedding(
    owner: str, num_classes: int, context_dim: int, width: int
) -> ContextEmbedding | None:
    """Returns the embedding of a network's context, None for a network without one."""
    for name, value in (("num_classes", num_classes), ("context_dim", context_dim)):
        if value < 0:
            raise ValueError(f"{owner}: expected {name} >= 0, got {value}")
    if not (num_classes or context_dim):
        return None
    return ContextEmbedding(owner, num_classes, context_dim, width)


def refuse_context(owner: str, context: Any) -> None:
    """Refuses a context given to a network that takes none."""
    if context is not None:
        raise ValueError(
            f"{owner}: expected no context, because the network was built without one, got "
            f"{type(context).__name__}; build it with num_classes or context_dim"
        )


def null_context(owner: str, embedding: ContextEmbedding | None, count: int) -> Context:
    """Returns the context of samples without any, of a network with one."""
    if embedding is None:
        raise ValueError(
            f"{owner}: expected a network with a context, got one without; build it with "
            "num_classes or context_dim"
        )
    return embedding.null(count)


def _listed(names: list[str]) -> str:
    return " and ".join(map(repr, names))
