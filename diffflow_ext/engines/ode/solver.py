r"""Solvers of probability-flow ODEs, with the change of the density.

Every model of the package has an ODE of this form, with at most two networks,

.. math:: \frac{dx}{dt} = v(t, x) = c_x(t) \, x + c_1(t) \, n_1(t, x) + c_2(t) \, n_2(t, x)

and along it the density changes by the divergence of the velocity,

.. math:: \log p_0(x_0) = \log p_T(x_T) + \int_0^T \nabla \cdot v(t, x_t) \, dt

References:
    | Score-Based Generative Modeling through SDEs (Song et al., 2021), section 4.3, appendix D
    | https://arxiv.org/abs/2011.13456
    | FFJORD (Grathwohl et al., 2019): the estimator of the divergence
    | https://arxiv.org/abs/1810.01367
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from diffflow_ext.functional.affine import affine_step, launch_affine_step
from diffflow_ext.functional.checks import (
    check_choice,
    check_finite,
    checked_count,
    checked_finite,
    checked_state,
)
from diffflow_ext.functional.noise import (
    MAX_STEP,
    PURPOSES,
    Key,
    NoiseKey,
    checked_key,
    checked_sample_offset,
)
from diffflow_ext.functional.tensors import refuse_tracing
from diffflow_ext.processes.grids import TimeGrid, check_grid

from ..autocast import Autocast
from ..chain import ChainPath, differentiable_path, wants_gradients
from ..choice import Engine, check_engine, refuse
from ..fused.ode import Probes, Stage, fused_ode
from ..network import check_trainable, training_flags
from .divergence import Trace
from .velocity import ProbabilityFlow

#: Solvers with fixed steps on the grid, and "dopri5" with adaptive steps between its ends.
Solver = Literal["euler", "heun", "rk4", "dopri5"]
#: The divergence; "auto" is exact up to EXACT_DIMENSIONS.
Divergence = Literal["auto", "exact", "hutchinson"]
#: The exact divergence costs as many vector-Jacobian products as there are dimensions.
EXACT_DIMENSIONS = 64

#: Explicit Runge-Kutta methods whose stages use only the one before: (node c_j, weight b_j).
_STAGES: dict[str, tuple[tuple[float, float], ...]] = {
    "euler": ((0.0, 1.0),),
    "heun": ((0.0, 1 / 2), (1.0, 1 / 2)),
    "rk4": ((0.0, 1 / 6), (0.5, 1 / 3), (0.5, 1 / 3), (1.0, 1 / 6)),
}


def integrate(
    ode: ProbabilityFlow,
    x: Tensor,
    grid: TimeGrid,
    *,
    reverse: bool = False,
    solver: Solver = "heun",
    divergence: Divergence | None = None,
    key: Key | None = None,
    num_probes: int = 1,
    sample_offset: int = 0,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    engine: Engine = "auto",
) -> tuple[Tensor, Tensor | None]:
    r"""Solves dx/dt = v(t, x) from one end of a grid to the other.

    Fixed solvers take the steps of the grid and treat samples independently. "dopri5" (of the
    package torchdiffeq) chooses its steps for the whole batch between the ends of the grid, so
    results depend on the batch within the tolerance.

    With fixed solvers, gradients are those of the discrete solution. They cost the memory of all
    N + 1 states; the backward pass evaluates the networks again, with the graph of one step at a
    time, and also takes second derivatives of the networks if there is a divergence.

    Arguments:
        ode: The velocity.
        x: The state at the start, shape (B, *event), float32 or float64.
        grid: The times.
        reverse: Whether to solve from the grid's last time to its first.
        solver: "euler" (order 1), "heun" (2), "rk4" (4) or "dopri5" (adaptive, 5).
        divergence: None, "exact" (one vector-Jacobian product for each dimension), "hutchinson"
            (one for each probe: unbiased) or "auto" (exact up to 64 dimensions).
        key: Seed and stream of the probes. Default: drawn from torch's generator.
        num_probes: The number of probes of random signs, drawn anew at each step.
        sample_offset: The global index of the first sample.
        rtol: Relative tolerance of "dopri5".
        atol: Absolute tolerance of "dopri5".
        engine: "autograd" for any networks; "fused", one call of compiled code for perceptrons on
            the CPU and fixed solvers; "auto", which is "fused" if possible. Both have the same
            probes, and the same values up to rounding.

    Returns:
        The state at the other end, and the integral of the divergence along the path, shape (B,),
        in nats (None without `divergence`). With fixed solvers both are differentiable in `x` and
        in `ode.parameters()`; with "dopri5" a backward pass raises an error.

    Raises:
        ValueError: If an argument is out of its range, or data are not finite.
        TypeError: If an argument has the wrong type.
        ImportError: If "dopri5" is requested and torchdiffeq is missing.
        RuntimeError: In the backward pass, if the solver is "dopri5", or if networks draw random
            numbers or depend on trainable tensors that are not among `ode.parameters()`.
    """
    op = "integrate"
    refuse_tracing(op)
    x = checked_state(op, "x", x).contiguous()
    check_finite(op, "x", x)
    check_grid(op, grid)
    check_choice(op, "solver", solver, Solver)
    if not (checked_finite(op, "rtol", rtol) > 0 and checked_finite(op, "atol", atol) > 0):
        raise ValueError(f"{op}: expected rtol > 0 and atol > 0, got rtol={rtol}, atol={atol}")
    check_engine(op, engine)
    if solver == "dopri5":
        refuse(op, engine, "it takes fixed steps, and solver='dopri5' chooses its own")
    times = grid.times.tolist()
    times = times[::-1] if reverse else times
    # Inference mode records no graph, not even under enable_grad.
    with torch.inference_mode(False):
        x = x.clone() if x.is_inference() else x
    probes = _probes(op, x, grid, divergence, key, num_probes, sample_offset)
    solution = _Solution(
        op=op, ode=ode, params=ode.parameters(), inner=ode.inner_parameters(), times=times,
        solver=solver, probes=probes, engine=engine, rtol=rtol, atol=atol,
        autocast=Autocast.current(x.device.type),
    )  # fmt: skip
    if wants_gradients(x, solution.params):
        check_trainable(op, [p for p in solution.inner if p.requires_grad])
        return differentiable_path(solution, x)[1:]
    with torch.inference_mode(False), torch.no_grad():
        return solution.solve(x.detach())


@dataclass(frozen=True)
class _Solution:
    """A solution, and its steps with graphs; see :class:`diffflow_ext.engines.chain.Chain`."""

    op: str
    ode: ProbabilityFlow
    params: Sequence[Tensor]
    inner: Sequence[Tensor]
    times: list[float]
    solver: str
    probes: Probes | None
    engine: Engine
    rtol: float
    atol: float
    autocast: Autocast

    def modes(self) -> list[bool]:
        """Returns the training flags of the networks' modules, and which tensors are learned."""
        return training_flags(self.ode.nets) + [p.requires_grad for p in self.params]

    def solve(self, x: Tensor, states: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Returns the last state and the integral of the divergence, without gradients."""
        if self.solver == "dopri5":
            trace = None if self.probes is None else Trace(self.ode, x, self.probes)
            return _adaptive(self.ode, x, self.times, trace, self.rtol, self.atol)
        return fixed_path(
            self.op, self.ode, x, self.times, self.solver,
            probes=self.probes, engine=self.engine, states=states,
        )  # fmt: skip

    def path(self, x: Tensor) -> ChainPath:
        """Returns all states from the first; of "dopri5" only both ends."""
        x = x.detach()
        if self.solver == "dopri5":
            last, total = self.solve(x)
            return ChainPath(torch.stack([x, last]), total)
        states = x.new_empty((len(self.times), *x.shape))
        _, total = self.solve(x, states)
        # They lie in the order of time.
        return ChainPath(states.flip(0) if self.times[-1] < self.times[0] else states, total)

    def step(self, k: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the next state and its part of the integral, with a graph."""
        if self.solver == "dopri5":
            raise RuntimeError(
                f"{self.op}: expected a solver with fixed steps for gradients, got "
                "solver='dopri5'; take solver='heun' or 'rk4' on a grid"
            )
        stages = runge_kutta(self.times[k], self.times[k + 1], self.solver)
        ode = self.ode.with_graph()
        with self.autocast.again():
            if self.probes is None:
                return _step(ode, x, stages, None), None
            trace = Trace(ode, x, self.probes, graph=True)
            trace.at_step(k)
            return _step(ode, x, stages, trace), trace.total


@torch.no_grad()
def fixed_path(
    op: str,
    ode: ProbabilityFlow,
    x: Tensor,
    times: list[float],
    solver: str,
    *,
    probes: Probes | None = None,
    engine: Engine = "auto",
    states: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Returns x at the last time from x at the first, and the integral of the divergence.

    Arguments:
        op: The name of the calling function, for error messages.
        ode: The velocity.
        x: The state at the first time.
        times: Increasing or decreasing times.
        solver: A solver with fixed steps.
        probes: Options of the divergence, None if it is not wanted.
        engine: As in :func:`integrate`.
        states: Memory for all states in the order of time, shape (len(times), B, *event).
    """
    back = times[-1] < times[0]
    steps = [runge_kutta(t, t_next, solver) for t, t_next in pairwise(times)]
    ode = ode.at_times([stage.time for step in steps for stage in step], x)
    fused = fused_ode(op, engine, x, ode.nets, ode.coefficients, steps, probes)
    if fused is not None:
        x, change = fused.solve(x, states, back=back)
        return x, None if probes is None else change
    trace = None if probes is None else Trace(ode, x, probes)
    order = range(len(steps), -1, -1) if back else range(len(steps) + 1)
    for i, step in enumerate(steps):
        if states is not None:
            states[order[i]] = x
        if trace is not None:
            trace.at_step(i)
        x = _step(ode, x, step, trace)
    if states is not None:
        states[order[-1]] = x
    return x, None if trace is None else trace.total


def fixed_step(ode: ProbabilityFlow, x: Tensor, t: float, t_next: float, solver: str) -> Tensor:
    """Returns x(t_next) from x(t) by one step of a fixed solver, in either direction."""
    return _step(ode, x, runge_kutta(t, t_next, solver), None)


def runge_kutta(t: float, t_next: float, solver: str) -> list[Stage]:
    """Returns the stages of one step of a fixed solver, in either direction."""
    stages, h = _STAGES[solver], t_next - t
    # Rounding must not lead to times outside of the grid.
    times = [t_next if node == 1.0 else t + node * h for node, _ in stages]
    ahead = [node * h for node, _ in stages[1:]] + [0.0]
    lengths = [weight * h for _, weight in stages]
    return [Stage(*stage) for stage in zip(times, lengths, ahead, strict=True)]


def _step(ode: ProbabilityFlow, x: Tensor, stages: list[Stage], trace: Trace | None) -> Tensor:
    y = z = x
    for time, length, ahead in stages:
        values = ode.values(time, z) if trace is None else trace.values(time, z, length)
        c, last = ode.coefficients(time), z
        if ahead:
            z = _add(x, last, values, c, ahead)
        y = _add(y, last, values, c, length)
    return y


def _add(y: Tensor, z: Tensor, values: list[Tensor], c: tuple[float, ...], h: float) -> Tensor:
    """Returns y + h (c_x z + c_1 n_1 + c_2 n_2), by one kernel if z is y or c_x is 0."""
    b = values[1] if len(values) > 1 else None
    if c[0] and z is not y:
        y = _affine(y, z, None, 1.0, h * c[0], 0.0)
    c_x = 1.0 + h * c[0] if z is y else 1.0
    return _affine(y, values[0], b, c_x, h * c[1], h * c[2] if b is not None else 0.0)


def _affine(x: Tensor, a: Tensor, b: Tensor | None, c_x: float, c_a: float, c_b: float) -> Tensor:
    if torch.is_grad_enabled():
        return affine_step(x, a, b, c_x=c_x, c_a=c_a, c_b=c_b)
    return launch_affine_step(x, a, b, c_x, c_a, c_b, 0.0, None, PURPOSES["reverse"], 0, 0)


def _adaptive(
    ode: ProbabilityFlow,
    x: Tensor,
    times: list[float],
    trace: Trace | None,
    rtol: float,
    atol: float,
) -> tuple[Tensor, Tensor | None]:
    odeint = _torchdiffeq()

    def derivative(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        time, z = float(t), state[0].contiguous()
        if trace is None:
            return (ode.velocity(time, z),)
        values = trace.values(time, z, 0.0)
        v = z * ode.coefficients(time)[0] + ode.network_part(time, values, z.dtype)
        return v, trace.latest.to(z.dtype)

    start = (x,) if trace is None else (x, x.new_zeros(x.shape[0]))
    ends = torch.tensor([times[0], times[-1]], dtype=torch.float64, device=x.device)
    # Without step_t the solver steps past the end, where no network was trained, and interpolates.
    options = {"step_t": ends}
    try:
        solution = odeint(
            derivative, start, ends, method="dopri5", rtol=rtol, atol=atol, options=options
        )
    except AssertionError as error:  # torchdiffeq's error for a vanishing step
        raise RuntimeError(
            f"integrate: expected a solvable equation, got {error} from 'dopri5'; the networks' "
            "values may not be finite or grow too steep: loosen rtol and atol, or take 'rk4'"
        ) from error
    return solution[0][-1], None if trace is None else solution[1][-1]


def _torchdiffeq() -> Callable[..., Any]:
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise ImportError(
            "integrate: solver='dopri5' needs torchdiffeq: pip install 'diffflow_ext[flows]', or "
            "take solver='rk4' on a fine grid"
        ) from error
    return odeint


def _probes(
    op: str,
    x: Tensor,
    grid: TimeGrid,
    divergence: str | None,
    key: Key | None,
    num_probes: int,
    sample_offset: int,
) -> Probes | None:
    if divergence is None:
        return None
    check_choice(op, "divergence", divergence, Divergence)
    probes = checked_count(op, "num_probes", num_probes, 1, 2**16)
    sample_offset = checked_sample_offset(op, sample_offset, x.shape[0])
    key = None if key is None else checked_key(op, key, x.device)
    dimensions = math.prod(x.shape[1:])
    if divergence == "exact" or (divergence == "auto" and dimensions <= EXACT_DIMENSIONS):
        return Probes(None, 0, sample_offset)
    if grid.num_steps * probes >= MAX_STEP:
        raise ValueError(
            f"{op}: expected fewer than 2^24 probes in all, got {grid.num_steps} steps x {probes}"
        )
    return Probes(NoiseKey.from_torch() if key is None else key, probes, sample_offset)
