"""The memory of a device, to refuse what cannot fit before it is allocated."""

from __future__ import annotations

import os

import torch


def memory_of(device: torch.device | str) -> int | None:
    """Returns the bytes of a device's memory, used or not; None where the system doesn't tell."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def require_memory(
    op: str, what: str, needed: int, hint: str, device: torch.device | str = "cpu"
) -> None:
    """Refuses what needs more bytes than a device has; `what` names the argument and value."""
    memory = memory_of(device)
    if memory is not None and needed > memory:
        raise ValueError(
            f"{op}: {what}: expected to need at most the {memory:,} bytes of memory of {device}, "
            f"got {needed:,} bytes; {hint}"
        )
