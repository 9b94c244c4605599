r"""A perceptron over vectors, conditioned on time through learned Fourier features.

It serves as drift :math:`f(t, x)` and as score :math:`s(t, x)` of low-dimensional data. Time
enters once, before the first activation, so samples with the same time share its embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from .conditions import Context, context_embedding, null_context, refuse_context

MaybeTensor = TypeVar("MaybeTensor", Tensor, "Tensor | None")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": functional.elu,
    "gelu": functional.gelu,
    "mish": functional.mish,
    "relu": functional.relu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}

MIN_FREQUENCY, MAX_FREQUENCY = 0.1, 100.0


@dataclass(frozen=True)
class Perceptron:
    r"""The perceptron that a network is at given times.

    .. math:: h_0 = \sigma(e_k + W x), \quad h_l = \sigma(U_l h_{l-1} + c_l), \quad
              \text{net}(t_k, x) = V h_{\text{depth}} + v

    Arguments:
        activation: The name of :math:`\sigma`.
        embedding: :math:`e`, shape (times, width): the sum that the first layer adds to W x.
        input: W, shape (width, dim).
        output: V, shape (dim, width).
        output_bias: v, shape (dim,).
        hidden: :math:`U_l` and :math:`c_l` of each further layer.
    """

    activation: str
    embedding: Tensor
    input: Tensor
    output: Tensor
    output_bias: Tensor
    hidden: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True)
class TimeEmbedding:
    r"""The tensors of a time embedding.

    .. math:: e(t) = W_2 \, \sigma(W_1 [\sin a, \cos a] + b_1) + c, \qquad
              a = s \, t \, \omega + \varphi

    Arguments:
        activation: The name of :math:`\sigma`.
        scale: s.
        frequencies: :math:`\omega`, shape (width,), which get no gradient.
        phase: :math:`\varphi`, shape (width,).
        first: :math:`W_1`, shape (width, 2 width).
        first_bias: :math:`b_1`, shape (width,).
        second: :math:`W_2`, shape (width, width).
        constant: c, shape (width,).
    """

    activation: str
    scale: float
    frequencies: Tensor
    phase: Tensor
    first: Tensor
    first_bias: Tensor
    second: Tensor
    constant: Tensor


class FourierMLP(nn.Module):
    r"""Maps a time and a batch of vectors to a batch of vectors.

    With frequencies :math:`\omega` evenly spaced from 0.1 to 100, a learned phase
    :math:`\varphi` (both of length `width`), a time scale :math:`c` and an activation
    :math:`\sigma`,

    .. math::
        e(t) &= W_2\, \sigma(W_1 [\sin(\omega c t + \varphi), \cos(\omega c t + \varphi)] + b_1)
                + b_2 \\
        h_0 &= \sigma(W_x x + b_x + e(t)), \qquad
        h_l = \sigma(U_l h_{l-1} + c_l), \quad l = 1 \dots \text{depth} \\
        \text{net}(t, x) &= a \, (V h_{\text{depth}} + v)

    With two dimensions and the default width and depth it has 99,714 parameters. A context is
    added to e(t), see :mod:`diffflow_ext.nets.conditions`; with labels and vectors it is a mapping
    of both.

    Arguments:
        dim: The number :math:`D \geq 1` of components of :math:`x`.
        width: The number :math:`\geq 1` of units in each hidden layer, and of frequencies.
        depth: The number :math:`\geq 0` of hidden layers after the first.
        activation: One of "elu", "gelu", "mish", "relu", "silu" and "tanh".
        time_scale: The factor :math:`c` from time to the argument of the features. The fastest
            of them turns by :math:`100\,c\,T` radians over the interval :math:`[0, T]`.
        output_scale: The factor :math:`a > 0` of the value: about the size of what the network is
            to learn, so that its last layer has numbers of order one. See docs/training.md for
            that of a drift and of a score.
        context_dim: The components of vectors in the context, 0 for none; 0 stands for no vector.
        num_classes: The number of classes of labels in the context, 0 for none. Label
            `num_classes` stands for no class.

    Raises:
        ValueError: If a number is out of range, or the activation is unknown.

    References:
        | Diffusion Normalizing Flow (Zhang & Chen, 2021)
        | https://arxiv.org/abs/2110.07579

    Example:
        >>> drift = FourierMLP(dim=2)
        >>> drift(torch.tensor(0.5), torch.randn(8, 2)).shape
        torch.Size([8, 2])
    """

    #: The network is trunk(x, embed(t)): engines may embed all times of a path in one call. See
    #: `diffflow_ext.engines.network.embeds_time` for what that asks of a class.
    time_enters_by_embedding: ClassVar[bool] = True
    frequencies: Tensor

    def __init__(
        self,
        dim: int,
        width: int = 128,
        depth: int = 3,
        activation: str = "gelu",
        *,
        time_scale: float = 1.0,
        output_scale: float = 1.0,
        context_dim: int = 0,
        num_classes: int = 0,
    ) -> None:
        """Draws the weights from torch's global generator."""
        super().__init__()
        _check_arguments(dim, width, depth, activation, time_scale, output_scale)
        self.dim, self.width, self.depth = dim, width, depth
        self.activation, self.time_scale = activation, time_scale
        self.output_scale = output_scale
        self.register_buffer("frequencies", torch.linspace(MIN_FREQUENCY, MAX_FREQUENCY, width))
        self.phase = nn.Parameter(torch.randn(width))
        self.time_in = nn.Linear(2 * width, width)
        self.time_out = nn.Linear(width, width)
        self.input = nn.Linear(dim, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.output = nn.Linear(width, dim)
        # Last, so that all other weights are those of a network without a context.
        self.condition = context_embedding("FourierMLP", num_classes, context_dim, width)

    def forward(self, t: Tensor, x: Tensor, context: Context | None = None) -> Tensor:
        r"""Evaluates the network.

        Arguments:
            t: The time :math:`t` of all samples, shape :math:`()`, or of each, shape :math:`(B,)`.
            x: The vectors :math:`x`, with shape :math:`(B, D)`.
            context: Vectors of shape (B, context_dim), labels, or both, if the network takes them.

        Returns:
            The vectors :math:`\text{net}(t, x)`, with shape :math:`(B, D)`.

        Raises:
            ValueError: If an argument has another shape, or a context is missing or not taken.
        """
        self._check_vectors(x)
        if t.ndim != 0 and t.shape != x.shape[:1]:
            raise ValueError(
                f"FourierMLP: expected t of shape () or ({x.shape[0]},), one time for each row "
                f"of x, got {tuple(t.shape)}"
            )
        return self.trunk(x, self.embed(t.to(x.dtype)), context)

    def null_context(self, count: int) -> Context:
        """Returns the context that stands for none, of `count` rows."""
        return null_context("FourierMLP", self.condition, count)

    def embed(self, t: Tensor) -> Tensor:
        r"""Returns the time embedding :math:`e(t)`.

        Arguments:
            t: Times of any shape :math:`(*)`.

        Returns:
            The embeddings, with shape :math:`(*, \text{width})`.
        """
        sigma = ACTIVATIONS[self.activation]
        angle = (t * self.time_scale).unsqueeze(-1) * self.frequencies + self.phase
        features = torch.cat([angle.sin(), angle.cos()], dim=-1)
        return self.time_out(sigma(self.time_in(features)))

    def trunk(self, x: Tensor, embedding: Tensor, context: Context | None = None) -> Tensor:
        r"""Evaluates the network from a given time embedding.

        Arguments:
            x: The vectors :math:`x`, with shape :math:`(B, D)`.
            embedding: What `embed` returned, with shape :math:`(\text{width},)`,
                :math:`(1, \text{width})` or :math:`(B, \text{width})`.
            context: As in `forward`.

        Returns:
            The vectors :math:`\text{net}(t, x)`, with shape :math:`(B, D)`.

        Raises:
            ValueError: If `x` has another shape, or a context is missing or not taken.
        """
        self._check_vectors(x)
        sigma = ACTIVATIONS[self.activation]
        if self.condition is None:
            refuse_context("FourierMLP", context)
        else:
            embedding = embedding + self.condition(context)
        h = sigma(self.input(x) + embedding)
        for layer in self.hidden:
            h = sigma(layer(h))
        return self._scaled(self.output(h))

    def _scaled(self, value: MaybeTensor) -> MaybeTensor:
        # A layer may have no bias.
        return value if self.output_scale == 1.0 or value is None else value * self.output_scale

    def _check_vectors(self, x: Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(
                f"FourierMLP: expected x of shape (B, {self.dim}), got {tuple(x.shape)}"
            )

    def perceptron_at(self, t: Tensor) -> Perceptron:
        r"""Returns the perceptron that the network is at times t, shape (times,)."""
        return self.perceptron_with(_sum(self.embed(t), self.input.bias))

    def perceptron_with(self, embedding: Tensor) -> Perceptron:
        r"""Returns the perceptron for a given `Perceptron.embedding`, shape (times, width)."""
        return Perceptron(
            self.activation,
            embedding,
            self.input.weight,
            self._scaled(self.output.weight),
            self._scaled(self.output.bias),
            tuple((layer.weight, layer.bias) for layer in self.hidden),  # pyright: ignore
        )

    def time_embedding(self) -> TimeEmbedding:
        """Returns the tensors from which the fused engine computes `Perceptron.embedding`."""
        return TimeEmbedding(
            self.activation,
            self.time_scale,
            self.frequencies,
            self.phase,
            self.time_in.weight,
            self.time_in.bias,
            self.time_out.weight,
            _sum(self.time_out.bias, self.input.bias),
        )

    def extra_repr(self) -> str:
        """Returns the arguments that no submodule shows, for `repr`."""
        return (
            f"dim={self.dim}, width={self.width}, depth={self.depth}, "
            f"activation={self.activation!r}, time_scale={self.time_scale}, "
            f"output_scale={self.output_scale}"
        )


def _sum(value: Tensor, bias: Tensor | None) -> Tensor:
    """Adds a bias, None in layers of users that have none."""
    return value if bias is None or value is None else value + bias  # pyright: ignore


def _check_arguments(
    dim: int, width: int, depth: int, activation: str, time_scale: float, output_scale: float
) -> None:
    for name, value, least in (("dim", dim, 1), ("width", width, 1), ("depth", depth, 0)):
        if value < least:
            raise ValueError(f"FourierMLP: expected {name} >= {least}, got {value}")
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(
            f"FourierMLP: expected activation to be one of {known}; got {activation!r}"
        )
    for name, value in (("time_scale", time_scale), ("output_scale", output_scale)):
        if not 0.0 < value < float("inf"):
            raise ValueError(f"FourierMLP: expected a positive, finite {name}, got {value}")
