"""Flows of other libraries: how to ask them for densities, and for samples from given normals.

No library is imported to recognise its objects: one can be here only if somebody else imported it.
`library` imports one for a flow that is made.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import (
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from diffflow_ext.functional.checks import in_words
from diffflow_ext.functional.noise import PURPOSES, Key, NoiseKey, normal, philox_words


def library(op: str, name: str) -> Any:
    """Imports an optional library.

    Arguments:
        op: What needs it.
        name: The library.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # The library is there, and lacks something itself.
            raise
        raise ImportError(
            f"{op}: expected {name} to be installed; pip install 'diffflow_ext[flows]'", name=name
        ) from error


def _library(name: str) -> Any:
    """Returns a library if somebody imported it: only then can one of its objects be here."""
    return sys.modules.get(name)


def check_flow(flow: Any) -> None:
    """Raises a TypeError where an object cannot be a prior."""
    if _is_normflows(flow, "ClassCondFlow", "ConditionalNormalizingFlow") or (
        _is_normflows(flow, "MultiscaleFlow") and flow.class_cond
    ):
        raise TypeError(
            f"FlowPrior: expected a flow without classes and context, got {type(flow).__name__}; "
            "build it with class_cond=False"
        )
    whole = all(callable(getattr(flow, name, None)) for name in ("log_prob", "sample"))
    if isinstance(flow, type) or not (whole or _is_lazy(flow)):
        raise TypeError(
            "FlowPrior: expected a flow of zuko or normflows, a torch distribution, or an object "
            f"with log_prob(x) and sample(n), got {in_words(flow)}"
        )


def _is_normflows(flow: Any, *names: str) -> bool:
    core = getattr(_library("normflows"), "core", None)
    return any(isinstance(flow, getattr(core, name, ())) for name in names)


def _is_lazy(flow: Any) -> bool:
    """Whether this is a module like zuko's, which makes a distribution when it is called."""
    return isinstance(flow, nn.Module) and not hasattr(flow, "log_prob")


def _resolved(flow: Any) -> Any:
    """Returns the distribution of a lazy flow, others as they are."""
    if not _is_lazy(flow):
        return flow
    try:
        distribution = flow()
    except TypeError as error:
        raise TypeError(
            "FlowPrior: expected a flow of zuko without context, a flow of normflows or an object "
            f"with log_prob(x) and sample(n), got {type(flow).__name__}: {error}"
        ) from error
    if not isinstance(distribution, Distribution):
        raise TypeError(
            f"FlowPrior: expected {type(flow).__name__}() to return a torch distribution, "
            f"got {type(distribution).__name__}"
        )
    return distribution


def tensor_of(flow: Any) -> Tensor:
    """Returns a floating tensor that has the flow's device and dtype, an empty one if none."""
    tensors = (*flow.parameters(), *flow.buffers()) if isinstance(flow, nn.Module) else ()
    if isinstance(flow, Distribution):
        tensors = tuple(
            value if isinstance(value, Tensor) else tensor_of(value)
            for value in vars(flow).values()
            if isinstance(value, Tensor | Distribution)
        )
    return next((t for t in tensors if t.is_floating_point() and t.numel()), torch.empty(0))


def log_prob(flow: Any, x: Tensor) -> Any:
    """Returns what the flow says of the density at x, unchecked."""
    if _is_normflows(flow, "MultiscaleFlow"):
        return flow.log_prob(x, None)
    return _resolved(flow).log_prob(x)


def sample(op: str, flow: Any, shape: tuple[int, ...], key: Key, offset: int) -> Any:
    """Returns samples, unchecked: from Philox normals where the flow takes them."""
    like, decoder = tensor_of(flow), _decoder(flow)
    if decoder is None:
        return _forked_sample(flow, shape[0], key, offset, like.device)
    return decoder.decode(_latent(op, shape, decoder, key, offset, like))


@dataclass(frozen=True)
class _Decoder:
    """How samples come from standard normals: z of shape (B, *event), None for any shape."""

    event: tuple[int, ...] | None
    decode: Callable[[Tensor], Tensor]


def _decoder(flow: Any) -> _Decoder | None:
    """Returns how the flow's samples are made from z, None where they cannot be."""
    if callable(getattr(flow, "sample_from", None)):
        return _Decoder(None, flow.sample_from)
    if _is_normflows(flow, "NormalizingFlow"):
        base = _normflows_gaussian(flow.q0)
        return None if base is None else _Decoder(base.event, lambda z: flow(base.decode(z)))
    if _is_normflows(flow, "MultiscaleFlow"):
        return _multiscale_decoder(flow)
    distribution = _resolved(flow)
    return _torch_decoder(distribution) if isinstance(distribution, Distribution) else None


def _torch_decoder(d: Distribution) -> _Decoder | None:
    if isinstance(d, TransformedDistribution):
        base, parts = _torch_decoder(d.base_dist), list(d.transforms)
        return None if base is None else _Decoder(base.event, lambda z: _chain(parts, z, base))
    if isinstance(d, Independent):
        return _torch_decoder(d.base_dist)
    if isinstance(d, Normal):
        event = tuple(d.batch_shape + d.event_shape)
        return _Decoder(event, lambda z: d.loc + d.scale * z)
    if isinstance(d, MultivariateNormal) and not d.batch_shape:
        # Not a matrix product, whose rounding depends on the number of rows.
        return _Decoder(
            tuple(d.event_shape), lambda z: d.loc + (d.scale_tril * z.unsqueeze(-2)).sum(-1)
        )
    # zuko's distribution: transform(x) = z.
    transform, base = getattr(d, "transform", None), getattr(d, "base", None)
    if not hasattr(transform, "inv") or not isinstance(base, Distribution):
        return None
    first = _torch_decoder(base)
    return None if first is None else _Decoder(first.event, _after(first, transform))


def _after(first: _Decoder, transform: Any) -> Callable[[Tensor], Tensor]:
    return lambda z: transform.inv(first.decode(z))


def _chain(parts: list[Any], z: Tensor, base: _Decoder) -> Tensor:
    x = base.decode(z)
    for part in parts:
        x = part(x)
    return x


def _normflows_gaussian(base: Any) -> _Decoder | None:
    """Returns the decoder of a diagonal Gaussian base of normflows, None for other bases."""
    kinds = _library("normflows").distributions.base
    if isinstance(base, kinds.DiagGaussian):
        loc, log_scale = base.loc, base.log_scale
    elif isinstance(base, kinds.GlowBase) and not base.class_cond:
        factor = base.logscale_factor
        loc = base.loc * torch.exp(base.loc_logs * factor)
        log_scale = base.log_scale * torch.exp(base.log_scale_logs * factor)
    else:
        return None
    if base.temperature is not None:
        log_scale = log_scale + math.log(base.temperature)
    return _Decoder(tuple(base.shape), lambda z: loc + log_scale.exp() * z)


def _multiscale_decoder(flow: Any) -> _Decoder | None:
    """Latents of the levels are consecutive parts of one z, so that no two share noise."""
    levels = [_normflows_gaussian(base) for base in flow.q0]
    known = [level for level in levels if level is not None and level.event is not None]
    if len(known) < len(levels):
        return None
    events = [level.event for level in known if level.event is not None]
    sizes = [math.prod(event) for event in events]

    def decode(z: Tensor) -> Tensor:
        parts = [
            level.decode(part.reshape(-1, *event))
            for level, part, event in zip(known, z.split(sizes, dim=1), events, strict=True)
        ]
        return flow.forward_and_log_det(parts)[0]

    return _Decoder((sum(sizes),), decode)


def _latent(
    op: str, shape: tuple[int, ...], decoder: _Decoder, key: Key, offset: int, like: Tensor
) -> Tensor:
    event = shape[1:] if decoder.event is None else decoder.event
    if math.prod(event) != math.prod(shape[1:]):
        raise ValueError(
            f"{op}: expected samples of {math.prod(event)} components, as the flow has, "
            f"got shape {shape}"
        )
    return normal(
        (shape[0], *event),
        key,
        purpose="prior",
        sample_offset=offset,
        dtype=like.dtype,
        device=like.device,
    )


def _forked_sample(flow: Any, n: int, key: Key, offset: int, device: torch.device) -> Any:
    """Samples with torch's own generators, which are as they were afterwards."""
    seed = _torch_seed(key, offset)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # torch.manual_seed would seed devices too that were not forked.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        x = _own_sample(_resolved(flow), n)
    return x[0] if isinstance(x, tuple) else x


def _own_sample(flow: Any, n: int) -> Any:
    if isinstance(flow, Distribution):
        return flow.sample(torch.Size((n,)))
    if _is_normflows(flow, "NormalizingFlow", "MultiscaleFlow"):
        return flow.sample(n)
    try:
        return flow.sample(n)
    except TypeError:  # Neither form can be told from the other without a try.
        return flow.sample((n,))


def _torch_seed(key: Key, offset: int) -> int:
    """Returns 63 bits of Philox that depend on (seed, stream, sample_offset) alone."""
    seed, stream = (key if isinstance(key, NoiseKey) else NoiseKey(*key.tolist())).to_tensor()
    low, high = int(seed) & 0xFFFFFFFF, (int(seed) >> 32) & 0xFFFFFFFF
    counter = torch.tensor([0, offset, PURPOSES["prior"] << 24, int(stream)])
    words = philox_words(counter, torch.tensor([low, high])).tolist()
    return words[0] | (words[1] & 0x7FFFFFFF) << 32
