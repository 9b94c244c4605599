"""Loads the compiled core and translates tensors into what it takes: addresses, sizes, codes.

Callers have checked their tensors (:mod:`diffflow_ext.functional.checks`) and keep them alive
until the call returns; CUDA work is queued in the current stream of the tensor's device.
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

PACKAGE = "diffflow_ext"

#: All that the package uses of the core; `diffflow doctor` lists what an outdated build lacks.
FUNCTIONS = (
    "Activation",
    "AdjointTensors",
    "EmbeddingGradients",
    "EmbeddingProblem",
    "EmbeddingTensors",
    "GpuPathsProblem",
    "GpuTrace",
    "LastStep",
    "Mlp",
    "MlpGradients",
    "MlpTensors",
    "OdeProblem",
    "PathsProblem",
    "Phase",
    "Products",
    "RegressionProblem",
    "Work",
    "adjoint_step",
    "affine_step",
    "backward_residual",
    "backward_residual_vjp",
    "build_info",
    "em_step",
    "embedding_scratch_bytes",
    "gpu_paths_card",
    "gpu_paths_limits",
    "gpu_paths_shared_bytes",
    "gpu_paths_shared_limit",
    "instructions",
    "noise_dot",
    "noise_energy",
    "normal",
    "num_segments",
    "ode_scratch_bytes",
    "paths_scratch_bytes",
    "perturb",
    "philox_words",
    "regression_scratch_bytes",
    "residual_cost",
    "residual_cost_vjp",
    "reverse_step",
    "run_embedding",
    "run_gpu_paths",
    "run_ode",
    "run_paths",
    "run_regression",
    "run_reverse_paths",
)

#: Codes of csrc/bindings/launch.h, by dtype of the state and of network outputs.
_TYPES = {
    (torch.float32, torch.float32): 0,
    (torch.float32, torch.bfloat16): 1,
    (torch.float32, torch.float16): 2,
    (torch.float64, torch.float64): 3,
}

#: A number, or a tensor of one element that the kernel reads when it runs.
Scalar = float | Tensor
#: Three tuples that csrc/bindings/casters.h turns into structs of the same names:
#: device, stream, types, samples, elements;
Target = tuple[int, int, int, int, int]
#: a value, and an address to read it from instead (0: none);
Number = tuple[float, int]
#: seed, stream, purpose, step, sample_offset, and the address of a key (0: the first two).
Noise = tuple[int, int, int, int, int, int]
NO_NOISE: Noise = (0, 0, 0, 0, 0, 0)


def _load() -> ModuleType:
    name = f"{PACKAGE}._core"
    if importlib.util.find_spec(name) is not None:
        return importlib.import_module(name)
    folder = Path(__file__).resolve().parents[1]
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
        A dictionary: `version`, `compiler`, `instructions` (the sets of instructions for
        which there is compiled code), `instructions_left_out` (those on which the compiler
        failed, each with its error), `openmp` and `cuda` (bool), `cuda_compiler`,
        `cuda_architectures`, and `cuda_note`, which says why there are no CUDA kernels.
    """
    return dict(core.build_info())


def device_and_stream(x: Tensor) -> tuple[int, int]:
    """Returns the device of a kernel (-1 for the CPU) and the stream it is queued in."""
    if not x.is_cuda:
        return -1, 0
    return x.device.index, torch.cuda.current_stream(x.device).cuda_stream


def copied_to(x: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor on a device; a copy from the host does not wait for queued work there.

    One from memory that is not pinned would.
    """
    if x.device.type == "cpu" and device.type == "cuda":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def address(x: Tensor | None) -> int:
    """Returns the address of a tensor, 0 for an absent one."""
    return 0 if x is None else x.data_ptr()


def number(value: Scalar) -> Number:
    """Returns the core's form of a scalar: a value, or the address of one."""
    if isinstance(value, Tensor):
        return 0.0, value.data_ptr()
    return value, 0


def target(x: Tensor, network_dtype: torch.dtype | None = None) -> Target:
    """Returns device, stream, types, samples and elements of a kernel's launch."""
    samples, dtype = x.shape[0], x.dtype
    elements = x.numel() // samples if samples else 0
    types = _TYPES[dtype, network_dtype or dtype]
    return *device_and_stream(x), types, samples, elements


def has_kernels(state: torch.dtype, network: torch.dtype) -> bool:
    """Says whether there are kernels for this pair of dtypes."""
    return (state, network) in _TYPES


def partials(x: Tensor) -> Tensor | None:
    """Returns scratch memory for a per-sample sum over x, or None where a row is one segment."""
    samples = x.shape[0]
    segments = core.num_segments(x.numel() // samples) if samples else 1
    return None if segments == 1 else x.new_empty(samples * segments)


def scalar_like(value: Scalar, x: Tensor) -> Scalar:
    """Returns a coefficient detached and in the dtype of x."""
    return value.detach().to(x.dtype) if isinstance(value, Tensor) else value


def network_values(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Returns network outputs contiguous and in one dtype for which there are kernels."""
    dtype = x.dtype
    for value in values:
        if value.dtype is not dtype or not value.is_contiguous():
            break
    else:
        return values
    dtype = values[0].dtype
    if any(value.dtype != dtype for value in values) or not has_kernels(x.dtype, dtype):
        dtype = x.dtype
    return tuple(value.to(dtype).contiguous() for value in values)
