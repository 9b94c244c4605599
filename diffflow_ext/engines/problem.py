"""The input of an engine: networks, grid, coefficients, noise and prior, checked once."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from diffflow_ext.flows.prior import GivenPrior, Prior, prior_given
from diffflow_ext.functional.checks import (
    check_finite,
    checked_count,
    checked_state,
    checked_steps,
    in_words,
)
from diffflow_ext.functional.contexts import Context, checked_context, learned_tensors, leaves_of
from diffflow_ext.functional.noise import Key, NoiseKey, checked_key, checked_sample_offset
from diffflow_ext.functional.residual import check_noise_floor, launch_residual_cost
from diffflow_ext.functional.steps import launch_em_step
from diffflow_ext.functional.tensors import refuse_tracing
from diffflow_ext.processes.diffusion import Diffusion, diffusion_values
from diffflow_ext.processes.grids import TimeGrid, check_grid

from .autocast import Autocast
from .conditions import Conditioned, conditioned
from .network import (
    Network,
    call_network,
    check_trainable,
    speaks_of_shapes,
    training_flags,
)


@dataclass(frozen=True)
class PathModel:
    """The pair of SDEs: drift, score, diffusion coefficient and prior (None: N(0, I)).

    `params` are the tensors that get gradients through the networks and the prior; `context` is
    what these are given besides t and x, one row for each sample.
    """

    drift: Network
    score: Network
    diffusion: Diffusion = 1.0
    params: Iterable[Tensor] = ()
    prior: Prior | None = None
    context: Context | None = None


@dataclass(frozen=True)
class PathProblem:
    """Paths of one batch: networks, grid, coefficients and noise, checked and converted.

    `g` is the coefficient at all times, shape (N+1,), and `learned_g` says whether it may need a
    gradient. `params` are the tensors inside of networks and prior that get gradients. `sources`
    are the same tensors as the caller has them: a context may be computed from parameters, and
    inside it is cut off from their graph. `steps` are numbers, or tensors of one element for a
    grid in device memory. For `checkpoint_every` and `scores_per_call` see
    :func:`diffflow_ext.engines.diffflow_loss`.
    """

    drift: Network
    score: Network
    params: tuple[Tensor, ...]
    sources: tuple[Tensor, ...]
    prior: Prior | None
    times: Tensor
    steps: Sequence[float | Tensor]
    g: Tensor
    key: Key
    sample_offset: int
    checkpoint_every: int
    scores_per_call: int
    autocast: Autocast
    learned_g: bool
    context: Context | None = None

    @property
    def num_steps(self) -> int:
        """The number of steps N."""
        return len(self.steps)

    @cached_property
    def g_values(self) -> Sequence[float | Tensor]:
        """`g` as arguments of kernels: numbers, or on a GPU tensors, to avoid a wait."""
        return self.g.detach().unbind() if self.g.is_cuda else self.g.tolist()

    def for_first(self, count: int) -> PathProblem:
        """Returns the problem of the first samples, for values of its networks and its prior."""
        parts = {name: getattr(self, name) for name in ("drift", "score", "prior")}
        given = {n: p for n, p in parts.items() if isinstance(p, Conditioned | GivenPrior)}
        return replace(self, **{name: part.first(count) for name, part in given.items()})

    def modes(self) -> list[bool]:
        """Returns the training flags of the networks' modules, and which tensors are learned."""
        nets = (self.drift, self.score, self.prior)
        return training_flags(nets) + [p.requires_grad for p in self.params]

    def em_step(self, x: Tensor, f: Tensor, k: int, out: Tensor | None = None) -> Tensor:
        """Steps from x_k to x_{k+1}."""
        dt, g = self.steps[k], self.g_values[k]
        return launch_em_step(x, f, dt, g, self.key, k, self.sample_offset, out)

    def cost(
        self, x_prev: Tensor, x: Tensor, f: Tensor, s: Tensor, k: int, total: Tensor | None
    ) -> Tensor:
        """Adds 1/2 |r_k|^2 to a per-sample total."""
        return launch_residual_cost(x_prev, x, f, s, self.steps[k - 1], self.g_values[k], total)

    def net(self, name: str) -> Network:
        """Returns "drift" or "score"."""
        return self.drift if name == "drift" else self.score

    def network(
        self,
        name: str,
        k: int,
        x: Tensor,
        states: int = 1,
        *,
        call: Network | None = None,
        cached: bool = False,
    ) -> Tensor:
        """Evaluates "drift" or "score" at state k, or at several states from k on in one call.

        x holds the states one after the other, shape (states * B, *event). `call` computes the
        network in another way; for `cached` see :meth:`Autocast.again`.
        """
        t = self.times[k]
        if states > 1:
            t = self.times[k : k + states].repeat_interleave(x.shape[0] // states)
        with self.autocast.again(cached=cached):
            return call_network("DiffFlowSDE", f"{name}(t, x)", self.net(name), t, x, call=call)

    def prior_cost(self, x_last: Tensor) -> Tensor:
        """Returns the negative log-density of the prior at x_N per sample, in nats."""
        if self.prior is None:
            return normal_cost(x_last)
        with self.autocast.off(), _explained_prior(x_last):
            log_prob = self.prior.log_prob(x_last)
        if not isinstance(log_prob, Tensor) or log_prob.shape != x_last.shape[:1]:
            raise ValueError(
                f"DiffFlowSDE: expected prior.log_prob(x) of shape ({x_last.shape[0]},), one "
                f"number for each sample, got {in_words(log_prob)}"
            )
        return -log_prob.to(x_last.dtype)


@contextlib.contextmanager
def _explained_prior(x: Tensor) -> Iterator[None]:
    """Says that an error comes from the prior, which may be of another dimension."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        # Subclasses, such as torch.OutOfMemoryError, have other reasons.
        if type(error) not in (RuntimeError, ValueError) or not speaks_of_shapes(str(error)):
            raise
        raise type(error)(
            f"DiffFlowSDE: expected prior.log_prob(x) to take x of shape {tuple(x.shape)}, it "
            f"raised {type(error).__name__}: {error}; make a prior of the dimension of the data"
        ) from error


def normal_cost(x_last: Tensor) -> Tensor:
    """Returns -log N(x_N; 0, I) per sample, in nats."""
    dimensions = math.prod(x_last.shape[1:])
    square = x_last.reshape(x_last.shape[0], dimensions).square().sum(1)
    return 0.5 * square + 0.5 * dimensions * math.log(2 * math.pi)


def build_problem(
    op: str,
    model: PathModel,
    x0: Tensor,
    grid: TimeGrid,
    *,
    key: Key | None = None,
    sample_offset: int = 0,
    checkpoint_every: int = 1,
    scores_per_call: int = 1,
) -> tuple[PathProblem, Tensor]:
    """Checks the arguments of a loss; returns the problem, and x0 contiguous."""
    _check_model(op, model)
    x0 = checked_state(op, "x0", x0).contiguous()
    x0 = x0.clone() if x0.is_inference() and not torch.is_inference_mode_enabled() else x0
    check_finite(op, "x0", x0)
    check_grid(op, grid)
    every = checked_count(op, "checkpoint_every", checkpoint_every, 0, 2**31)
    context = checked_context(op, model.context, x0)
    # The graph of every step holds that of the context too.
    inner = context if every == 0 else leaves_of(context)
    params = _trainable(op, model.params, may_have_hooks=every == 0)
    g = diffusion_values(model.diffusion, grid.times_on(x0.device, x0.dtype)).to(x0.device)
    problem = PathProblem(
        drift=conditioned(model.drift, inner),
        score=conditioned(model.score, inner),
        params=(*params, *learned_tensors(inner)),
        sources=(*params, *learned_tensors(context)),
        prior=prior_given(model.prior, inner),
        times=grid.times_on(x0.device, x0.dtype),
        steps=grid.steps_on(x0.device, x0.dtype),
        g=g,
        key=_fixed_key(op, key, x0),
        sample_offset=checked_sample_offset(op, sample_offset, x0.shape[0]),
        checkpoint_every=every,
        scores_per_call=checked_count(op, "scores_per_call", scores_per_call, 1, 2**31),
        autocast=Autocast.current(x0.device.type),
        learned_g=g.requires_grad and torch.is_grad_enabled(),
        context=context,
    )
    check_noise_floor(op, checked_steps(op, grid.steps(), x0), problem.g_values[1:], x0)
    return problem, x0


def _fixed_key(op: str, key: Key | None, x0: Tensor) -> Key:
    """Returns a copy of the key: its tensor may be overwritten before the backward pass."""
    if key is None:
        return NoiseKey.from_torch()
    key = checked_key(op, key, x0.device)
    if isinstance(key, NoiseKey):
        return key
    return key.clone() if key.is_cuda else NoiseKey.from_tensor(key)


def check_networks(op: str, drift: object, score: object) -> None:
    """Refuses a drift or a score that cannot be called."""
    for name, net in (("drift", drift), ("score", score)):
        if not callable(net):
            raise TypeError(
                f"{op}: expected {name} to be callable as {name}(t, x), got {in_words(net)}"
            )


def _check_model(op: str, model: PathModel) -> None:
    refuse_tracing(op)
    check_networks(op, model.drift, model.score)
    prior = model.prior
    if prior is not None and not callable(getattr(prior, "log_prob", None)):
        raise TypeError(
            f"{op}: expected prior to have log_prob(x), got {type(prior).__name__}; "
            "diffflow_ext.flows.as_prior makes one of a flow"
        )


def checked_params(op: str, params: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Returns the tensors that networks depend on as a tuple."""
    if isinstance(params, (str, bytes, Tensor)) or not isinstance(params, Iterable):
        raise TypeError(
            f"{op}: expected params to be a sequence of tensors, got {type(params).__name__}"
        )
    tensors = tuple(params)
    for i, p in enumerate(tensors):
        if not isinstance(p, Tensor):
            raise TypeError(f"{op}: expected params[{i}] to be a tensor, got {type(p).__name__}")
    return tensors


def _trainable(op: str, params: Iterable[Tensor], *, may_have_hooks: bool) -> tuple[Tensor, ...]:
    """Returns the tensors that get gradients, without repetitions."""
    trainable = {id(p): p for p in checked_params(op, params) if p.requires_grad}
    for p in trainable.values() if torch.is_grad_enabled() and not may_have_hooks else ():
        _refuse_hooks(op, p)
    params = tuple(trainable.values())
    check_trainable(op, params)
    return params


def _refuse_hooks(op: str, p: Tensor) -> None:
    if p._backward_hooks:
        raise RuntimeError(
            f"{op}: a parameter of shape {tuple(p.shape)} has a gradient hook, which the adjoint "
            "would call at every step; use register_post_accumulate_grad_hook instead, or clip in "
            "the optimiser"
        )
