"""Which engine computes, and the error where the one asked for cannot."""

from __future__ import annotations

from typing import Literal, NamedTuple

from diffflow_ext.functional.checks import check_choice

#: Who computes a loss: the fused engine, the adjoint for any networks, or the faster that fits.
Engine = Literal["auto", "fused", "autograd"]


class EngineChoice(NamedTuple):
    """Which engine computes, and why not the fused one; "" where it does."""

    name: Literal["fused", "autograd"]
    reason: str


def check_engine(op: str, engine: object) -> None:
    """Refuses a name that no engine has."""
    check_choice(op, "engine", engine, Engine)


def refuse(op: str, engine: Engine, reason: str) -> None:
    """Raises a ValueError where the fused engine was asked for by name."""
    if engine == "fused":
        raise ValueError(f"{op}: engine='fused' is not possible here: {reason}; take 'auto'")
