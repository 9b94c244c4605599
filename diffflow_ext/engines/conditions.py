"""Networks with a context, called as ``net(t, x, context)``.

A model is given the context of a batch once. All that it calls sees networks of t and x, which
hand on the rows of the context that belong to the rows of x.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from diffflow_ext.functional.contexts import Context, mapped, rows_for


class Conditioned(nn.Module):
    """A network of t, x and a context, with the context of one batch.

    It embeds times as its network does: ``trunk(x, embedding, context)`` of the network is given
    the context too.

    Arguments:
        network: Called as ``network(t, x, context)``, where the rows of the context are those of
            x, which has B rows or holds several states of the batch, one after the other.
        context: The context, of B rows.
    """

    #: See :func:`diffflow_ext.engines.network.embeds_time`.
    time_enters_by_embedding: ClassVar[bool] = True

    def __init__(self, network: Any, context: Context) -> None:
        super().__init__()
        self.network, self.context = network, context

    @property
    def inner_network(self) -> Any:
        """The network within."""
        return self.network

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Returns ``network(t, x, context)``."""
        return self.network(t, x, rows_for(self.context, x))

    def embed(self, t: Tensor) -> Tensor:
        """Returns the network's embedding of times, which has no context in it."""
        return self.network.embed(t)

    def trunk(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Returns the network's value for an embedding."""
        return self.network.trunk(x, embedding, rows_for(self.context, x))

    def first(self, count: int) -> Conditioned:
        """Returns the same network with the context of the first samples."""
        return Conditioned(self.network, mapped(self.context, lambda c: c[:count]))


def conditioned(network: Any, context: Context | None) -> Any:
    """Returns a network of t and x: with a context, if there is one."""
    return network if context is None else Conditioned(network, context)


def network_of(net: Any) -> Any:
    """Returns the network without its context."""
    return net.network if isinstance(net, Conditioned) else net
