r"""A network of the hidden part of its data, given the part that is seen.

.. math:: \text{net}(t, x, c) = (1 - m) \, n(t, (1 - m) \, x, c), \qquad c = (m \, x_0, \; m)

with a mask m that is 1 where the data :math:`x_0` are seen. The network knows the seen part from
its context alone, and its value is 0 there: noise in that part of x does not reach it, and neither
does a gradient. So a model learns the distribution of the hidden part given the rest, and what it
says of the seen part has no parameters. Where nothing is seen, m = 0, it is n(t, x, 0).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class MaskedNet(nn.Module):
    """The network above, from a network n.

    The context has the channels of x, multiplied by m, and then those of m: as many as x has, or
    one for all of them.

    Arguments:
        net: With `as_channels`, a network ``net(t, x)`` whose x has the channels of the context
            after its own, such as a U-Net with `out_channels`; otherwise one ``net(t, x, c)``
            whose c are vectors, the context flattened. Networks of data alone have no t.
        as_channels: See `net`.
    """

    #: It is trunk(x, embed(t)) if its network is.
    time_enters_by_embedding: ClassVar[bool] = True

    def __init__(self, net: nn.Module, *, as_channels: bool) -> None:
        super().__init__()
        self.net, self.as_channels = net, as_channels

    @property
    def inner_network(self) -> nn.Module:
        """The network within, which must be trunk(x, embed(t)) too where engines use that."""
        return self.net

    def forward(self, *arguments: Tensor) -> Tensor:
        """Evaluates the network of t, x and the context, or of x and the context.

        Arguments:
            arguments: The times, shape () or (B,), if the network takes them; x, of shape
                (B, C, ...); and the context, shape (B, C + M, ...), with M = 1 or C.

        Returns:
            Values of shape (B, K C, ...), for a network with K values for each of x.
        """
        *times, x, context = arguments
        if x.dim() < 2:  # A time, where there is no context.
            raise TypeError(
                "MaskedNet: expected t, x and a context, got none; pass as context the part of x"
                " that is seen and its mask, zeros where nothing is"
            )
        inputs, shown = self._parts(x, context)
        return _hidden_values(self.net(*times, *inputs), shown)

    def embed(self, t: Tensor) -> Tensor:
        """Returns the network's embedding of times."""
        return self.net.embed(t)  # pyright: ignore[reportCallIssue]

    def trunk(self, x: Tensor, embedding: Tensor, context: Tensor) -> Tensor:
        """Evaluates the network from what `embed` returned."""
        (inputs, *more), shown = self._parts(x, context)
        value = self.net.trunk(inputs, embedding, *more)  # pyright: ignore[reportCallIssue]
        return _hidden_values(value, shown)

    def _parts(self, x: Tensor, context: Any) -> tuple[list[Tensor], Tensor]:
        """Returns what the network is given of data, and the weights of what is hidden."""
        channels = x.shape[1]
        sizes = [channels + more for more in (1, channels)]
        good = isinstance(context, Tensor) and context.shape[2:] == x.shape[2:]
        if not good or context.shape[1] not in sizes or context.shape[0] != x.shape[0]:
            rest = "".join(f", {size}" for size in x.shape[2:])
            got = tuple(context.shape) if isinstance(context, Tensor) else type(context).__name__
            raise ValueError(
                f"MaskedNet: expected a context of shape ({len(x)}, {sizes[0]}{rest}) or"
                f" ({len(x)}, {sizes[1]}{rest}), the seen part of x and its mask, got {got}"
            )
        hidden = 1 - context[:, channels:]
        part = x * hidden
        if self.as_channels:
            return [torch.cat([part, context], dim=1)], hidden
        return [part, context.flatten(1)], hidden


def _hidden_values(value: Tensor, hidden: Tensor) -> Tensor:
    """Returns values, one or several for each channel of the data, without those of seen parts."""
    groups = value.unflatten(1, (-1, hidden.shape[1]))
    return (groups * hidden.unsqueeze(1)).flatten(1, 2)
