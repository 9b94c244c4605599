"""Networks `net(t, x)`: their type, and checked calls."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _torch_module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from diffflow_ext.functional.checks import checked_network_output, dtype_name, in_words

from .conditions import Conditioned, network_of

#: What torch and Python say of shapes, of dtypes and of devices. Other errors are the network's.
_SHAPES = re.compile(
    r"shape|size|[Dd]imension|0-d tensor|at least \dD|\dD|channels|unpack|indices|broadcast"
    r"|reshape|tuple index out of range"
)
_DTYPES = re.compile(r"dtype|scalar type|Input type|same type")
_DEVICES = re.compile(r"same device|expected device|Input type|weight type")
_MEMORY = re.compile(r"memory|CUDA error", re.IGNORECASE)


def speaks_of_shapes(text: str) -> bool:
    """Says whether an error of torch or Python is about the shapes of arguments."""
    return _SHAPES.search(text) is not None and not _MEMORY.search(text)


def training_flags(nets: Iterable[object]) -> list[bool]:
    """Returns the training flags of all modules that networks are, contain or are methods of."""
    modules = (getattr(net, "__self__", net) for net in map(network_of, nets))
    return [m.training for net in modules if isinstance(net, nn.Module) for m in net.modules()]


def defines_together(net: Any, name: str, others: Sequence[str]) -> bool:
    """Whether no subclass of the class that defines an attribute defines one of the others."""
    for base in type(net).__mro__:
        if name in vars(base):
            return True
        if any(other in vars(base) for other in others):
            return False
    return False


def has_hooks(part: nn.Module) -> bool:
    """Whether a module has hooks of its own."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(part, name) for name in names)


def has_global_hooks() -> bool:
    """Whether hooks on all modules are set."""
    names = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    return any(getattr(_torch_module, f"_global_{name}", None) for name in names)


def replaced_method(net: object, names: Collection[str]) -> str:
    """Returns which of these methods was replaced in a class after its definition, or ""."""
    for base in type(net).__mro__:
        for name in set(names) & vars(base).keys():
            own = getattr(vars(base)[name], "__qualname__", None) == f"{base.__qualname__}.{name}"
            if not own and base is not nn.Module:
                return f"{name} of its class {base.__name__} was replaced"
    return ""


#: Methods by which a network is called as a whole, and in two parts.
_IN_PARTS = ("__call__", "_call_impl", "forward", "embed", "trunk")


def embeds_time(net: object) -> bool:
    """Says whether a network is ``trunk(x, embed(t))``, and nothing else watches its calls.

    Its class says so by ``time_enters_by_embedding = True``, as that of
    :class:`diffflow_ext.nets.UNet`. Then `embed` maps times of shape (K,) to a tensor (K, ...),
    one row for each time alone; `trunk` takes one row for all samples, or one for each, and a
    context as third argument if the network has one. A wrapper names its network as
    `inner_network`, which must do so too.
    """
    inner = getattr(net, "inner_network", None)
    return (
        isinstance(net, nn.Module)
        and (inner is None or embeds_time(inner))
        and getattr(net, "time_enters_by_embedding", None) is True
        and defines_together(net, "time_enters_by_embedding", _IN_PARTS)
        and vars(net).keys().isdisjoint(_IN_PARTS)
        and not replaced_method(net, _IN_PARTS)
        and not (has_hooks(net) or has_global_hooks())
        and net._compiled_call_impl is None
        # Its statistics would be those of all times.
        and not any(isinstance(m, _BatchNorm) and m.training for m in net.modules())
    )


Edge = tuple[Any, int]


def edges_of(value: Tensor, stops: Collection[Edge] = ()) -> set[Edge]:
    """Returns all results, as nodes and numbers, from which autograd's graph computes a value.

    `stops`, and what only they are computed from, are left out. A leaf is a node with an attribute
    `variable`.
    """
    nodes, edges = [value.grad_fn], set[Edge]()
    while nodes:
        node = nodes.pop()
        for edge in getattr(node, "next_functions", ()):
            if edge[0] is not None and edge not in edges and edge not in stops:
                edges.add(edge)
                nodes.append(edge[0])
    return edges


def check_trainable(op: str, params: Sequence[Tensor]) -> None:
    """Refuses tensors whose gradients would be wrong.

    If one is computed from another, autograd would add its gradient to that of the other, which
    has it already.
    """
    if any(map(is_lazy, params)):
        raise ValueError(
            f"{op}: expected parameters with shapes, got a lazy module, whose parameters get them "
            "in a first call; call the networks once on some data"
        )
    edges = {edge for p in params if p.grad_fn is not None for edge in edges_of(p)}
    leaves = {id(getattr(node, "variable", None)) for node, _ in edges}
    for p in params:
        if id(p) in leaves or (p.grad_fn, p.output_nr) in edges:
            raise ValueError(
                f"{op}: expected trainable tensors of which none is computed from another, got "
                f"one of shape {tuple(p.shape)} from which another one is; name in `params` "
                "those alone that the networks take"
            )


def call_network(
    op: str,
    name: str,
    net: Callable[[Tensor, Tensor], Any],
    t: Tensor,
    x: Tensor,
    *,
    call: Callable[[Tensor, Tensor], Any] | None = None,
    dual: bool = False,
) -> Tensor:
    """Returns net(t, x), checked; a network must not modify its arguments.

    `call` computes it in another way. With `dual` the value may have a tangent of forward-mode AD.

    An error that speaks of the arguments, their shapes, dtypes or devices is raised again with how
    networks are called; it has the class of the network's error, which is its cause, but a
    TypeError for dtypes. All other errors pass.
    """
    if torch.compiler.is_compiling():
        return checked_network_output(op, name, net(t, x), x)
    if x.requires_grad and x.is_leaf and has_global_hooks():
        # Hooks such as those of FlopCounterMode watch the arguments' gradients, and torch cannot
        # tell them of a leaf inside of autograd.grad.
        x = x.view_as(x)
    versions = _versions(t, x)
    try:
        value = (call or net)(t, x)
    except (TypeError, IndexError, ValueError, RuntimeError) as error:
        explained = _explained(op, name, net, t, x, error)
        if explained is None:
            raise
        raise explained from error
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{op}: expected {name} to return a tensor of the shape of x, {tuple(x.shape)}, got "
            f"{type(value).__name__}; return that tensor alone"
        )
    if versions != _versions(t, x):
        raise RuntimeError(f"{op}: {name} modified x or t in place; copy first")
    return checked_network_output(op, name, value, x, dual=dual)


def call_timeless(op: str, name: str, net: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """Returns net(x) of a network of data alone; errors are explained as in `call_network`.

    The value is of any shape, of a floating dtype, and on the device of x.
    """
    if torch.compiler.is_compiling():
        return net(x)
    versions = _versions(x)
    try:
        value = net(x)
    except (TypeError, IndexError, ValueError, RuntimeError) as error:
        given = _blames_arguments(error)
        explained = given and (
            _of_signature(op, name, net, given, x)
            or _of_parameters(op, name, net, x, str(error), given)
            or _of_shape(op, name, x, type(error), given)
        )
        if not explained:
            raise
        raise explained from error
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: expected {name} to return a tensor, got {in_words(value)}")
    if versions != _versions(x):
        raise RuntimeError(f"{op}: {name} modified its argument in place; copy first")
    if not value.is_floating_point():
        raise TypeError(
            f"{op}: expected {name} to return real numbers of a floating dtype, got "
            f"{dtype_name(value.dtype)}; convert them with .float()"
        )
    if value.device != x.device:
        raise ValueError(
            f"{op}: expected {name} on the device of its data ({x.device}), got {value.device}; "
            "move the network with .to()"
        )
    return value


def _blames_arguments(error: Exception) -> str:
    """Returns the class and text of an error that arguments may have caused, or ""."""
    text, kind = str(error), type(error)
    # Subclasses, such as torch.OutOfMemoryError, have other reasons.
    if kind not in (TypeError, IndexError, ValueError, RuntimeError) or _MEMORY.search(text):
        return ""
    return f"{kind.__name__}: {text}"


def _explained(
    op: str, name: str, net: Callable[..., Any], t: Tensor, x: Tensor, error: Exception
) -> Exception | None:
    """Returns a network's error with how networks are called, None if that is not the reason."""
    text, kind, given = str(error), type(error), _blames_arguments(error)
    if not given:
        return None
    return (
        _of_signature(op, name, net, given, t, x)
        or _of_parameters(op, name, net, x, text, given)
        or _of_shapes(op, name, t, x, kind, given)
    )


def _of_signature(
    op: str, name: str, net: Callable[..., Any], given: str, *arguments: Tensor
) -> Exception | None:
    if isinstance(net, Conditioned):
        if _takes(net.network, *arguments, net.context):
            return None
        taken = "two arguments, the data" if len(arguments) == 1 else "three arguments, t, x"
        return TypeError(
            f"{op}: expected {name} to take {taken} and the context, got {given}; write a module "
            "whose forward takes the context last, or pass no context"
        )
    if _takes(net, *arguments):
        return None
    if len(arguments) == 1:
        return TypeError(
            f"{op}: expected {name} to take one argument, the data without a time, got "
            f"{given}; take a network of x alone, such as nn.Sequential, or pass what else it "
            "takes as context="
        )
    if _takes(net, *arguments, None):
        return TypeError(
            f"{op}: expected {name} to take two arguments, t and x, got {given}; pass the third "
            "one as context=, with one row for each sample"
        )
    return TypeError(
        f"{op}: expected {name} to take two arguments, t and x, got {given}; write a module "
        "with forward(self, t, x), in which a network of x alone, such as nn.Sequential, is "
        "called as net(x)"
    )


def _takes(net: Callable[..., Any], *arguments: object) -> bool:
    """Whether a network can be called with so many arguments, or has no signature that says."""
    try:
        inspect.signature(net.forward if isinstance(net, nn.Module) else net).bind(*arguments)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def _of_parameters(
    op: str, name: str, net: Callable[..., Any], x: Tensor, text: str, given: str
) -> Exception | None:
    """Explains a dtype or a device that the network and its data do not share."""
    own = list(net.parameters()) if isinstance(net, nn.Module) else []
    devices = sorted({str(p.device) for p in own if p.device != x.device})
    if devices and _DEVICES.search(text):
        return RuntimeError(
            f"{op}: expected {name} and its data on one device, got parameters on "
            f"{' and '.join(devices)} and x on {x.device} ({given}); move one of them with .to()"
        )
    if not _DTYPES.search(text):
        return None
    dtypes = sorted({dtype_name(p.dtype) for p in own if p.dtype != x.dtype})
    has = f"{' and '.join(dtypes)} parameters" if dtypes else "another dtype inside"
    return TypeError(
        f"{op}: expected {name} to compute in the dtype of its data, got {has} and "
        f"{dtype_name(x.dtype)} data ({given}); {_mended(dtypes, x.dtype)}"
    )


def _mended(dtypes: list[str], dtype: torch.dtype) -> str:
    """Returns how parameters and data get one dtype."""
    narrow, wide = ("network", "data") if dtype == torch.float64 else ("data", "network")
    advice = f"convert the {wide} with .float(), or the {narrow} with .double()"
    if not {"bfloat16", "float16"}.intersection(dtypes):
        return advice
    network = ".double()" if dtype == torch.float64 else ".float()"
    return f"convert the network with {network}; torch.autocast makes it compute in 16 bits"


def _of_shapes(
    op: str, name: str, t: Tensor, x: Tensor, kind: type[Exception], given: str
) -> Exception | None:
    if not speaks_of_shapes(given):
        return None
    return kind(
        f"{op}: expected {name} to take t of shape () or (B,) and x of shape (B, *event), in this "
        f"order; with t of shape {tuple(t.shape)} and x of shape {tuple(x.shape)} it raised "
        f"{given}; check the sizes of its layers, and t: t.expand(len(x)) always has shape (B,)"
    )


def _of_shape(
    op: str, name: str, x: Tensor, kind: type[Exception], given: str
) -> Exception | None:
    if not speaks_of_shapes(given):
        return None
    return kind(
        f"{op}: expected {name} to take data of shape {tuple(x.shape)}, it raised {given}; check "
        "the sizes of its layers"
    )


def _versions(*tensors: Tensor) -> list[int]:
    """Returns torch's counts of writes to tensors, except for inference tensors."""
    return [tensor._version for tensor in tensors if not tensor.is_inference()]


#: A drift or a score: called with the time, shape () or (B,), and the state, shape (B, *event).
Network = Callable[[Tensor, Tensor], Tensor]
