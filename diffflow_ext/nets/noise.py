r"""Functions of time and state from a network that predicts noise.

.. math:: p(t) \, x + q(t) \, \varepsilon(t, x)

The score of noisy data grows without bound towards the data, about as one over the standard
deviation of the noise; the noise itself has the size one at all times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn


class FromNoise(nn.Module):
    r"""A drift or score that is linear in the state and in the noise that a network predicts.

    Arguments:
        net: The network :math:`\varepsilon(t, x)`, called as all networks are.
        factors: Returns p(t) and q(t) for times of any shape, in that shape, such as `drift` and
            `score` of :class:`diffflow_ext.processes.NoisePath`.

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020), section 3.2
        | https://arxiv.org/abs/2006.11239

    Example:
        >>> from diffflow_ext.nets import UNet
        >>> from diffflow_ext.processes import NoisePath
        >>> net = UNet(1, 16, base=16, mults=(1, 2), attention=(), time_scale=1000 / 0.05)
        >>> score = FromNoise(net, NoisePath(3.0, t_end=0.05).score)
        >>> score(torch.tensor(0.02), torch.randn(8, 1, 16, 16)).shape
        torch.Size([8, 1, 16, 16])
    """

    #: It is trunk(x, embed(t)) if its network is: the factors are columns of the embedding.
    time_enters_by_embedding: ClassVar[bool] = True

    def __init__(self, net: nn.Module, factors: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.net, self.factors = net, factors

    @property
    def inner_network(self) -> nn.Module:
        """The network within, which must be trunk(x, embed(t)) too where engines use that."""
        return self.net

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluates the function; shapes as those of the network."""
        p, q = self.factors(t)
        return _rows(p, x) * x + _rows(q, x) * self.net(t, x)

    def embed(self, t: Tensor) -> Tensor:
        """Returns the network's embedding of times of shape (K,), and both factors beside it."""
        return torch.cat([self.net.embed(t), torch.stack(self.factors(t), 1)], 1)  # pyright: ignore

    def trunk(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Evaluates the function from what `embed` returned."""
        value = self.net.trunk(x, embedding[:, :-2])  # pyright: ignore
        p, q = embedding[:, -2], embedding[:, -1]
        return _rows(p, x) * x + _rows(q, x) * value


def _rows(value: Tensor, x: Tensor) -> Tensor:
    """Returns one number for all samples, or for each, in a shape and the dtype of x."""
    value = value.to(x.dtype)
    return value if value.dim() == 0 else value.reshape(-1, *(1,) * (x.dim() - 1))
