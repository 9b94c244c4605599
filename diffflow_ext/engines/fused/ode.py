r"""Ordinary differential equations in one call: the fused engine for perceptrons on the CPU.

.. math:: \frac{dx}{dt} = v(t, x) = c_x(t) \, x + c_1(t) \, n_1(t, x) + c_2(t) \, n_2(t, x)

One thread takes a tile of about 40 samples through all steps, as in
:mod:`diffflow_ext.engines.fused.paths`. The divergence of v comes from tangents in forward mode;
:mod:`diffflow_ext.engines.ode.divergence` uses vector-Jacobian products. Both are exact, and with
random probes e both are :math:`e \cdot J e` with the same e.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffflow_ext.functional.core import address, core
from diffflow_ext.functional.noise import PURPOSES, NoiseKey, noise_source

from ..choice import Engine, refuse
from . import perceptrons, workspace
from .workspace import Parts


class Stage(NamedTuple):
    """An evaluation of v in an explicit Runge-Kutta step whose stages use only the one before.

    Arguments:
        time: The time of the evaluation.
        length: Its weight times the length of the step.
        ahead: The time from the start of the step to the next stage; 0 in the last stage.
    """

    time: float
    length: float
    ahead: float


class Probes(NamedTuple):
    """Options of the divergence: exact without a key, else from `number` random probes."""

    key: NoiseKey | Tensor | None
    number: int
    sample_offset: int


@dataclass(frozen=True)
class FusedOde:
    """An equation that the fused engine can solve.

    Arguments:
        nets: The networks at all times.
        time_of: The index of each stage's time, shape (steps, stages), int64.
        lengths: `length` and `ahead` of each stage, shape (steps, stages, 2), float64.
        coefficients: c_x, c_1 and c_2 of each time, shape (times, 3), float64.
        probes: Options of the divergence, None if it is not wanted.
        instructions: A name of `core.instructions()`.
    """

    nets: list[Parts]
    time_of: Tensor
    lengths: Tensor
    coefficients: Tensor
    probes: Probes | None
    instructions: str

    def solve(self, x: Tensor, states: Tensor | None, *, back: bool) -> tuple[Tensor, Tensor]:
        """Returns the state at the other end and the integral of the divergence, float64, (B,).

        All states are written into `states`, if given, in the order of time, shape
        (steps + 1, B, dim). With `back`, x is the last of them.
        """
        x = x.contiguous()
        end, change = torch.empty_like(x), x.new_zeros(len(x), dtype=torch.float64)
        problem = self._core_problem(x)
        _memory = workspace.lend_scratch(problem, self.scratch_bytes(x))
        problem.start, problem.end = address(x), address(end)
        if states is not None:
            problem.states = address(states[-1 if back else 0])
            problem.states_stride = -x.numel() if back else x.numel()
        if self.probes is not None:
            problem.change = address(change)
        core.run_ode(self.instructions, problem)
        return end, change

    def scratch_bytes(self, x: Tensor) -> int:
        """Returns how much memory the engine works in."""
        return core.ode_scratch_bytes(self.instructions, self._core_problem(x))

    def _core_problem(self, x: Tensor) -> Any:
        """Returns the core's form of the equation for states like x."""
        problem = core.OdeProblem()
        problem.samples, problem.dim = x.shape
        problem.num_steps, problem.num_stages = self.time_of.shape
        problem.times = len(self.coefficients)
        problem.work = workspace.work_on(len(x), self.instructions)
        problem.nets = [net.mlp() for net in self.nets]
        problem.time_of, problem.lengths = address(self.time_of), address(self.lengths)
        problem.coefficients = address(self.coefficients)
        key, number, sample_offset = self.probes or (None, 0, 0)
        if key is not None:
            problem.probes = number
            problem.noise = noise_source(key, PURPOSES["hutchinson"], 0, sample_offset)
        return problem


def fused_ode(
    op: str,
    engine: Engine,
    x: Tensor,
    nets: Sequence[Any],
    coefficients: Callable[[float], tuple[float, ...]],
    steps: Sequence[Sequence[Stage]],
    probes: Probes | None,
) -> FusedOde | None:
    """Returns the fused engine for an equation, None if torch computes.

    Raises:
        ValueError: If "fused" is requested and not possible.
    """
    if engine == "autograd":
        return None
    fused = _fused_or_reason(x, nets, coefficients, steps, probes)
    if isinstance(fused, FusedOde):
        return fused
    refuse(op, engine, fused)
    return None


def _fused_or_reason(
    x: Tensor,
    nets: Sequence[Any],
    coefficients: Callable[[float], tuple[float, ...]],
    steps: Sequence[Sequence[Stage]],
    probes: Probes | None,
) -> FusedOde | str:
    if probes is not None and isinstance(probes.key, Tensor):
        return "the key is a tensor"
    reason = workspace.data_obstacle(x)
    if reason:
        return reason
    index: dict[float, int] = {}
    time_of = [[index.setdefault(stage.time, len(index)) for stage in step] for step in steps]
    times, all_parts = torch.tensor(list(index), dtype=x.dtype, device="cpu"), list[Parts]()
    for net in nets:
        parts = perceptrons.parts_or_reason(net, times, x)
        if isinstance(parts, str):
            return f"network {len(all_parts) + 1} of {len(nets)}: {parts}"
        all_parts.append(parts.contiguous())
    instructions = workspace.instructions_name()
    assert instructions is not None
    fused = FusedOde(
        all_parts,
        torch.tensor(time_of, device="cpu"),
        _table([[(stage.length, stage.ahead) for stage in step] for step in steps]),
        _table([(*coefficients(time), 0.0)[:3] for time in index]),
        probes,
        instructions,
    )
    return workspace.memory_obstacle(fused.scratch_bytes(x)) or fused


def _table(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")
