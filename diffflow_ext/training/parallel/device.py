"""The device of a run."""

from __future__ import annotations

import torch

from diffflow_ext.functional.checks import in_words
from diffflow_ext.functional.core import build_info

from ..config.rules import DEVICE


def pick_device(name: str, index: int = 0) -> torch.device:
    """Returns the device for "auto", "cpu", "cuda" or "cuda:1".

    `index` is the GPU of "auto" and "cuda". Another name, a GPU that does not exist, or one for
    which the build has no kernels, is refused.
    """
    if not isinstance(name, str) or not DEVICE.accepts(name):
        raise ValueError(f"device={in_words(name)}: expected {DEVICE.allowed}")
    usable = torch.cuda.is_available() and bool(build_info()["cuda"])
    if name in ("auto", "cuda") and usable:
        name = f"cuda:{index}" if index else "cuda"
    if name == "auto":
        return torch.device("cpu")
    device = torch.device(name)
    if device.type == "cuda" and not usable:
        missing = "no CUDA kernels in this build" if torch.cuda.is_available() else "no GPU here"
        raise ValueError(f"device={name!r}: {missing} (see diffflow doctor); use auto or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={name!r}: there are {torch.cuda.device_count()} GPUs")
    return device


def slow_in_bfloat16(device: torch.device) -> bool:
    """Returns whether a device multiplies bfloat16 numbers far more slowly than float32.

    oneDNN has such products for processors with AVX-512; without it torch takes loops.
    """
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
