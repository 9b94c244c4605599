r"""Time embeddings by the fused engine: Fourier features through two layers, with gradients.

.. math:: e(t) = W_2 \, \sigma(W_1 [\sin a, \cos a] + b_1) + c, \qquad
          a = s \, t \, \omega + \varphi

Losses at a time of each sample's own spend as much on it as on the network behind it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from diffflow_ext.functional.core import core
from diffflow_ext.functional.operator import first_order

from . import workspace
from .workspace import address

__all__ = ["embedding_or_none"]


#: Layers of all engines are padded to at most a multiple of this.
_PADDING = 32


def embedding_or_none(described: Any, times: Tensor) -> Tensor | None:
    """Returns the embeddings of times, (times, width), None where the engine cannot take them.

    Arguments:
        described: As :class:`diffflow_ext.nets.mlp.TimeEmbedding`.
        times: The times, shape (times,), float32.
    """
    d = described
    if not isinstance(d.scale, float | int):  # a tensor may want a gradient
        return None
    tensors = [d.frequencies, d.phase, d.first, d.first_bias, d.second, d.constant]
    if times.requires_grad or (isinstance(d.frequencies, Tensor) and d.frequencies.requires_grad):
        return None
    if d.activation not in workspace.ACTIVATIONS or not all(map(_plain, tensors)):
        return None
    width = len(d.frequencies)
    square, row = (width, width), (width,)
    expected = [row, row, (width, 2 * width), row, square, row]
    if not 1 <= width <= workspace.MAX_WIDTH or [tuple(t.shape) for t in tensors] != expected:
        return None
    instructions, samples = workspace.engine_name(), len(times)
    sizes = (
        samples, width, workspace.ACTIVATIONS[d.activation], workspace.tile_size(samples),
        workspace.num_threads(samples),
    )  # fmt: skip
    head = (instructions, sizes, float(d.scale))
    return _Embedding.apply(head, times, *tensors)  # pyright: ignore[reportReturnType]


def _plain(tensor: object) -> bool:
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.dtype == torch.float32  # pyright: ignore[reportAttributeAccessIssue]
        and tensor.device.type == "cpu"  # pyright: ignore[reportAttributeAccessIssue]
    )


def _run(
    head: tuple[Any, ...],
    tensors: tuple[Tensor, ...],
    kept: Tensor | None,
    embeddings: Tensor | None,
    grad: Tensor | None = None,
) -> list[Tensor]:
    """Fills `embeddings`, or returns the gradients of all tensors but times and frequencies."""
    instructions, sizes, scale = head
    times, frequencies, *weights = (tensor.detach().contiguous() for tensor in tensors)
    grads = [] if grad is None else [torch.empty_like(weight) for weight in weights]
    memory = workspace.scratch_memory(core.embedding_scratch(instructions, sizes))
    addresses = [
        workspace.aligned_start(memory),
        times.data_ptr(),
        frequencies.data_ptr(),
        0 if kept is None else workspace.aligned_start(kept),
        address(embeddings),
        address(grad),
    ]
    of_weights, of_grads = ([each.data_ptr() for each in list_] for list_ in (weights, grads))
    core.embedding(instructions, sizes, scale, addresses, of_weights, of_grads)
    return grads


class _Embedding(Function):
    """Embeddings; what their tiles keep makes the way back cost no more than two ways there."""

    @staticmethod
    def forward(ctx: Any, head: tuple[Any, ...], *tensors: Tensor) -> Tensor:
        samples, width, _, tile, _ = head[1]
        embeddings = torch.empty(samples, width, device="cpu")
        ctx.head, ctx.kept = head, None
        if any(ctx.needs_input_grad):
            rows = 4 * tile * math.ceil(samples / tile)
            size = 4 * rows * _PADDING * math.ceil(width / _PADDING) + 64
            ctx.kept = torch.empty(size, dtype=torch.uint8, device="cpu")
        ctx.save_for_backward(*tensors)
        _run(head, tensors, ctx.kept, embeddings)
        return embeddings

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        grads = _run(ctx.head, ctx.saved_tensors, ctx.kept, None, grad.contiguous())
        return None, None, None, *grads
