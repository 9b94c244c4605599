r"""A score from a network that predicts noise.

.. math:: s(t, x) = -\frac{\varepsilon(t, x)}{\sigma(t)}, \qquad
          \sigma(t) = g \, \sqrt{t - t_0 + \delta}

The score of noisy data grows without bound towards the data, about as one over the standard
deviation of the noise; the noise itself has the size one at all times.
"""

from __future__ import annotations

import math
import numbers
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class NoiseScore(nn.Module):
    r"""The score of a network that predicts the noise in x.

    Arguments:
        net: The network :math:`\varepsilon(t, x)`, called as all networks are.
        g: The diffusion g > 0 that adds the noise, or its value at the data.
        t_start: The time :math:`t_0` of the data.
        floor: The time :math:`\delta > 0` that keeps the score finite at the data, where an ODE's
            solver evaluates it: about the first step of a grid in training, or less.

    Raises:
        TypeError: If `net` is not callable, or a number is none.
        ValueError: If a number is out of its range.

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020), section 3.2
        | https://arxiv.org/abs/2006.11239

    Example:
        >>> from diffflow_ext.nets import UNet
        >>> net = UNet(1, 16, base=16, mults=(1, 2), attention=(), time_scale=1000 / 0.05)
        >>> score = NoiseScore(net, g=3.0, floor=5e-6)
        >>> score(torch.tensor(0.02), torch.randn(8, 1, 16, 16)).shape
        torch.Size([8, 1, 16, 16])
    """

    #: It is trunk(x, embed(t)) if its network is: the factor is a column of the embedding.
    time_enters_by_embedding: ClassVar[bool] = True

    def __init__(self, net: nn.Module, g: float, t_start: float = 0.0, *, floor: float) -> None:
        super().__init__()
        if not callable(net):
            raise TypeError(f"NoiseScore: expected net to be callable as net(t, x), got {net!r}")
        for name, value in (("g", g), ("t_start", t_start), ("floor", floor)):
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise TypeError(f"NoiseScore: expected {name} as a number, got {value!r}")
            if not math.isfinite(value) or (name != "t_start" and value <= 0):
                kind = "finite" if name == "t_start" else "positive, finite"
                raise ValueError(f"NoiseScore: expected a {kind} {name}, got {value}")
        self.net, self.g, self.t_start, self.floor = net, g, t_start, floor

    @property
    def inner_network(self) -> nn.Module:
        """The network within, which must be trunk(x, embed(t)) too where engines use that."""
        return self.net

    def factor(self, t: Tensor) -> Tensor:
        r"""Returns :math:`-1 / \sigma(t)`, in the shape of t."""
        return -1.0 / (self.g * ((t - self.t_start).clamp(min=0) + self.floor).sqrt())

    def forward(self, t: Tensor, x: Tensor, *context: Any) -> Tensor:
        """Evaluates the score; shapes as those of the network, which a context is handed on to."""
        return self.net(t, x, *context) * _per_sample(self.factor(t).to(x.dtype), x)

    def embed(self, t: Tensor) -> Tensor:
        """Returns the network's embedding of times of shape (K,), and their factors beside it."""
        return torch.cat([self.net.embed(t), self.factor(t)[:, None]], 1)  # pyright: ignore

    def null_context(self, count: int) -> Any:
        """Returns the network's context that stands for none, of `count` rows."""
        return self.net.null_context(count)  # pyright: ignore[reportCallIssue]

    def trunk(self, x: Tensor, embedding: Tensor, *context: Any) -> Tensor:
        """Evaluates the score from what `embed` returned."""
        value = self.net.trunk(x, embedding[:, :-1], *context)  # pyright: ignore
        return value * _per_sample(embedding[:, -1].to(x.dtype), x)


def _per_sample(value: Tensor, x: Tensor) -> Tensor:
    """Returns one number for all samples, or for each, in a shape that multiplies x."""
    return value if value.dim() == 0 else value.reshape(-1, *(1,) * (x.dim() - 1))
