"""Perceptrons for the fused engine, as tensors.

The engine takes networks with a method ``perceptron_at(t)``, defined in the class of ``forward``,
that returns the tensors of a perceptron at given times, as
:meth:`diffflow_ext.nets.FourierMLP.perceptron_at`. Networks that compute anything else (hooks,
other submodules, overridden methods) are refused with a reason. The engine also computes time
embeddings of Fourier features, if the class of ``embed`` has ``time_embedding()`` and
``perceptron_with(embedding)``. What a context adds to the embedding of each sample is computed by
torch, by the network's module `condition`, called as ``condition(context)``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffflow_ext.functional.contexts import rows_for

from ..conditions import Conditioned, network_of
from ..network import defines_together, has_global_hooks, has_hooks, replaced_method
from .embedding import embedding_or_none
from .workspace import ACTIVATIONS, MAX_DEPTH, MAX_WIDTH, Parts, data_obstacle

#: Methods that evaluate a network, besides `perceptron_at`.
_METHODS = ("__call__", "forward", "trunk")
#: To notice replaced methods of torch.
_ORIGINALS = (nn.Linear.forward, nn.Module.__call__)
#: Methods of the time embedding.
_EMBEDDING_METHODS = ("perceptron_at", "perceptron_with", "embed", "time_embedding")


def parts_or_reason(net: Any, times: Tensor, x: Tensor, device: str = "cpu") -> Parts | str:
    """Returns a network at given times for states like x, or why the engine cannot take it."""
    given, net = net, network_of(net)
    reason = data_obstacle(x, device) or _module_obstacle(net)
    if reason:
        return reason
    with torch.autocast(device, enabled=False):
        condition = _condition(net, given, x)
        if isinstance(condition, str):
            return condition
        mlp = _perceptron(net, times) if device == "cpu" else net.perceptron_at(times)
    hidden, biases = [weight for weight, _ in mlp.hidden], [bias for _, bias in mlp.hidden]
    ends = (mlp.embedding, mlp.input, mlp.output, mlp.output_bias)
    parts = Parts(mlp.activation, *ends, hidden, biases, condition)
    return _tensor_obstacle(parts, len(times), x) or parts


def _condition(net: Any, given: Any, x: Tensor) -> Tensor | str | None:
    """Returns what the context adds for each sample, or why it cannot."""
    module = getattr(net, "condition", None)
    has_context = isinstance(given, Conditioned)
    if has_context != (module is not None):
        return "it takes no context" if has_context else "it takes a context, and there is none"
    if module is None:
        return None
    try:
        return module(rows_for(given.context, x))
    except ValueError as error:
        return str(error)


def _perceptron(net: Any, times: Tensor) -> Any:
    if defines_together(net, "time_embedding", _EMBEDDING_METHODS):
        embedding = embedding_or_none(net.time_embedding(), times)
        if embedding is not None:
            return net.perceptron_with(embedding)
    return net.perceptron_at(times)


def _module_obstacle(net: Any) -> str:
    if not _is_perceptron(net):
        named = type(net).__name__
        return f"no network with perceptron_at(t), such as nets.FourierMLP, but {named}"
    if has_global_hooks():
        return "global hooks of torch modules are set, which would not be called"
    # It is called as it is, hooks and all.
    condition = getattr(net, "condition", None)
    own = set(condition.modules()) if isinstance(condition, nn.Module) else set[nn.Module]()
    reasons = (_part_obstacle(part, part is net) for part in net.modules() if part not in own)
    return next(filter(None, reasons), "") or _patched_class(net)


def _part_obstacle(part: nn.Module, whole: bool) -> str:
    named = type(part).__name__
    if not whole and type(part) not in (nn.Linear, nn.ModuleList):
        return f"it has a part of type {named}"
    if any(name in vars(part) for name in (*_METHODS, *_EMBEDDING_METHODS)):
        return f"a method of its {named} was replaced"
    if has_hooks(part):
        return f"it has hooks on its {named}, which would not be called"
    return ""


def _patched_class(net: nn.Module) -> str:
    """Returns the reason if a method of a class was replaced, else ""."""
    if (nn.Linear.forward, nn.Module.__call__) != _ORIGINALS:
        return "torch's own Linear or Module was changed"
    return replaced_method(net, (*_METHODS, *_EMBEDDING_METHODS))


def _is_perceptron(net: Any) -> bool:
    """Whether perceptron_at is defined, and no subclass of its class changes the evaluation."""
    return isinstance(net, nn.Module) and defines_together(net, "perceptron_at", _METHODS)


def _tensor_obstacle(parts: Parts, times: int, x: Tensor) -> str:
    if parts.activation not in ACTIVATIONS:
        return f"it has the activation {parts.activation!r}; there are {', '.join(ACTIVATIONS)}"
    for tensor in parts.tensors:
        plain = type(tensor) in (Tensor, nn.Parameter)
        if not plain or tensor.dtype != torch.float32 or tensor.device != x.device:
            return f"it has parameters that are no plain float32 tensors on {x.device}"
    dim, width, depth = x.shape[1], parts.width, parts.depth
    if not 1 <= width <= MAX_WIDTH or depth > MAX_DEPTH:
        return f"it is wider than {MAX_WIDTH} or deeper than {MAX_DEPTH}"
    shapes = [tuple(tensor.shape) for tensor in parts.tensors]
    expected = [(times, width), (width, dim), (dim, width), (dim,)]
    expected += [(width, width)] * depth + [(width,)] * depth
    expected += [] if parts.condition is None else [(len(x), width)]
    if shapes != expected:
        return f"it is no perceptron of {dim} components with layers of one width, got {shapes}"
    return ""
