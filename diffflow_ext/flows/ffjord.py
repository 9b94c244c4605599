r"""FFJORD: a continuous normalizing flow along any network.

.. math:: \frac{dx}{dt} = v(t, x), \qquad
          \log p(x_0) = \log \mathcal N(x_T; 0, I) + \int_0^T \nabla \cdot v(t, x_t) \, dt

from data at time 0 to noise at time T. torchdiffeq solves the equation and computes gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .adapters import library

Divergence = Literal["exact", "hutchinson"]
Solver = Literal["dopri5", "dopri8", "bosh3", "adaptive_heun", "euler", "midpoint", "rk4"]
FIXED: tuple[Solver, ...] = ("euler", "midpoint", "rk4")


class FFJORD(nn.Module):
    r"""A density and samples from a velocity v(t, x), any network that keeps the shape of x.

    Gradients of :meth:`log_prob` come from the continuous adjoint: memory does not grow with the
    steps, and their error is that of the tolerances. With ``adjoint=False`` the solver's steps
    are differentiated instead.

    An adaptive solver chooses its steps by the error of a whole batch, so a sample depends on the
    others within the tolerance; fixed steps ("euler", "midpoint", "rk4") treat samples separately.

    Arguments:
        net: The velocity, called as ``net(t, x)`` with t of shape () and x of shape (B, *event).
            It must act on samples independently (no BatchNorm); only modules are trained.
        t_end: The time T > 0 of the noise.
        solver: A method of torchdiffeq, adaptive or with fixed steps.
        num_steps: Steps of a fixed solver.
        rtol: Relative tolerance of an adaptive solver.
        atol: Absolute tolerance of an adaptive solver.
        divergence: "exact" takes d vector-Jacobian products for each evaluation; "hutchinson"
            estimates with one, :math:`\nabla \cdot v \approx \xi^T \partial_x v \, \xi`, with
            :math:`\xi` of random signs, fixed for a call. Unbiased in log p.
        event_shape: The shape of a sample, for :meth:`sample` by number alone. Default: that of a
            network of :mod:`diffflow_ext.nets`.
        adjoint: Whether gradients come from the continuous adjoint.

    Raises:
        ImportError: If torchdiffeq is not installed.
        TypeError: If `net` is not callable.
        ValueError: If an argument is out of its range.

    References:
        | FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models
        | (Grathwohl et al., 2019)
        | https://arxiv.org/abs/1810.01367

    Example:
        >>> from diffflow_ext.nets import FourierMLP
        >>> flow = FFJORD(FourierMLP(2, width=16, depth=1))
        >>> (-flow.log_prob(torch.randn(8, 2)).mean()).backward()
        >>> flow.sample(5).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        net: Callable[[Tensor, Tensor], Tensor],
        t_end: float = 1.0,
        *,
        solver: Solver = "dopri5",
        num_steps: int = 20,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        divergence: Divergence = "exact",
        event_shape: Sequence[int] | None = None,
        adjoint: bool = True,
    ) -> None:
        super().__init__()
        if not callable(net):
            raise TypeError(f"FFJORD: expected net to be callable as net(t, x), got {net!r}")
        _check_choice("solver", solver, get_args(Solver))
        _check_choice("divergence", divergence, get_args(Divergence))
        for name, value in (("t_end", t_end), ("rtol", rtol), ("atol", atol)):
            if not 0 < value < math.inf:
                raise ValueError(f"FFJORD: expected a positive, finite {name}, got {value}")
        if num_steps < 1:
            raise ValueError(f"FFJORD: expected num_steps >= 1, got {num_steps}")
        library("FFJORD", "torchdiffeq")
        self.net: Any = net
        self.t_end, self.solver, self.num_steps = float(t_end), solver, num_steps
        self.rtol, self.atol, self.divergence, self.adjoint = rtol, atol, divergence, adjoint
        self.event_shape = _event_shape(net) if event_shape is None else tuple(event_shape)

    def log_prob(self, x: Tensor, probe: Tensor | None = None) -> Tensor:
        r"""Returns log-densities.

        Arguments:
            x: Samples, shape (B, *event), float32 or float64.
            probe: The vectors :math:`\xi` of "hutchinson", shape of `x`, of random signs. Default:
                drawn from torch's generator.

        Returns:
            Shape (B,), in nats. Differentiable in `x` and the parameters of the network.

        Raises:
            ValueError: If the network returns another shape, or `probe` has one.
            RuntimeError: If the solver cannot go on.
        """
        if self.divergence == "hutchinson" and probe is None:
            probe = torch.randint(0, 2, x.shape, device=x.device).to(x.dtype) * 2 - 1
        if probe is not None and probe.shape != x.shape:
            raise ValueError(
                f"FFJORD: expected probe of the shape of x {tuple(x.shape)}, "
                f"got {tuple(probe.shape)}"
            )
        states, integrals = self._solve(x, (0.0, self.t_end), probe, density=True)
        rows, integral = states[-1].flatten(1), integrals[-1]
        norm = 0.5 * rows.shape[1] * math.log(2 * math.pi)
        return integral - 0.5 * rows.square().sum(1) - norm

    def sample_from(self, z: Tensor) -> Tensor:
        """Returns samples from standard normals z, shape (B, *event). Differentiable."""
        return self._solve(z, (self.t_end, 0.0), None, density=False)[0][-1]

    @torch.no_grad()
    def sample(self, n: int | Sequence[int]) -> Tensor:
        """Draws samples with torch's generator.

        Arguments:
            n: How many, or a whole shape (B, *event).

        Returns:
            Shape (B, *event), in the dtype and on the device of the parameters.

        Raises:
            ValueError: If the shape of a sample is not known.
        """
        if isinstance(n, int) and self.event_shape is None:
            raise ValueError(
                "FFJORD.sample: expected a shape (B, *event), because the network does not tell "
                f"the event's, got {n}; give it, or event_shape to FFJORD"
            )
        shape = (n, *(self.event_shape or ())) if isinstance(n, int) else tuple(n)
        like = next(self.parameters(), torch.empty(0))
        return self.sample_from(torch.randn(shape, dtype=like.dtype, device=like.device))

    def encode(self, x: Tensor) -> Tensor:
        """Returns the noise that samples come from, the inverse of :meth:`sample_from`."""
        return self._solve(x, (0.0, self.t_end), None, density=False)[0][-1]

    @torch.no_grad()
    def path(self, x: Tensor, times: Sequence[float]) -> Tensor:
        """Returns the states at some times, from x at the first of them, without gradients.

        Arguments:
            x: The state at the first time, shape (B, *event).
            times: Two or more times in [0, T], which all increase (data to noise) or all decrease
                (noise to data). An adaptive solver takes a step to each; states of a fixed one are
                interpolated between its steps.

        Returns:
            Shape (len(times), B, *event), first x itself.

        Raises:
            ValueError: If the times are not such.
            RuntimeError: If the solver cannot go on.
        """
        moves = [later - sooner for sooner, later in pairwise(times)]
        inside = all(0.0 <= time <= self.t_end for time in times)
        one_way = all(move > 0.0 for move in moves) or all(move < 0.0 for move in moves)
        if not (moves and inside and one_way):
            raise ValueError(
                f"FFJORD.path: expected two or more increasing or decreasing times in [0,"
                f" {self.t_end:g}], got {[*times]}"
            )
        return self._solve(x, times, None, density=False)[0]

    # --- the equation ----------------------------------------------------------------------------

    def _solve(
        self, x: Tensor, ends: Sequence[float], probe: Tensor | None, *, density: bool
    ) -> tuple[Tensor, Tensor]:
        """Returns states at times, and the integrals of the divergence, 0 without density."""
        if torch.is_inference_mode_enabled():
            # Inference mode records no graph, not even under enable_grad.
            with torch.inference_mode(False), torch.no_grad():
                probe = None if probe is None else probe.clone()
                return self._solve(x.clone(), ends, probe, density=density)
        integral = x.new_zeros(x.shape[0])
        if not len(x):
            return torch.stack([x] * len(ends)), torch.stack([integral] * len(ends))

        def velocity(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            if not density:
                return self._velocity(t, state[0]), torch.zeros_like(state[1])
            return self._velocity_and_divergence(t, state[0], probe)

        times = torch.tensor([*ends], dtype=x.dtype, device=x.device)
        try:
            return self._odeint(velocity, (x, integral), times)
        except AssertionError as error:  # torchdiffeq's error for a vanishing step
            raise RuntimeError(
                f"FFJORD: expected a solvable equation, got {error} from {self.solver}; the "
                "network's values may not be finite, or grow too steep: loosen rtol and atol, "
                "take fixed steps, or lower the learning rate"
            ) from error

    def _odeint(self, velocity: Any, state: tuple[Tensor, Tensor], times: Tensor) -> Any:
        torchdiffeq = library("FFJORD", "torchdiffeq")
        # Adaptive solvers interpolate between their steps, dopri8 badly: one step must end here.
        options = {"grid_constructor": self._grid} if self.solver in FIXED else {"step_t": times}
        common = {"rtol": self.rtol, "atol": self.atol, "method": self.solver, "options": options}
        if not self.adjoint:
            return torchdiffeq.odeint(velocity, state, times, **common)
        return torchdiffeq.odeint_adjoint(
            velocity, state, times, **common, adjoint_params=tuple(self.parameters())
        )

    def _grid(self, _: Any, __: Any, times: Tensor) -> Tensor:
        """Returns the times of a fixed solver; rounding of a step length could add a step."""
        ends = times.tolist()
        return torch.linspace(ends[0], ends[-1], self.num_steps + 1).to(times)

    def _velocity(self, t: Tensor, x: Tensor) -> Tensor:
        v = self.net(t.to(x.dtype), x)
        if v.shape != x.shape:
            raise ValueError(
                f"FFJORD: expected net(t, x) of the shape of x {tuple(x.shape)}, "
                f"got {tuple(v.shape)}"
            )
        return v.to(x.dtype)

    def _velocity_and_divergence(
        self, t: Tensor, x: Tensor, probe: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Keeps the graph if gradients are on, because the adjoint differentiates the result."""
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            v = self._velocity(t, x)
            div = _hutchinson(v, x, probe, graph) if probe is not None else _exact(v, x, graph)
        return (v, div) if graph else (v.detach(), div.detach())


def _hutchinson(v: Tensor, x: Tensor, probe: Tensor, graph: bool) -> Tensor:
    (product,) = _vjp(v, x, probe, graph, last=True)
    return (product * probe).flatten(1).sum(1)


def _exact(v: Tensor, x: Tensor, graph: bool) -> Tensor:
    """Returns the trace of the Jacobian, one row of it at a time."""
    rows = v.flatten(1)
    size = rows.shape[1]
    total = x.new_zeros(len(x))
    for i in range(size):
        ones = torch.zeros_like(rows)
        ones[:, i] = 1.0
        (row,) = _vjp(v, x, ones.reshape(v.shape), graph, last=i == size - 1)
        total = total + row.flatten(1)[:, i]
    return total


def _vjp(
    v: Tensor, x: Tensor, cotangent: Tensor, graph: bool, *, last: bool
) -> tuple[Tensor, ...]:
    if not v.requires_grad:
        return (torch.zeros_like(x),)
    return torch.autograd.grad(
        v,
        x,
        cotangent,
        create_graph=graph,
        retain_graph=graph or not last,
        allow_unused=True,
        materialize_grads=True,
    )


def _event_shape(net: Any) -> tuple[int, ...] | None:
    """Returns the event's shape of a network of :mod:`diffflow_ext.nets`."""
    if hasattr(net, "channels") and hasattr(net, "size"):
        return (net.channels, net.size, net.size)
    return (net.dim,) if isinstance(getattr(net, "dim", None), int) else None


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"FFJORD: expected {name} to be one of {choices}, got {value!r}")
