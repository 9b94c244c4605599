r"""Priors: densities of a model's last state x_N, with samples.

Either a Gaussian or a normalizing flow,

.. math:: \log p(x) = \log \mathcal N(z; 0, I) + \log \left| \det \frac{dz}{dx} \right|,
          \qquad x = h(z), \quad z \sim \mathcal N(0, I)

A flow may be of zuko, normflows or torch.distributions, or any module with `log_prob` and
`sample`; no library of flows is imported here.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffflow_ext.functional.checks import (
    STATE_DTYPES,
    checked_finite,
    checked_shape,
    checked_state,
    in_words,
)
from diffflow_ext.functional.contexts import Context, mapped, rows_for
from diffflow_ext.functional.noise import Key, checked_key, checked_sample_offset, normal

from .adapters import check_flow, log_prob, sample, tensor_of


class Prior(Protocol):
    """The interface of the density of a model's last state.

    A prior of a context has the attribute ``conditional = True``, and both methods take the
    keyword `context`, with one row for each sample.
    """

    def log_prob(self, x: Tensor) -> Tensor:
        """Returns log-densities in nats, shape (B,), differentiable in x and in parameters.

        `x` has shape (B, *event) and is float32 or float64. TypeErrors and ValueErrors are about
        its dtype and its shape.
        """
        ...

    def sample(
        self,
        shape: tuple[int, ...],
        key: Key,
        *,
        sample_offset: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Returns samples, without gradients.

        Arguments:
            shape: The shape (B, *event).
            key: Seed and stream of the noise.
            sample_offset: The global index of the first sample.
            dtype: The dtype of the result.
            device: The device of the result.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If an argument is out of its range.
        """
        ...


class StandardNormal(nn.Module):
    r"""The Gaussian :math:`\mathcal N(0, s^2 I)`; it has no parameters.

    Arguments:
        scale: The standard deviation :math:`s > 0`, in data units.

    Raises:
        TypeError: If `scale` is not a number.
        ValueError: If `scale` is not positive and finite.

    Example:
        >>> from diffflow_ext import NoiseKey
        >>> StandardNormal().sample((10, 2), NoiseKey(0)).shape
        torch.Size([10, 2])
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = checked_finite("StandardNormal", "scale", scale)
        if not self.scale > 0:
            raise ValueError(f"StandardNormal: expected scale > 0, got {self.scale}")

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Returns log-densities, as :meth:`Prior.log_prob`.

        .. math:: \log p(x) = -\tfrac12 \| x / s \|^2 - \tfrac d2 \log (2 \pi s^2)
        """
        x = checked_state("StandardNormal.log_prob", "x", x)
        dimensions = math.prod(x.shape[1:])
        square = (x / self.scale).reshape(x.shape[0], dimensions).square().sum(1)
        norm = 0.5 * dimensions * math.log(2 * math.pi) + dimensions * math.log(self.scale)
        return -(0.5 * square + norm)

    def sample(
        self,
        shape: tuple[int, ...],
        key: Key,
        *,
        sample_offset: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Returns ``scale * normal(shape, key, purpose="prior")``; see :meth:`Prior.sample`."""
        return self.scale * normal(
            shape, key, purpose="prior", sample_offset=sample_offset, dtype=dtype, device=device
        )

    def extra_repr(self) -> str:
        """Returns the scale, for `repr`."""
        return f"scale={self.scale}"


class FlowPrior(nn.Module):
    r"""A normalizing flow, or any distribution, as a prior.

    It may be of

    - zuko: a lazy distribution, ``flow() -> distribution`` (`zuko.flows.NSF(2)`);
    - normflows: `NormalizingFlow` and `MultiscaleFlow` without classes;
    - `torch.distributions`: a distribution with an event of the shape of a sample. Its tensors
      belong to no module: ``.to()`` does not move them, and the state dict does not have them;
    - or any module with `log_prob(x)` and `sample(n)` or `sample((n,))`, which may return samples
      or (samples, log-densities).

    A conditional flow is called as ``flow(context)`` (zuko), or as ``log_prob(x, context)`` and
    ``sample(n, context)``, with a tensor of B rows; of a context that is a mapping it is given the
    entry "vectors". `sample_from` takes it as second argument.

    Flows with a method ``sample_from(z)``, which maps standard normals z of the shape of the
    samples to samples, such as those of this package, are given keyed normals: a sample depends
    only on the key and its global index, if the flow treats samples independently. All others draw
    from torch's generator, forked and seeded by (seed, stream, sample_offset): their samples
    are reproducible, but depend on how a batch is split and on the device.

    The flow computes in its own precision, without autocast, because log-determinants of many
    dimensions need more than 8 bits.

    Arguments:
        flow: The flow.
        conditional: Whether it takes a context. Default: if its attribute `context_dim` is
            positive, as that of :func:`spline_flow` may be.

    Raises:
        TypeError: If `flow` is none of these, or depends on a class, or on a context without
            `conditional`.

    Example:
        >>> prior = FlowPrior(torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)))
        >>> prior.log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """

    def __init__(self, flow: Any, *, conditional: bool | None = None) -> None:
        super().__init__()
        own = getattr(flow, "context_dim", 0) > 0
        self.conditional = own if conditional is None else conditional
        check_flow(flow, self.conditional)
        self.flow = flow

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.parameters())
        return f"FlowPrior({type(self.flow).__name__}, {count:,} parameters)"

    def log_prob(self, x: Tensor, context: Context | None = None) -> Tensor:
        """Returns log-densities of the flow, as :meth:`Prior.log_prob`.

        `x` must have the dtype and the device of the flow. Outside of the flow's support the value
        is minus infinity.

        Raises:
            TypeError: If dtypes differ, or the flow returns no floating tensor.
            ValueError: If `x` is on another device, or the flow returns another shape, or if a
                context is missing or not taken.
            RuntimeError: If the flow detaches the result.
        """
        op = "FlowPrior.log_prob"
        x = checked_state(op, "x", x)
        self._check_device_and_dtype(op, x)
        if not len(x):
            return x.flatten(1).sum(1)  # Some flows fail for empty batches; this has a graph.
        vectors = self._vectors(op, context)
        with torch.autocast(x.device.type, enabled=False):
            values = log_prob(self.flow, x, vectors)
        values = _checked_values(op, values, x)
        self._check_gradient(op, x, values)
        return values.to(x.dtype)

    @torch.no_grad()
    def sample(
        self,
        shape: tuple[int, ...],
        key: Key,
        *,
        sample_offset: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        context: Context | None = None,
    ) -> Tensor:
        """Returns samples of the flow, as :meth:`Prior.sample`.

        A key tensor must be on the flow's device. The flow computes on its device and in its
        dtype; the result is converted.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If an argument is out of its range, or samples have another shape.
            RuntimeError: If a sample is not finite.
        """
        op = "FlowPrior.sample"
        shape = checked_shape(op, "shape", shape)
        like, vectors = tensor_of(self.flow), self._vectors(op, context)
        key = checked_key(op, key, like.device)
        offset = checked_sample_offset(op, sample_offset, shape[0])
        with torch.autocast(like.device.type, enabled=False):
            x = sample(self.flow, shape, key, offset, vectors)
        return _checked_samples(op, x, shape).to(dtype=dtype, device=device)

    def _vectors(self, op: str, context: Context | None) -> Tensor | None:
        """Returns the tensor that the flow is given as a context."""
        if (context is not None) != self.conditional:
            mend = "pass context=" if self.conditional else "FlowPrior(flow, conditional=True)"
            raise ValueError(
                f"{op}: expected {'a' if self.conditional else 'no'} context, because the flow "
                f"takes {'one' if self.conditional else 'none'}, got {in_words(context)}; {mend}"
            )
        if context is None or isinstance(context, Tensor):
            return context
        if "vectors" not in context:
            raise ValueError(
                f"{op}: expected a context with the entry 'vectors' for the flow, got one with "
                f"{', '.join(map(repr, context))}"
            )
        return context["vectors"]

    def _check_device_and_dtype(self, op: str, x: Tensor) -> None:
        like = tensor_of(self.flow)
        if like.device != x.device:
            raise ValueError(
                f"{op}: expected x on the device of the flow ({like.device}), got {x.device}; "
                f"move one of them"
            )
        if like.numel() and like.dtype != x.dtype:
            raise TypeError(
                f"{op}: expected x in the dtype of the flow ({like.dtype}), got {x.dtype}; "
                f"convert the flow with .to({x.dtype})"
            )

    def _check_gradient(self, op: str, x: Tensor, values: Tensor) -> None:
        if not torch.is_grad_enabled() or values.requires_grad:
            return
        if x.requires_grad or any(p.requires_grad for p in self.parameters()):
            raise RuntimeError(
                f"{op}: expected a result that gradients flow through, but the flow detaches it "
                "(or its density is flat); call it under torch.no_grad() if none are wanted"
            )


class GivenPrior(nn.Module):
    """A conditional prior with the context of one batch; see :class:`Prior`."""

    def __init__(self, prior: Any, context: Context) -> None:
        super().__init__()
        self.prior, self.context = prior, context

    def log_prob(self, x: Tensor) -> Tensor:
        """Returns log-densities given the context."""
        return self.prior.log_prob(x, context=rows_for(self.context, x))

    def sample(self, shape: tuple[int, ...], key: Key, **options: Any) -> Tensor:
        """Returns samples given the context, which has as many rows."""
        return self.prior.sample(shape, key, context=self.context, **options)

    def first(self, count: int) -> GivenPrior:
        """Returns the same prior with the context of the first samples."""
        return GivenPrior(self.prior, mapped(self.context, lambda c: c[:count]))


def prior_given(prior: Any, context: Context | None) -> Any:
    """Returns a prior of x alone: with the context, if there is one and the prior takes it."""
    if context is None or not getattr(prior, "conditional", False):
        return prior
    return GivenPrior(prior, context)


def as_prior(flow: Any = None) -> Prior:
    """Returns a prior: N(0, I) for None, priors as they are, flows in a :class:`FlowPrior`.

    An object whose `sample` takes a `key` is a prior. Others are refused by a TypeError if they
    are no flows.
    """
    if flow is None:
        return StandardNormal()
    return flow if _is_prior(flow) else FlowPrior(flow)


def _is_prior(flow: Any) -> bool:
    sample = getattr(flow, "sample", None)
    if not callable(sample) or not callable(getattr(flow, "log_prob", None)):
        return False
    try:
        return "key" in inspect.signature(sample).parameters
    except ValueError:  # a compiled callable without a signature
        return False


def _checked_values(op: str, values: Any, x: Tensor) -> Tensor:
    if not isinstance(values, Tensor):
        raise TypeError(f"{op}: expected the flow to return a tensor, got {type(values).__name__}")
    if values.dtype not in STATE_DTYPES:
        raise TypeError(
            f"{op}: expected the flow to return float32 or float64, got {values.dtype}"
        )
    if tuple(values.shape) != (x.shape[0],):
        raise ValueError(
            f"{op}: expected the flow's log_prob of shape ({x.shape[0]},) for x of shape "
            f"{tuple(x.shape)}, got {tuple(values.shape)}; one sample must be one event "
            "(torch.distributions.Independent makes it one)"
        )
    return values


def _checked_samples(op: str, x: Any, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"{op}: expected the flow to return a floating tensor, got {in_words(x)}")
    if tuple(x.shape) != shape:
        raise ValueError(
            f"{op}: expected the flow's samples of shape {shape}, got {tuple(x.shape)}"
        )
    if not bool(torch.isfinite(x).all()):
        raise RuntimeError(
            f"{op}: expected finite samples, but the flow returned "
            f"{int((~torch.isfinite(x)).sum())} entries that are not; it may have diverged"
        )
    return x
