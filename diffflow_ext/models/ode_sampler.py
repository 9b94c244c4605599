"""Sampling by a model's ODE as one module of plain torch, for `torch.export` and ONNX."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from diffflow_ext.engines.conditions import conditioned
from diffflow_ext.engines.network import call_network
from diffflow_ext.engines.ode.solver import runge_kutta
from diffflow_ext.engines.ode.velocity import ProbabilityFlow
from diffflow_ext.flows.prior import StandardNormal
from diffflow_ext.functional.checks import check_choice, checked_state, in_words
from diffflow_ext.functional.contexts import Context, checked_context
from diffflow_ext.processes.grids import TimeGrid, check_grid

from .ddpm import DDPM
from .denoising import time_grid
from .diffflow import DiffFlowSDE
from .dinof import DiNof
from .nfdm import NFDM
from .reverse import ReverseSolver

Model = DiffFlowSDE | DiNof | NFDM | DDPM


class OdeSampler(nn.Module):
    r"""Maps noise to samples by the probability-flow ODE of a model.

    .. math:: \frac{dx}{dt} = c_x(t) \, x + c_1(t) \, n_1(t, x) + c_2(t) \, n_2(t, x),
              \qquad x_{t_N} = s z, \quad x = x_{t_0} / \alpha

    The solver's steps are unrolled into operations of torch alone, none compiled by this package:
    what :func:`torch.export.export` or :func:`torch.onnx.export` makes of it runs where the
    package is not installed. Up to rounding, values are those of
    :func:`diffflow_ext.engines.integrate`. :math:`\alpha` is 1 but for `NFDM`, which scales data
    at t = 0; s is the standard deviation of a Gaussian prior.

    The coefficients are those that the model has now; its networks are shared, not copied.

    Arguments:
        model: A `DiffFlowSDE`, `DiNof`, `NFDM` or `DDPM` with networks that are modules.
        grid: The times, from the model's first to its last; or a number of steps, but for
            `DiffFlowSDE`, which has the times it was trained on.
        solver: "euler" (one evaluation of the networks a step), "heun" (2) or "rk4" (4).

    Raises:
        TypeError: If `model` is none of these, one of its networks is no module, or `grid` is
            neither a grid nor a number of steps.
        ValueError: If the grid is not one of the model, or there is no such solver.

    References:
        | Score-Based Generative Modeling through SDEs (Song et al., 2021), section 4.3
        | https://arxiv.org/abs/2011.13456

    Example:
        >>> from diffflow_ext.models import DDPM
        >>> from diffflow_ext.nets import FourierMLP
        >>> sampler = OdeSampler(DDPM(FourierMLP(2)), 10).eval()
        >>> program = torch.export.export(sampler, (torch.randn(4, 2),))
        >>> program.module()(torch.randn(4, 2)).shape
        torch.Size([4, 2])
    """

    times: Tensor

    def __init__(self, model: Model, grid: TimeGrid | int, solver: ReverseSolver = "heun") -> None:
        super().__init__()
        check_choice("OdeSampler", "solver", solver, ReverseSolver)
        times, self.prior_scale, self.data_scale = _ends(model, grid)
        flow = _flow(model, None)
        for net in flow.nets:
            # The velocity of an NFDM is a method.
            if not isinstance(getattr(net, "__self__", net), nn.Module):
                raise TypeError(
                    f"OdeSampler: expected networks that are modules of torch, got {in_words(net)}"
                    "; write it as a class with forward(self, t, x)"
                )
        self.model = model
        self.steps = [runge_kutta(t, t_next, solver) for t, t_next in pairwise(times)]
        stage_times = [stage.time for step in self.steps for stage in step]
        with torch.no_grad():
            self.rows = [tuple(map(float, flow.coefficients(t))) for t in stage_times]
        times_of_calls = torch.tensor(stage_times, dtype=torch.float64)
        self.register_buffer("times", times_of_calls, persistent=False)

    def forward(self, noise: Tensor, context: Context | None = None) -> Tensor:
        """Returns samples in the units of training, shape and dtype of the noise, with gradients.

        Arguments:
            noise: Standard normal numbers, shape (B, *event); for a model whose prior is a flow,
                draws of it, ``model.prior.sample(shape)``.
            context: What networks of t, x and a context are given, of B rows.

        Raises:
            ValueError: If the noise is no batch of states, or the context has other rows.
            TypeError: If their types are wrong.
        """
        x = checked_state("OdeSampler", "noise", noise) * self.prior_scale
        nets = _flow(self.model, checked_context("OdeSampler", context, x)).nets
        times = self.times.to(x.dtype).unbind()
        k = 0
        for step in self.steps:
            y = z = x
            for stage in step:
                c_x, *weights = self.rows[k]
                v = z * c_x
                for weight, net in zip(weights, nets, strict=True):
                    value = call_network("OdeSampler", "net(t, x)", net, times[k], z)
                    v = v + weight * value.to(x.dtype)
                y, z = y + stage.length * v, x + stage.ahead * v
                k += 1
            x = y
        return x / self.data_scale


def _flow(model: Model, context: Context | None) -> ProbabilityFlow:
    """Returns the velocity of a model, with a context in its networks."""
    if isinstance(model, DDPM):
        flow = ProbabilityFlow((model.eps_net,), model.process.flow_coefficients)
    elif isinstance(model, NFDM):
        return model._given(context).probability_flow()
    elif isinstance(model, DiffFlowSDE):
        # Its coefficients may be learned numbers, which lie beside the networks.
        flow = model.probability_flow(next((p.device for p in model.parameters()), "cpu"))
    else:
        flow = model.probability_flow()
    return replace(flow, nets=tuple(conditioned(net, context) for net in flow.nets))


def _ends(model: Model, grid: TimeGrid | int) -> tuple[list[float], float, float]:
    """Returns the times, decreasing, and the scales of noise at the first and data at the last."""
    op = "OdeSampler"
    prior: object = StandardNormal()
    alpha = 1.0
    if isinstance(model, DiffFlowSDE):
        check_grid(op, grid)
        assert isinstance(grid, TimeGrid)
        times, prior = grid, model.prior or prior
    elif isinstance(model, DiNof):
        times = time_grid(op, grid, model.t_min, model.t_cutoff, model.process.ode_power)
        prior = model.prior
    elif isinstance(model, DDPM):
        first, power = 1 / model.num_timesteps, model.process.ode_power
        times = time_grid(op, grid, first, model.process.t_end, power)
    elif isinstance(model, NFDM):
        times = time_grid(op, grid, 0.0, 1.0, 1.0)
        alpha = model.process.first_alpha
    else:
        raise TypeError(
            f"{op}: expected a DiffFlowSDE, DiNof, NFDM or DDPM, got {in_words(model)}; the model "
            "of a run is load_run(RUN).model"
        )
    scale = prior.scale if isinstance(prior, StandardNormal) else 1.0
    return times.times.tolist()[::-1], scale, alpha
