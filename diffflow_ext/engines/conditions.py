"""Networks with a context, called as ``net(t, x, context)``.

A model is given the context of a batch once. All that it calls sees networks of t and x, which
hand on the rows of the context that belong to the rows of x.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from diffflow_ext.functional.checks import checked_finite
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
        return type(self)(self.network, mapped(self.context, lambda c: c[:count]))


class ConditionedOnData(Conditioned):
    """A network of data and a context, without a time, with the context of one batch."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns ``network(x, context)``."""
        return self.network(x, rows_for(self.context, x))


class Guided(nn.Module):
    r"""Classifier-free guidance: a network of t, x and a context, extrapolated from none.

    .. math:: n_w(t, x, c) = n(t, x, c_0) + w \, (n(t, x, c) - n(t, x, c_0))

    with :math:`c_0` the context that stands for none, ``network.null_context(B)``. w = 0 is the
    network without a context, w = 1 the network itself; w > 1 strengthens the context.

    References:
        | Classifier-Free Diffusion Guidance (Ho and Salimans, 2022), equation 6, where the weight
        | is w - 1
        | https://arxiv.org/abs/2207.12598
    """

    def __init__(self, network: Any, weight: float) -> None:
        super().__init__()
        self.network, self.weight = network, weight

    def forward(self, t: Tensor, x: Tensor, context: Context) -> Tensor:
        """Returns the guided value, from two evaluations; one for w = 0."""
        free = self.network(t, x, self.network.null_context(len(x)))
        if self.weight == 0:
            return free
        return free + self.weight * (self.network(t, x, context) - free)


def guided(op: str, name: str, network: Any, context: object, weight: float) -> Any:
    """Returns a network with guidance of a weight; the network itself for the weight 1.

    Raises:
        ValueError: If the weight is not finite, or there is no context.
        TypeError: If the network has no context that stands for none.
    """
    weight = checked_finite(op, "guidance", weight)
    if weight == 1:
        return network
    if context is None:
        raise ValueError(
            f"{op}: expected a context with guidance={weight}, got None; pass context=, or leave "
            "guidance at 1"
        )
    if not callable(getattr(network, "null_context", None)):
        raise TypeError(
            f"{op}: expected {name} with a method null_context(n), the context of n samples that "
            f"stands for none, for guidance={weight}, got {type(network).__name__}; write it, as "
            "nets.UNet has it, and train the network with it for some of the samples"
        )
    return Guided(network, weight)


def conditioned(network: Any, context: Context | None) -> Any:
    """Returns a network of t and x: with a context, if there is one."""
    return network if context is None else Conditioned(network, context)


def network_of(net: Any) -> Any:
    """Returns the network without its context."""
    return net.network if isinstance(net, Conditioned) else net
