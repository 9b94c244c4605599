r"""Time embeddings by the fused engine: Fourier features and two layers, with gradients.

.. math:: e(t) = W_2 \, \sigma(W_1 [\sin a, \cos a] + b_1) + c, \qquad
          a = s \, t \, \omega + \varphi

If every sample has its own time, an embedding costs as much as the rest of the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function

from diffflow_ext.functional.core import address, core
from diffflow_ext.functional.operator import first_order

from . import workspace


def embedding_or_none(d: Any, times: Tensor) -> Tensor | None:
    """Returns the embeddings of times, (times, width), or None if the engine cannot compute them.

    `d` has the attributes of :class:`diffflow_ext.nets.mlp.TimeEmbedding`.
    """
    if not isinstance(d.scale, float | int):  # a tensor may need a gradient
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
    instructions = workspace.instructions_name()
    assert instructions is not None
    form = _Form(instructions, d.activation, float(d.scale))
    return _Embedding.apply(form, times, *tensors)  # pyright: ignore[reportReturnType]


class _Form(NamedTuple):
    """The arguments that are no tensors."""

    instructions: str
    activation: str
    scale: float


def _plain(tensor: object) -> bool:
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.dtype == torch.float32  # pyright: ignore[reportAttributeAccessIssue]
        and tensor.device.type == "cpu"  # pyright: ignore[reportAttributeAccessIssue]
    )


def _core_problem(form: _Form, times: Tensor, frequencies: Tensor, *weights: Tensor) -> Any:
    """Returns a problem of the core for contiguous tensors."""
    problem = core.EmbeddingProblem()
    problem.samples, problem.width = len(times), len(frequencies)
    problem.activation = getattr(core.Activation, form.activation)
    problem.scale, problem.work = form.scale, workspace.work_on(len(times), form.instructions)
    problem.times, problem.frequencies = address(times), address(frequencies)
    problem.weights = _addresses(core.EmbeddingTensors(), weights)
    return problem


def _addresses(struct: Any, tensors: Sequence[Tensor]) -> Any:
    """Writes the addresses of phase, first, first_bias, second and constant into a struct."""
    phase, first, first_bias, second, constant = tensors
    struct.phase, struct.constant = phase.data_ptr(), constant.data_ptr()
    struct.first, struct.first_bias = first.data_ptr(), first_bias.data_ptr()
    struct.second = second.data_ptr()
    return struct


def _run(form: _Form, problem: Any, activations: Tensor | None) -> None:
    size = core.embedding_scratch_bytes(form.instructions, problem)
    _memory = workspace.lend_scratch(problem, size)
    if activations is not None:
        problem.activations = workspace.aligned_start(activations)
    core.run_embedding(form.instructions, problem)


class _Embedding(Function):
    """Embeddings, with activations stored for the backward pass."""

    @staticmethod
    def forward(ctx: Any, form: _Form, *tensors: Tensor) -> Tensor:
        contiguous = [tensor.detach().contiguous() for tensor in tensors]
        problem = _core_problem(form, *contiguous)
        embeddings = torch.empty(problem.samples, problem.width, device="cpu")
        problem.embeddings, tile = address(embeddings), problem.work.tile
        ctx.form, ctx.activations = form, None
        if any(ctx.needs_input_grad):
            rows = 4 * tile * math.ceil(problem.samples / tile)
            size = 4 * rows * workspace.padded(problem.width) + 64
            ctx.activations = torch.empty(size, dtype=torch.uint8, device="cpu")
        ctx.save_for_backward(*tensors)
        _run(form, problem, ctx.activations)
        return embeddings

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        contiguous = [tensor.detach().contiguous() for tensor in ctx.saved_tensors]
        grad, grads = grad.contiguous(), [torch.empty_like(each) for each in contiguous[2:]]
        problem = _core_problem(ctx.form, *contiguous)
        problem.grad, problem.grads = address(grad), _addresses(core.EmbeddingGradients(), grads)
        _run(ctx.form, problem, ctx.activations)
        return None, None, None, *grads
