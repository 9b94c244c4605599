"""Densities and samples of flows of other libraries.

Objects are recognised without importing their library: it is imported already if there is one.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from diffflow_ext.functional.checks import in_words
from diffflow_ext.functional.noise import PURPOSES, Key, NoiseKey, normal, philox_words


def library(op: str, name: str) -> Any:
    """Imports an optional library that `op` needs, or raises an ImportError that says so."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # The library is installed, and one of its own imports failed.
            raise
        raise ImportError(
            f"{op}: expected {name} to be installed; pip install 'diffflow_ext[flows]'", name=name
        ) from error


def check_flow(flow: Any, conditional: bool) -> None:
    """Refuses an object that cannot be a prior."""
    if (
        _is_normflows(flow, "ClassCondFlow")
        or (_is_normflows(flow, "ConditionalNormalizingFlow") and not conditional)
        or (_is_normflows(flow, "MultiscaleFlow") and flow.class_cond)
    ):
        raise TypeError(
            f"FlowPrior: expected a flow without classes and context, got {type(flow).__name__}; "
            "build it with class_cond=False; FlowPrior(flow, conditional=True) is for one that "
            "takes a context"
        )
    complete = all(callable(getattr(flow, name, None)) for name in ("log_prob", "sample"))
    if isinstance(flow, type) or not (complete or _is_lazy(flow)):
        raise TypeError(
            "FlowPrior: expected a flow of zuko or normflows, a torch distribution, or an object "
            f"with log_prob(x) and sample(n), got {in_words(flow)}"
        )


def _is_normflows(flow: Any, *names: str) -> bool:
    core = getattr(sys.modules.get("normflows"), "core", None)
    return any(isinstance(flow, getattr(core, name, ())) for name in names)


def _is_lazy(flow: Any) -> bool:
    """Whether this is a module like zuko's, which makes a distribution when it is called."""
    return isinstance(flow, nn.Module) and not hasattr(flow, "log_prob")


def _resolved(flow: Any, context: Tensor | None) -> Any:
    """Returns the distribution of a lazy flow, others as they are."""
    if not _is_lazy(flow):
        return flow
    try:
        distribution = flow() if context is None else flow(context)
    except TypeError as error:
        raise TypeError(
            "FlowPrior: expected a flow of zuko, a flow of normflows or an object with "
            f"log_prob(x) and sample(n), got {type(flow).__name__}: {error}; "
            "FlowPrior(flow, conditional=True) is for one that takes a context"
        ) from error
    if not isinstance(distribution, Distribution):
        raise TypeError(
            f"FlowPrior: expected {type(flow).__name__}() to return a torch distribution, "
            f"got {type(distribution).__name__}"
        )
    return distribution


def tensor_of(flow: Any) -> Tensor:
    """Returns a floating tensor of the flow, for its device and dtype; an empty one if none."""
    tensors = (*flow.parameters(), *flow.buffers()) if isinstance(flow, nn.Module) else ()
    if isinstance(flow, Distribution):
        tensors = tuple(
            value if isinstance(value, Tensor) else tensor_of(value)
            for value in vars(flow).values()
            if isinstance(value, Tensor | Distribution)
        )
    return next((t for t in tensors if t.is_floating_point() and t.numel()), torch.empty(0))


def log_prob(flow: Any, x: Tensor, context: Tensor | None = None) -> Any:
    """Returns the flow's log-density at x, unchecked."""
    if _is_normflows(flow, "MultiscaleFlow"):
        return flow.log_prob(x, None)
    if context is None or _is_lazy(flow):
        return _resolved(flow, context).log_prob(x)
    return flow.log_prob(x, context)


def sample(
    flow: Any, shape: tuple[int, ...], key: Key, offset: int, context: Tensor | None = None
) -> Any:
    """Returns samples, unchecked; from keyed normals if the flow has `sample_from`."""
    like = tensor_of(flow)
    if not callable(getattr(flow, "sample_from", None)):
        return _forked_sample(flow, shape[0], key, offset, like.device, context)
    z = normal(
        shape, key, purpose="prior", sample_offset=offset, dtype=like.dtype, device=like.device
    )
    return flow.sample_from(z) if context is None else flow.sample_from(z, context)


def _forked_sample(
    flow: Any, n: int, key: Key, offset: int, device: torch.device, context: Tensor | None
) -> Any:
    """Samples with torch's generators, whose states are restored afterwards."""
    seed = _torch_seed(key, offset)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # torch.manual_seed would also seed devices that were not forked.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        x = _draw(_resolved(flow, context), n, context)
    return x[0] if isinstance(x, tuple) else x


def _draw(flow: Any, n: int, context: Tensor | None) -> Any:
    """Calls sample(n), or sample((n,)) if that raises a TypeError.

    Given a context, a distribution is a batch of one for each sample.
    """
    if isinstance(flow, Distribution):
        return flow.sample(torch.Size((n,) if context is None else ()))
    if context is not None:
        return flow.sample(n, context)
    try:
        return flow.sample(n)
    except TypeError:
        return flow.sample((n,))


def _torch_seed(key: Key, offset: int) -> int:
    """Returns 63 bits that depend only on (seed, stream, sample_offset)."""
    seed, stream = (key.to_tensor() if isinstance(key, NoiseKey) else key).tolist()
    low, high = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    counter = torch.tensor([0, offset, PURPOSES["prior"] << 24, stream])
    words = philox_words(counter, torch.tensor([low, high])).tolist()
    return words[0] | (words[1] & 0x7FFFFFFF) << 32
