r"""Ordinary equations in one call: the fused engine for perceptrons on the CPU.

.. math:: \frac{dx}{dt} = v(t, x) = c_x(t) \, x + c_1(t) \, n_1(t, x) + c_2(t) \, n_2(t, x)

A tile of some forty samples goes through all steps in one thread, as in
:mod:`diffflow_ext.engines.fused.paths`. The divergence of v comes from tangents that are carried through
the layers beside the values, where :mod:`diffflow_ext.engines.ode.solver` takes vector-Jacobian
products: both are exact, and with random probes e both are :math:`e \cdot J e`, of the same e to
the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffflow_ext.functional.core import core
from diffflow_ext.functional.noise import PURPOSES, NoiseKey

from ..choice import Engine, refuse
from . import perceptrons, workspace
from .workspace import Parts, address

__all__ = ["FlowCall", "Probes", "Stage", "prepare", "run"]


class Stage(NamedTuple):
    """An evaluation of v in an explicit Runge-Kutta step whose stages use only the one before.

    Arguments:
        time: When.
        length: The stage's part of the step.
        ahead: From the step's start to the next stage; 0 in the last one.
    """

    time: float
    length: float
    ahead: float


class Probes(NamedTuple):
    """How the divergence is found: exactly without a key, from `number` random probes with one."""

    key: NoiseKey | Tensor | None
    number: int
    sample_offset: int


@dataclass(frozen=True)
class FlowCall:
    """An equation that the fused engine can take.

    Arguments:
        nets: The networks at all times.
        time_of: The index of each stage's time, shape (steps, stages), int64.
        lengths: `length` and `ahead` of each stage, shape (steps, stages, 2), float64.
        coefficients: c_x, c_1 and c_2 of each time, shape (times, 3), float64.
        probes: Of the divergence, None where none is wanted.
        instructions: The engine's name.
    """

    nets: list[Parts]
    time_of: Tensor
    lengths: Tensor
    coefficients: Tensor
    probes: Probes | None
    instructions: str

    def head(self, x: Tensor) -> tuple[Any, ...]:
        """Returns what the core is told of sizes and networks."""
        samples, dim = x.shape
        probes = 0 if self.probes is None else self.probes.number
        tile, threads = workspace.tile_size(samples), workspace.num_threads(samples)
        times = len(self.coefficients)
        sizes = (samples, dim, *self.time_of.shape, times, probes, tile, threads)
        return self.instructions, sizes, [net.described() for net in self.nets]


def prepare(
    op: str,
    engine: Engine,
    x: Tensor,
    nets: Sequence[Any],
    coefficients: Callable[[float], tuple[float, ...]],
    steps: Sequence[Sequence[Stage]],
    probes: Probes | None,
) -> FlowCall | None:
    """Returns a call of the fused engine, None where torch computes.

    Raises:
        ValueError: If "fused" is asked for and cannot be had.
    """
    if engine == "autograd":
        return None
    found = _call_or_reason(x, nets, coefficients, steps, probes)
    if isinstance(found, FlowCall):
        return found
    refuse(op, engine, found)
    return None


def _call_or_reason(
    x: Tensor,
    nets: Sequence[Any],
    coefficients: Callable[[float], tuple[float, ...]],
    steps: Sequence[Sequence[Stage]],
    probes: Probes | None,
) -> FlowCall | str:
    if probes is not None and isinstance(probes.key, Tensor):
        return "the key is a tensor"
    reason = workspace.data_obstacle(x)
    if reason:
        return reason
    index: dict[float, int] = {}
    time_of = [[index.setdefault(stage.time, len(index)) for stage in step] for step in steps]
    times, parts = torch.tensor(list(index), dtype=x.dtype, device="cpu"), list[Parts]()
    for net in nets:
        found = perceptrons.parts_or_reason(net, times, x)
        if isinstance(found, str):
            return f"network {len(parts) + 1} of {len(nets)}: {found}"
        parts.append(found.contiguous())
    instructions = workspace.engine_name()
    assert instructions is not None
    lengths = [[(stage.length, stage.ahead) for stage in step] for step in steps]
    call = FlowCall(
        parts,
        torch.tensor(time_of, device="cpu"),
        _table(lengths),
        _table([(*coefficients(time), 0.0)[:3] for time in index]),
        probes,
        instructions,
    )
    return workspace.memory_obstacle(core.flow_scratch(*call.head(x))) or call


def _table(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def run(call: FlowCall, x: Tensor, states: Tensor | None, *, back: bool) -> tuple[Tensor, Tensor]:
    """Returns the state at the other end and the integral of the divergence, float64, (B,).

    Arguments:
        call: The equation.
        x: The state at the start.
        states: Where all states go, in the order of time, shape (steps + 1, B, dim), or None.
        back: Whether the equation is solved back in time, so that x is the last state.
    """
    x, head = x.contiguous(), call.head(x)
    end, change = torch.empty_like(x), x.new_zeros(len(x), dtype=torch.float64)
    memory = workspace.scratch_memory(core.flow_scratch(*head))
    addresses = [
        workspace.aligned_start(memory),
        *(table.data_ptr() for table in (call.time_of, call.lengths, call.coefficients)),
        x.data_ptr(),
        end.data_ptr(),
        0 if states is None else states[-1 if back else 0].data_ptr(),
        address(None if call.probes is None else change),
    ]
    row = -x.numel() if back else x.numel()
    core.flow(*head, _noise(call.probes), addresses, row)
    return end, change


def _noise(probes: Probes | None) -> tuple[int, int, int, int]:
    key = None if probes is None else probes.key
    if probes is None or not isinstance(key, NoiseKey):
        return 0, 0, 0, 0
    return key.seed & (2**64 - 1), key.stream, PURPOSES["hutchinson"], probes.sample_offset
