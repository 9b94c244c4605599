"""What is asked of an engine: networks, grid, coefficients, noise and prior, checked once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from diffflow_ext.flows.prior import Prior
from diffflow_ext.functional.checks import (
    check_finite,
    checked_count,
    checked_state,
    checked_steps,
    in_words,
)
from diffflow_ext.functional.noise import Key, NoiseKey, checked_key, checked_sample_offset
from diffflow_ext.functional.residual import check_noise_floor, launch_residual_cost
from diffflow_ext.functional.steps import launch_em_step
from diffflow_ext.processes.diffusion import Diffusion, diffusion_values
from diffflow_ext.processes.grids import TimeGrid

from .network import Autocast, Network, call_network

__all__ = ["ActivationMemory", "PathProblem", "build_problem"]


#: Bytes for kept graphs, "auto" for a share of what is free now, None for none.
ActivationMemory = int | Literal["auto"] | None


@dataclass
class PathProblem:
    """One loss evaluation: networks, grid, coefficients and noise, checked and converted.

    `g` is the coefficient at all times, in torch's graph; `g_values` holds numbers on the CPU and
    one-element views of a device tensor elsewhere, which the kernels read at run time; so does
    `steps` for a grid in a device's memory. `keep` says whether a backward sweep will want the states. Without a `prior` the noise end has N(0, I), whose
    gradient the kernels know.
    """

    drift: Network
    score: Network
    params: tuple[Tensor, ...]
    times: Tensor
    steps: Sequence[float | Tensor]
    g: Tensor
    g_values: Sequence[float | Tensor]
    key: Key
    sample_offset: int = 0
    checkpoint_every: int = 1
    score_memory: int | None = None
    activation_memory: ActivationMemory = None
    learned_g: bool = False
    keep: bool = True
    prior: Prior | None = None
    autocast: Autocast = field(default_factory=lambda: Autocast.current("cpu"))

    @property
    def num_steps(self) -> int:
        """The number of steps N."""
        return len(self.steps)

    @property
    def batches_scores(self) -> bool:
        """Whether scores of several states are evaluated in one call."""
        return self.score_memory is not None and self.checkpoint_every == 1

    def modes(self) -> list[bool]:
        """Returns the training flags of all modules that the networks are or contain."""
        nets = (getattr(net, "__self__", net) for net in (self.drift, self.score, self.prior))
        return [m.training for net in nets if isinstance(net, nn.Module) for m in net.modules()]

    def em_step(self, x: Tensor, f: Tensor, k: int, out: Tensor | None = None) -> Tensor:
        """Steps from x_k to x_{k+1}."""
        dt, g = self.steps[k], self.g_values[k]
        return launch_em_step(x, f, dt, g, self.key, k, self.sample_offset, out)

    def cost(
        self, x_prev: Tensor, x: Tensor, f: Tensor, s: Tensor, k: int, total: Tensor | None
    ) -> Tensor:
        """Adds 1/2 |r_k|^2 to a per-sample total."""
        return launch_residual_cost(x_prev, x, f, s, self.steps[k - 1], self.g_values[k], total)

    def network(self, name: str, k: int | range, x: Tensor) -> Tensor:
        """Evaluates drift or score at state k, or score at several states at once."""
        net = self.drift if name == "drift" else self.score
        t = self._time(k, x)
        with self.autocast.again():
            return call_network("DiffFlowSDE", f"{name}(t, x)", net, t, x)

    def _time(self, k: int | range, x: Tensor) -> Tensor:
        if isinstance(k, int):
            return self.times[k]
        if len(k) == 1:
            return self.times[k[0]]
        return self.times[k.start : k.stop].repeat_interleave(x.shape[0] // len(k))

    def prior_cost(self, x_last: Tensor) -> Tensor:
        """Returns the negative log-density of the prior at x_N per sample, in nats."""
        if self.prior is None:
            return normal_cost(x_last)
        with self.autocast.off():
            log_prob = self.prior.log_prob(x_last)
        if not isinstance(log_prob, Tensor) or log_prob.shape != x_last.shape[:1]:
            got = tuple(log_prob.shape) if isinstance(log_prob, Tensor) else log_prob
            raise ValueError(
                f"DiffFlowSDE: expected prior.log_prob(x) of shape ({x_last.shape[0]},), one "
                f"number for each sample, got {got}"
            )
        return -log_prob.to(x_last.dtype)


def normal_cost(x_last: Tensor) -> Tensor:
    """Returns -log N(x_N; 0, I) per sample, in nats."""
    dimensions = math.prod(x_last.shape[1:])
    square = x_last.reshape(x_last.shape[0], dimensions).square().sum(1)
    return 0.5 * square + 0.5 * dimensions * math.log(2 * math.pi)


def build_problem(
    op: str,
    drift: Network,
    score: Network,
    x0: Tensor,
    grid: TimeGrid,
    *,
    diffusion: Diffusion = 1.0,
    params: Iterable[Tensor] = (),
    prior: Prior | None = None,
    key: Key | None = None,
    sample_offset: int = 0,
    checkpoint_every: int = 1,
    score_memory: int | None = None,
    activation_memory: ActivationMemory = None,
) -> tuple[PathProblem, Tensor, Tensor]:
    """Checks the arguments of a loss; returns the problem, x0 (contiguous) and g at all times."""
    _check_callables(op, drift, score, prior)
    x0 = checked_state(op, "x0", x0).contiguous()
    if x0.is_inference() and not torch.is_inference_mode_enabled():
        x0 = x0.clone()
    check_finite(op, "x0", x0)
    if score_memory is not None:
        score_memory = checked_count(op, "score_memory", score_memory, 0, 2**63)
    if not isinstance(grid, TimeGrid):
        raise TypeError(f"{op}: expected grid to be a TimeGrid, got {type(grid).__name__}")
    g = diffusion_values(diffusion, grid.times_on(x0.device, x0.dtype)).to(x0.device)
    values, lengths = coefficients(g), checked_steps(op, grid.steps(), x0)
    check_noise_floor(op, lengths, values[1:], x0)
    problem = PathProblem(
        drift=drift,
        score=score,
        params=_unique(op, params),
        times=grid.times_on(x0.device, x0.dtype),
        steps=grid.steps_on(x0.device, x0.dtype),
        g=g,
        g_values=values,
        key=_fixed_key(op, key, x0),
        sample_offset=checked_sample_offset(op, sample_offset, x0.shape[0]),
        checkpoint_every=checked_count(op, "checkpoint_every", checkpoint_every, 0, 2**31),
        score_memory=None if torch.is_inference_mode_enabled() else score_memory,
        activation_memory=_activation_memory(op, activation_memory, checkpoint_every),
        learned_g=g.requires_grad and torch.is_grad_enabled(),
        prior=prior,
        autocast=Autocast.current(x0.device.type),
    )
    return problem, x0, g


def _activation_memory(op: str, value: object, checkpoint_every: int) -> ActivationMemory:
    """Returns a budget for kept graphs, None for none."""
    if value is None or (isinstance(value, str) and value == "auto"):
        budget: ActivationMemory = value  # pyright: ignore
    elif isinstance(value, str):
        raise ValueError(
            f"{op}: expected activation_memory in bytes, 'auto' or None, got {in_words(value)}"
        )
    else:
        budget = checked_count(op, "activation_memory", value, 0, 2**63) or None
    if budget is not None and checkpoint_every == 0:
        raise ValueError(
            f"{op}: expected no activation_memory with checkpoint_every=0, which keeps the graph "
            "of every step; leave one of the two out"
        )
    return budget


def _fixed_key(op: str, key: Key | None, x0: Tensor) -> Key:
    """Returns a key that stays as it is until the backward pass, whatever its tensor becomes."""
    if key is None:
        return NoiseKey.from_torch()
    key = checked_key(op, key, x0.device)
    if isinstance(key, NoiseKey):
        return key
    return key.clone() if key.is_cuda else NoiseKey(*key.tolist())


def coefficients(g: Tensor) -> Sequence[float | Tensor]:
    """Returns g as numbers on the CPU, as one-element views on a device: no waiting for values."""
    return g.detach().unbind() if g.is_cuda else g.tolist()


def _check_callables(op: str, drift: object, score: object, prior: object) -> None:
    for name, net in (("drift", drift), ("score", score)):
        if not callable(net):
            raise TypeError(
                f"{op}: expected {name} to be callable as {name}(t, x), got {type(net).__name__}"
            )
    if prior is not None and not callable(getattr(prior, "log_prob", None)):
        raise TypeError(
            f"{op}: expected prior to have log_prob(x), got {type(prior).__name__}; "
            "diffflow_ext.flows.as_prior makes one of a flow"
        )


def listed(op: str, params: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Returns the named tensors of networks as a tuple, checked."""
    if isinstance(params, (str, bytes, Tensor)) or not isinstance(params, Iterable):
        raise TypeError(
            f"{op}: expected params to be a sequence of tensors, got {type(params).__name__}"
        )
    found = tuple(params)
    for i, p in enumerate(found):
        if not isinstance(p, Tensor):
            raise TypeError(f"{op}: expected params[{i}] to be a tensor, got {type(p).__name__}")
    return found


def _unique(op: str, params: Iterable[Tensor]) -> tuple[Tensor, ...]:
    found: dict[int, Tensor] = {}
    for p in listed(op, params):
        if p.requires_grad:
            _refuse_hooks(op, p)
            found[id(p)] = p
    return tuple(found.values())


def _refuse_hooks(op: str, p: Tensor) -> None:
    if p._backward_hooks:
        raise RuntimeError(
            f"{op}: a parameter of shape {tuple(p.shape)} has a gradient hook, which the adjoint "
            "would call at every step; use register_post_accumulate_grad_hook instead, or clip in "
            "the optimiser"
        )
