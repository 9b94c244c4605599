"""Arguments of compiled code: networks, instructions, tiles, threads, scratch memory."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from diffflow_ext.functional.checks import dtype_name
from diffflow_ext.functional.core import address, core
from diffflow_ext.functional.tensors import in_forward_mode

#: Rounding of the factors of large products on a GPU.
Rounding = Literal["float32", "tf32", "bfloat16"]
#: Members of `core.Activation`.
ACTIVATIONS = ("gelu", "silu", "tanh")
#: Bounds of the engines.
MAX_DEPTH, MAX_WIDTH, MAX_DIM = 16, 1024, 1024
#: Layers are padded to pairs of vectors of at most 16 floats.
PADDING = 32
#: Scratch memory up to the first size is reused by the next call; the second size is the limit.
KEPT_SCRATCH, MAX_SCRATCH = 128 * 2**20, 2 * 2**30
#: The largest tile in samples, and a factor of all sizes: bfloat16 values come in pairs.
_TILE, _ROWS = 40, 2
_MATRIX_TILES = 32


class Parts(NamedTuple):
    """A perceptron at some times as its tensors; csrc/fused/problem.h has their shapes."""

    activation: str
    embedding: Tensor
    input: Tensor
    output: Tensor
    output_bias: Tensor
    hidden: list[Tensor]
    hidden_bias: list[Tensor]
    condition: Tensor | None = None

    @property
    def width(self) -> int:
        """The number of units of a layer."""
        return self.embedding.shape[-1]

    @property
    def depth(self) -> int:
        """The number of hidden layers after the first."""
        return len(self.hidden)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of `with_tensors`."""
        ends = [self.embedding, self.input, self.output, self.output_bias]
        rows = [] if self.condition is None else [self.condition]
        return [*ends, *self.hidden, *self.hidden_bias, *rows]

    def with_tensors(self, tensors: Sequence[Tensor]) -> Parts:
        """Returns the same network with other tensors."""
        embedding, input_, output, output_bias, *layers = tensors
        hidden, hidden_bias = layers[: self.depth], layers[self.depth : 2 * self.depth]
        condition = None if self.condition is None else layers[-1]
        ends = (embedding, input_, output, output_bias)
        return Parts(self.activation, *ends, hidden, hidden_bias, condition)

    def contiguous(self) -> Parts:
        """Returns the same network with contiguous tensors without graphs."""
        return self.with_tensors([t.detach().contiguous() for t in self.tensors])

    def empty_like(self) -> Parts:
        """Returns memory for the gradients of all tensors."""
        return self.with_tensors([t.new_empty(t.shape) for t in self.tensors])

    def mlp(self) -> Any:
        """Returns the core's form; the tensors must be contiguous and stay alive."""
        mlp = core.Mlp()
        mlp.width, mlp.depth = self.width, self.depth
        mlp.activation = getattr(core.Activation, self.activation)
        mlp.weights = self.fill(core.MlpTensors())
        return mlp

    def gradients(self) -> Any:
        """Returns the core's form of memory for gradients."""
        return self.fill(core.MlpGradients())

    def fill(self, struct: Any) -> Any:
        """Writes the addresses of all tensors into a struct of the core."""
        struct.embedding, struct.input = self.embedding.data_ptr(), self.input.data_ptr()
        struct.output, struct.output_bias = self.output.data_ptr(), self.output_bias.data_ptr()
        struct.hidden = [tensor.data_ptr() for tensor in self.hidden]
        struct.hidden_bias = [tensor.data_ptr() for tensor in self.hidden_bias]
        struct.condition = address(self.condition)
        return struct


@functools.cache
def _instructions() -> list[str]:
    return core.instructions()


def instructions_name() -> str | None:
    """Returns the name of the instructions to use, None if autocast's dtype has none.

    "avx512", "avx2" or "portable"; under autocast to bfloat16 "amxbf16" or "avx512bf16", which
    round the factors of the hidden layers and of their gradients to bfloat16 and sum in float32.
    """
    autocast = torch.is_autocast_enabled("cpu")
    if autocast and torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return None
    return next((name for name in _instructions() if ("bf16" in name) == autocast), None)


def rounding_name() -> Rounding | None:
    """Returns the rounding of factors on a GPU, None if autocast's dtype is not supported.

    It is that of torch's own products: bfloat16 under autocast, else TF32 if
    `torch.set_float32_matmul_precision` allows it.
    """
    if torch.is_autocast_enabled("cuda"):
        bf16 = torch.get_autocast_dtype("cuda") == torch.bfloat16
        return "bfloat16" if bf16 else None
    return "float32" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def tile_size(samples: int, instructions: str) -> int:
    """Returns the size of a tile: with matrix tiles always that of two of them.

    Without, it is at most 40, and there is an even number of tiles of about equal size.
    """
    if instructions == "amxbf16":
        return _MATRIX_TILES
    tiles = 2 * math.ceil(samples / (2 * _TILE))
    return min(_TILE, _ROWS * math.ceil(samples / tiles / _ROWS))


def work_on(samples: int, instructions: str) -> Any:
    """Returns how a batch is divided into tiles among threads, in the core's form."""
    work = core.Work()
    work.tile = tile_size(samples, instructions)
    work.threads = min(torch.get_num_threads(), math.ceil(samples / work.tile))
    return work


def data_obstacle(x: Tensor, device: str = "cpu") -> str:
    """Returns why the engine cannot take states like x, "" if it can."""
    if x.device.type != device:
        place = "the CPU" if device == "cpu" else "a GPU"
        return f"it runs on {place}, and the data are on {x.device}"
    traced = torch.compiler.is_compiling() or in_forward_mode()
    if traced or type(x) not in (Tensor, nn.Parameter):
        return "the call is traced or in forward-mode AD, or the data are no plain tensor"
    if (instructions_name() if device == "cpu" else rounding_name()) is None:
        return "autocast is on, and there is no engine for its dtype here"
    if x.dtype != torch.float32 or x.dim() != 2:
        kind = f"{dtype_name(x.dtype)} of shape {tuple(x.shape)}"
        return f"it takes vectors, float32 of shape (B, D), got {kind}"
    if not 1 <= x.shape[1] <= MAX_DIM or not x.shape[0]:
        return f"it takes 1 to {MAX_DIM} components of at least one sample, got {tuple(x.shape)}"
    return ""


_cache = threading.local()


def scratch_memory(size: int) -> Tensor:
    """Returns memory of this thread, reused because page faults are slow for small batches."""
    memory: Tensor | None = getattr(_cache, "scratch", None)
    if memory is None or memory.numel() < size:
        memory = torch.empty(size, dtype=torch.uint8, device="cpu")
        _cache.scratch = memory if size <= KEPT_SCRATCH else None
    return memory


def memory_obstacle(size: int) -> str:
    """Returns the reason if a problem needs too much scratch memory, else ""."""
    if size <= MAX_SCRATCH:
        return ""
    return f"it would need {size // 2**20} MiB of memory, and the limit is {MAX_SCRATCH // 2**20}"


def aligned_start(memory: Tensor) -> int:
    """Returns the first address in scratch memory that is aligned for vectors."""
    return (memory.data_ptr() + 63) // 64 * 64


def lend_scratch(problem: Any, size: int) -> Tensor:
    """Sets the scratch memory of a problem of the core, which must live until it has run."""
    memory = scratch_memory(size)
    problem.work.scratch = aligned_start(memory)
    return memory


def padded(width: int) -> int:
    """Returns the width of a layer with padding, for the widest vectors."""
    return math.ceil(width / PADDING) * PADDING
