"""Which engine computes: what the fused one can take, and memory that it works in.

A network takes part by a method ``perceptron_at(t)``, defined beside its ``forward``, that returns
the tensors of a perceptron at given times, as :meth:`diffflow_ext.nets.FourierMLP.perceptron_at`.
Everything that would make the network differ from them (hooks, other parts, overridden methods) is
looked for, and named.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _torch_module

from . import _backend, _checks

__all__ = ["Engine", "EngineChoice", "Parts", "Rounding"]

#: Who computes a loss: the fused engine, the adjoint for any networks, or the faster that fits.
Engine = Literal["auto", "fused", "autograd"]

#: How the factors of large products are rounded on a GPU.
Rounding = Literal["float32", "tf32", "bfloat16"]

#: Codes of csrc/trajectory/problem.h.
_ACTIVATIONS = {"gelu": 0, "silu": 1, "tanh": 2}
#: Bounds of the engines.
MAX_DEPTH, MAX_WIDTH, MAX_DIM = 16, 1024, 1024
#: Scratch memory up to this size is kept for the next call, and more than this is not taken.
KEPT_SCRATCH, MAX_SCRATCH = 128 * 2**20, 2 * 2**30
#: Samples of a tile at most, and the number that its size is a multiple of.
_TILE, _ROWS = 40, 8
#: What makes up the evaluation of a network, besides `perceptron_at`.
_METHODS = ("__call__", "forward", "trunk")


class EngineChoice(NamedTuple):
    """Which engine computes, and why not the fused one; "" where it does."""

    name: Literal["fused", "autograd"]
    reason: str


class Parts(NamedTuple):
    """A network for the core: its activation, and its tensors in the core's order."""

    activation: str
    tensors: list[Tensor]

    def described(self) -> tuple[int, int, list[int]]:
        """Returns width, activation and addresses; the tensors must be contiguous and live on."""
        addresses = [tensor.data_ptr() for tensor in self.tensors]
        return self.tensors[0].shape[1], _ACTIVATIONS[self.activation], addresses

    def contiguous(self) -> Parts:
        """Returns the same without graphs, contiguous."""
        return Parts(self.activation, [t.detach().contiguous() for t in self.tensors])

    @property
    def depth(self) -> int:
        """The number of hidden layers after the first."""
        return (len(self.tensors) - 4) // 2


@functools.cache
def _engines() -> list[str]:
    return _backend.core.engines()


def engine_name() -> str | None:
    """Returns the set of instructions that is used now, None where there is none.

    "avx512", "avx2" or "portable"; under autocast to bfloat16 "avx512bf16", which rounds the
    factors of the hidden layers and of their gradients to bfloat16 and sums in float32.
    """
    if not torch.is_autocast_enabled("cpu"):
        return next(name for name in _engines() if name != "avx512bf16")
    bf16 = torch.get_autocast_dtype("cpu") == torch.bfloat16
    return "avx512bf16" if bf16 and "avx512bf16" in _engines() else None


def rounding_name() -> Rounding | None:
    """Returns how the kernels for CUDA round factors now, None where they have no such form.

    As torch's own products: to bfloat16 under autocast, else to TF32 where
    `torch.set_float32_matmul_precision` allows it, else not at all.
    """
    if torch.is_autocast_enabled("cuda"):
        bf16 = torch.get_autocast_dtype("cuda") == torch.bfloat16
        return "bfloat16" if bf16 else None
    return "float32" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def tile_size(samples: int) -> int:
    """Returns the samples of a tile: an even number of tiles of like size, 40 at most."""
    tiles = 2 * math.ceil(samples / (2 * _TILE))
    return min(_TILE, _ROWS * math.ceil(samples / tiles / _ROWS))


def num_threads(samples: int) -> int:
    """Returns how many threads have a tile to work on."""
    return min(torch.get_num_threads(), math.ceil(samples / tile_size(samples)))


# --- what it can take ----------------------------------------------------------------------------


def parts_or_reason(net: Any, times: Tensor, x: Tensor, *, device: str = "cpu") -> Parts | str:
    """Returns a network at given times for states like x, or why the engine cannot take it."""
    reason = data_obstacle(x, device) or _module_obstacle(net)
    if reason:
        return reason
    with torch.autocast(device, enabled=False):
        at = net.perceptron_at(times)
    tensors = [at.embedding, at.input, at.output, at.output_bias]
    tensors += [tensor for pair in at.hidden for tensor in pair]
    return _tensor_obstacle(at.activation, tensors, len(times), x) or Parts(at.activation, tensors)


def data_obstacle(x: Tensor, device: str = "cpu") -> str:
    """Returns why the engine cannot take states like x, "" where it can."""
    if x.device.type != device:
        return f"it runs on the CPU, and the data are on {x.device}"
    if torch.compiler.is_compiling() or type(x) not in (Tensor, nn.Parameter):
        return "the call is being traced, or the data are no plain tensor"
    if (engine_name() if device == "cpu" else rounding_name()) is None:
        return "autocast is on, and there is no engine for its dtype here"
    if x.dtype != torch.float32 or x.dim() != 2:
        return f"it takes float32 vectors, got {x.dtype} of shape {tuple(x.shape)}"
    if not 1 <= x.shape[1] <= MAX_DIM or not x.shape[0]:
        return f"it takes 1 to {MAX_DIM} components of at least one sample, got {tuple(x.shape)}"
    return ""


def _module_obstacle(net: Any) -> str:
    if not _says_what_it_is(net):
        named = type(net).__name__
        return f"no network with perceptron_at(t), such as nets.FourierMLP, but {named}"
    if _torch_module._has_any_global_hook():
        return "global hooks of torch modules are set, which would not be called"
    for part in net.modules():
        named = type(part).__name__
        if part is not net and type(part) not in (nn.Linear, nn.ModuleList):
            return f"it has a part of type {named}"
        if any(name in vars(part) for name in (*_METHODS, "perceptron_at")):
            return f"a method of its {named} was replaced"
        if _hooks(part):
            return f"it has hooks on its {named}, which would not be called"
    return ""


def _says_what_it_is(net: Any) -> bool:
    """Whether no class below the one that defines perceptron_at changes the evaluation."""
    if not isinstance(net, nn.Module):
        return False
    for one in type(net).__mro__:
        if "perceptron_at" in vars(one):
            return True
        if any(name in vars(one) for name in _METHODS):
            return False
    return False


def _hooks(part: nn.Module) -> bool:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(part, name) for name in names)


def _tensor_obstacle(
    activation: str, tensors: Sequence[Tensor | None], times: int, x: Tensor
) -> str:
    if activation not in _ACTIVATIONS:
        return f"it has the activation {activation!r}; there are {', '.join(_ACTIVATIONS)}"
    for tensor in tensors:
        plain = type(tensor) in (Tensor, nn.Parameter)
        if not plain or tensor.dtype != torch.float32 or tensor.device != x.device:  # pyright: ignore
            return f"it has parameters that are no plain float32 tensors on {x.device}"
    dim = x.shape[1]
    found = [tuple(tensor.shape) for tensor in tensors if tensor is not None]
    width, depth = found[0][-1], (len(found) - 4) // 2
    if not 1 <= width <= MAX_WIDTH or depth > MAX_DEPTH:
        return f"it is wider than {MAX_WIDTH} or deeper than {MAX_DEPTH}"
    expected = [(times, width), (width, dim), (dim, width), (dim,)]
    expected += [(width, width), (width,)] * depth
    if found != expected:
        return f"it is no perceptron of {dim} components with layers of one width, got {found}"
    return ""


# --- memory --------------------------------------------------------------------------------------

_kept = threading.local()


def scratch_memory(size: int) -> Tensor:
    """Lends memory of this thread: touching fresh pages at every call costs small batches."""
    kept: Tensor | None = getattr(_kept, "scratch", None)
    if kept is None or kept.numel() < size:
        kept = torch.empty(size, dtype=torch.uint8, device="cpu")
        _kept.scratch = kept if size <= KEPT_SCRATCH else None
    return kept


def memory_obstacle(size: int) -> str:
    """Returns why so many bytes of scratch memory are too many, "" where they are not."""
    if size <= MAX_SCRATCH:
        return ""
    most = MAX_SCRATCH // 2**20
    return f"it would work in {size // 2**20} MiB of memory, and takes {most} at most"


def aligned_start(memory: Tensor) -> int:
    """Returns the first address in scratch memory that a vector may lie at."""
    return (memory.data_ptr() + 63) // 64 * 64


def address(tensor: Tensor | None) -> int:
    """Returns where a tensor lies, 0 for an absent one."""
    return 0 if tensor is None else tensor.data_ptr()


def weighted_sum(loss: Tensor, weight: Tensor | float) -> Tensor:
    """Sums over the batch in float64: the value must not depend on its size."""
    return (loss.double() * weight).sum().to(loss.dtype)


def check_engine(op: str, engine: object) -> None:
    """Refuses a name that no engine has."""
    _checks.one_of(op, "engine", engine, Engine)


def refuse(op: str, engine: Engine, reason: str) -> None:
    """Raises a ValueError where the fused engine was asked for by name."""
    if engine == "fused":
        raise ValueError(f"{op}: engine='fused' is not possible here: {reason}; take 'auto'")
