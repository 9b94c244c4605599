"""What this installation can do, and whether its noise is the promised one."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from diffflow_ext._backend import build_info
from diffflow_ext.functional import philox_words

__all__ = ["examine"]

# Philox4x32-10: (counter, key) and the words, as Random123 (Salmon et al., 2011) publishes them.
KNOWN_ANSWERS = (
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)
PACKAGES = ("torch", "numpy", "safetensors", "tqdm", "matplotlib")


def examine() -> tuple[list[str], bool]:
    """Returns lines for a person, and whether all is well."""
    noise, healthy = _check_noise()
    return [*_versions(), *_build(), *_devices(), noise], healthy


def _versions() -> list[str]:
    lines = [f"python: {platform.python_version()} on {platform.system()} {platform.machine()}"]
    for name in PACKAGES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        lines.append(f"{name}: {version}")
    return lines


def _build() -> list[str]:
    return [f"build {name}: {value}" for name, value in build_info().items()]


def _devices() -> list[str]:
    lines = [f"device cpu: {torch.get_num_threads()} threads"]
    for index in range(torch.cuda.device_count()):
        lines.append(f"device cuda:{index}: {torch.cuda.get_device_name(index)}")
    if torch.cuda.is_available() and not build_info()["cuda"]:
        lines.append(
            f"WARNING: there is a GPU, but this build has no CUDA kernels "
            f"({build_info()['cuda_note']}); reinstall with DIFFFLOW_CUDA=ON"
        )
    return lines


def _check_noise() -> tuple[str, bool]:
    counters, keys, words = (torch.tensor(part) for part in zip(*KNOWN_ANSWERS, strict=True))
    good = int((philox_words(counters, keys) == words).all(dim=1).sum())
    total = len(KNOWN_ANSWERS)
    if good == total:
        return f"noise: {total} of {total} known answers of Philox4x32-10 hold", True
    return f"noise: WRONG, only {good} of {total} known answers of Philox4x32-10 hold", False
