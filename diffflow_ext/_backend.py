"""Loads the compiled core and translates tensors into what it takes: addresses, sizes, codes.

This is the only module that calls the core. Callers have checked their tensors (`_checks`) and
keep them alive until the call returns; CUDA work is queued in the current stream of the tensor's
device.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

# torch comes first: the core then shares torch's copy of the OpenMP runtime.
import torch
from torch import Tensor

from .noise import NoiseKey

__all__ = ["build_info", "core", "noise_source", "number", "pairs", "partials", "target", "where"]

#: Codes of csrc/bindings/launch.h, by dtype of the state and of network outputs.
_TYPES = {
    (torch.float32, torch.float32): 0,
    (torch.float32, torch.bfloat16): 1,
    (torch.float32, torch.float16): 2,
    (torch.float64, torch.float64): 3,
}

Target = tuple[int, int, int, int, int]
Noise = tuple[int, int, int, int, int]
Number = tuple[float, int]


def _load() -> ModuleType:
    name = f"{__package__}._core"
    if importlib.util.find_spec(name) is not None:
        return importlib.import_module(name)
    folder = Path(__file__).resolve().parent
    hint = "reinstall it with `pip install .`"
    if (folder.parent / "setup.py").exists():
        hint = (
            f"Python found the source folder {folder}, which has no compiled module: install it "
            "with `pip install -e .`, or run from another folder (with `pytest`, not "
            "`python -m pytest`)"
        )
    raise ImportError(f"diffflow_ext: the compiled module _core is missing; {hint}")


core: ModuleType = _load()


@functools.cache
def build_info() -> dict[str, Any]:
    """Returns what this build contains.

    Returns:
        A dictionary: `version`, `compiler`, `openmp` and `cuda` (bool), `cuda_compiler`,
        `cuda_architectures`, and `cuda_note`, which says why there are no CUDA kernels.
    """
    return dict(core.build_info())


def where(x: Tensor) -> tuple[int, int]:
    """Returns the device of a kernel (-1 for the CPU) and the stream it is queued in."""
    if not x.is_cuda:
        return -1, 0
    return x.device.index, torch.cuda.current_stream(x.device).cuda_stream


def target(x: Tensor, network_dtype: torch.dtype | None = None) -> Target:
    """Returns where a kernel runs and on what: device, stream, types, samples, elements."""
    samples = x.shape[0]
    elements = x.numel() // samples if samples else 0
    return *where(x), _TYPES[x.dtype, network_dtype or x.dtype], samples, elements


def pairs(state: torch.dtype, network: torch.dtype) -> bool:
    """Says whether there are kernels for this pair of dtypes."""
    return (state, network) in _TYPES


def noise_source(key: NoiseKey | Tensor, purpose: int, step: int, sample_offset: int) -> Noise:
    """Returns the core's form of a noise source."""
    label = step | purpose << 24
    if isinstance(key, NoiseKey):
        return key.seed & (2**64 - 1), key.stream, label, sample_offset, 0
    return 0, 0, label, sample_offset, key.data_ptr()


def number(value: float | Tensor) -> Number:
    """Returns the core's form of a scalar: a value, or the address of one."""
    if isinstance(value, Tensor):
        return 0.0, value.data_ptr()
    return value, 0


def partials(x: Tensor) -> Tensor | None:
    """Returns scratch space for a per-sample sum over x, or None where a row is one segment."""
    samples = x.shape[0]
    segments = core.num_segments(x.numel() // samples) if samples else 1
    return None if segments == 1 else x.new_empty(samples * segments)
