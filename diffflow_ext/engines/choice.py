"""The choice of an engine, and the error if the requested one is not possible."""

from __future__ import annotations

from typing import Literal, NamedTuple

from diffflow_ext.functional.checks import check_choice

#: "fused" for perceptrons, "autograd" (the adjoint) for any networks, "auto" the faster possible.
Engine = Literal["auto", "fused", "autograd"]


class EngineChoice(NamedTuple):
    """The engine's name, and why the fused engine is not possible ("" if it is)."""

    name: Literal["fused", "autograd"]
    reason: str


def check_engine(op: str, engine: object) -> None:
    """Refuses an unknown name."""
    check_choice(op, "engine", engine, Engine)


def refuse(op: str, engine: Engine, reason: str) -> None:
    """Raises a ValueError if the fused engine was requested by name."""
    if engine == "fused":
        raise ValueError(f"{op}: engine='fused' is not possible here: {reason}; take 'auto'")
