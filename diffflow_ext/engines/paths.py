"""Choice of the engine for a problem, and DiffFlow's losses as functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from diffflow_ext.flows.prior import Prior, StandardNormal
from diffflow_ext.functional.checks import checked_weights
from diffflow_ext.functional.contexts import Context
from diffflow_ext.functional.core import device_and_stream
from diffflow_ext.functional.noise import Key, NoiseKey
from diffflow_ext.functional.steps import em_step
from diffflow_ext.processes.diffusion import Diffusion
from diffflow_ext.processes.grids import TimeGrid

from .adjoint.paths import AdjointPaths
from .autocast import Autocast
from .chain import ChainPath, differentiable_path, wants_gradients
from .choice import Engine, EngineChoice, check_engine, refuse
from .conditions import conditioned, network_of
from .fused import paths_cuda, perceptrons, workspace
from .fused.paths import FusedPaths
from .fused.workspace import Parts
from .network import Network
from .problem import PathModel, PathProblem, build_problem


class PathEngine(Protocol):
    """Computes losses and paths of one problem. All engines draw the same noise."""

    @property
    def problem(self) -> PathProblem:
        """The problem."""
        ...

    def losses(self, x0: Tensor) -> Tensor:
        """Returns the loss of each sample, shape (B,), differentiable."""
        ...

    def mean_loss(self, x0: Tensor, weight: Tensor | None) -> Tensor:
        """Returns the sum of losses times weights, without weights the mean, differentiable."""
        ...

    def forward(self, x0: Tensor, states: Tensor | None = None) -> Tensor:
        """Returns x_N from x_0; writes x_0 ... x_N into `states`, shape (N+1, B, *event).

        Without gradients; :func:`forward_path` has them.
        """
        ...

    def reverse(
        self, x_last: Tensor, stochasticity: float, last_step: str, states: Tensor | None = None
    ) -> Tensor:
        """Returns x_0 from x_N by Euler steps; writes x_0 ... x_{N-1} into `states`."""
        ...


def diffflow_loss(
    drift: Network,
    score: Network,
    x0: Tensor,
    grid: TimeGrid,
    *,
    diffusion: Diffusion = 1.0,
    params: Iterable[Tensor] = (),
    prior: Prior | None = None,
    context: Context | None = None,
    key: Key | None = None,
    sample_offset: int = 0,
    checkpoint_every: int = 1,
    scores_per_call: int = 1,
) -> Tensor:
    r"""Returns DiffFlow's loss for each sample, with the exact gradient of the discrete sum.

    .. math:: L = -\log \mathcal N(x_N; 0, I) + \sum_{i=0}^{N-1} \tfrac12 \| \delta^B_i \|^2

    along one path of the forward SDE from each `x0`. The forward pass costs 2N+1 network
    evaluations, the backward pass as many again with their vector-Jacobian products.

    The last two arguments trade memory for time and do not change values or gradients.

    Unless `checkpoint_every` is 0, drift, score and prior are evaluated again for the gradient,
    and must give the same values. They may draw from torch's global generator (dropout), whose
    state is restored. Buffers that a network updates in each call, such as BatchNorm's running
    statistics, are updated by each evaluation; the gradient is right if the value does not depend
    on them.

    Arguments:
        drift: The drift f(t, x), any callable.
        score: The score s(t, x), any callable.
        x0: The data, shape (B, *event), float32 or float64.
        grid: The times, from data to noise.
        diffusion: The coefficient g(t) > 0: a number, a function of t, or a module.
        params: All tensors that drift, score and prior depend on and that should get gradients.
        prior: The density of x_N instead of N(0, I), see :mod:`diffflow_ext.flows.prior`.
        context: What networks are given besides t and x, as ``drift(t, x, context)``, and a
            conditional prior besides x: a tensor of shape (B, ...) or a mapping of names to such
            tensors. Not among `params`.
        key: Seed and stream of the noise. Default: drawn from torch's generator.
        sample_offset: The global index of the first sample.
        checkpoint_every: Store every k-th state and simulate the others again; 0 stores the graph
            of every step (fastest, most memory).
        scores_per_call: The number of states at which one call evaluates the score, with t of
            shape (n B,): fewer and larger calls, which need the memory of that many states, and
            a score whose samples do not depend on each other (no BatchNorm in train mode).
            No effect if `checkpoint_every` is 0.

    Returns:
        The losses, shape (B,), in nats. Differentiable in `x0`, `params`, `context` and what
        `diffusion` depends on.

    Raises:
        ValueError: If an argument is out of its range, or data are not finite.
        TypeError: If an argument has the wrong type.
        RuntimeError: If a network depends on a tensor that requires a gradient and is not among
            `params`, if one of `params` has a gradient hook, or a network changes its arguments.
            If drift, score or prior does not give the same values again, beyond rounding: other
            random numbers, spectral norm in train mode, weights that changed before the backward
            pass. While a CUDA graph is captured, this is not checked.

    References:
        | Diffusion Normalizing Flow (Zhang & Chen, 2021), equations 15 and 16, section 3.2
        | https://arxiv.org/abs/2110.07579
    """
    p, x0 = build_problem(
        "diffflow_loss", PathModel(drift, score, diffusion, params, prior, context), x0, grid,
        key=key, sample_offset=sample_offset,
        checkpoint_every=checkpoint_every, scores_per_call=scores_per_call,
    )  # fmt: skip
    return AdjointPaths(p).losses(x0)


def diffflow_mean_loss(
    drift: Network,
    score: Network,
    x0: Tensor,
    grid: TimeGrid,
    *,
    weight: Tensor | None = None,
    diffusion: Diffusion = 1.0,
    params: Iterable[Tensor] = (),
    prior: Prior | None = None,
    context: Context | None = None,
    key: Key | None = None,
    sample_offset: int = 0,
    checkpoint_every: int = 1,
    scores_per_call: int = 1,
) -> Tensor:
    r"""Returns the mean of :func:`diffflow_loss`; value and gradient come from one sweep.

    .. math:: \bar L = \sum_b w_b L_b, \qquad w_b = 1/B \text{ by default}

    Because the weights are known, this takes N+1 network evaluations less than the mean of
    :func:`diffflow_loss`; the backward pass only scales stored gradients. Arguments and errors are
    those of :func:`diffflow_loss`. The weights :math:`w_b` have shape (B,) and get no gradient.

    Returns:
        The mean, shape (), in nats; 0 for an empty batch.
    """
    op = "diffflow_mean_loss"
    p, x0 = build_problem(
        op, PathModel(drift, score, diffusion, params, prior, context), x0, grid,
        key=key, sample_offset=sample_offset,
        checkpoint_every=checkpoint_every, scores_per_call=scores_per_call,
    )  # fmt: skip
    return AdjointPaths(p).mean_loss(x0, checked_weights(op, weight, x0))


def path_engine(op: str, name: Engine, problem: PathProblem, x0: Tensor) -> PathEngine:
    """Returns the engine of a name; "auto" is that of :func:`engine_choice`.

    A ValueError, which names `op`, says why "fused" is not possible or that the name is unknown.
    """
    check_engine(op, name)
    if name == "autograd":
        return AdjointPaths(problem)
    fused = fused_or_reason(problem, x0, by_name=name == "fused")
    if isinstance(fused, FusedPaths):
        return fused
    refuse(op, name, fused)
    return AdjointPaths(problem)


def forward_path(op: str, engine: PathEngine, x0: Tensor, *, all_states: bool = False) -> Tensor:
    """Returns x_N of a forward path in one row, or all states, shape (N+1, B, *event).

    They are differentiable in x0, g and the parameters.
    """
    # g is cut off from its graph, which may lead to a parameter.
    g = engine.problem.g
    path = _ForwardPath(op, engine, g.detach().requires_grad_(g.requires_grad))
    if wants_gradients(x0, path.params):
        states, last, _ = differentiable_path(path, x0)
        return states if all_states else last[None]
    return path.path(x0).states if all_states else engine.forward(x0.detach())[None]


@dataclass(frozen=True)
class _ForwardPath:
    """The steps of the forward SDE; see :class:`diffflow_ext.engines.chain.Chain`."""

    op: str
    engine: PathEngine
    g: Tensor

    @property
    def params(self) -> Sequence[Tensor]:
        """g at all times, and the parameters of the networks."""
        p = self.engine.problem
        return (p.g, *p.sources)

    @property
    def inner(self) -> Sequence[Tensor]:
        """The same, with g and a context as the steps use them."""
        return (self.g, *self.engine.problem.params)

    @property
    def autocast(self) -> Autocast:
        """The autocast mode of the networks."""
        return self.engine.problem.autocast

    def modes(self) -> list[bool]:
        """Returns the training flags of all modules, and which tensors are learned."""
        return self.engine.problem.modes()

    def path(self, x: Tensor) -> ChainPath:
        """Returns all states, by the engine."""
        states = x.new_empty((self.engine.problem.num_steps + 1, *x.shape))
        self.engine.forward(x.detach(), states)
        return ChainPath(states, None)

    def step(self, k: int, x: Tensor) -> tuple[Tensor, None]:
        """Returns x_{k+1} from x_k with a graph."""
        p = self.engine.problem
        noise = {"key": p.key, "step": k, "sample_offset": p.sample_offset}
        f = p.network("drift", k, x)
        return em_step(x, f, dt=p.steps[k], g=self.g[k], **noise), None


def engine_choice(problem: PathProblem, x0: Tensor) -> EngineChoice:
    """Returns the engine that "auto" takes, and why the fused one is not possible."""
    fused = fused_or_reason(problem, x0)
    return EngineChoice("autograd", fused) if isinstance(fused, str) else EngineChoice("fused", "")


#: The reason why "auto" does not take the kernels for CUDA.
_UNMEASURED = "the kernel for CUDA is new and has not been measured; engine='fused' takes it"


def fused_or_reason(p: PathProblem, x: Tensor, *, by_name: bool = False) -> FusedPaths | str:
    """Returns the fused engine, or why it is not possible."""
    device = "cuda" if x.is_cuda else "cpu"
    reason = _problem_obstacle(p, device) or (x.is_cuda and not by_name and _UNMEASURED)
    if reason:
        return reason
    # With the context's own graph: there is no second evaluation that it had to be cut off for.
    nets = (conditioned(network_of(net), p.context) for net in (p.drift, p.score))
    drift, score = (perceptrons.parts_or_reason(net, p.times, x, device) for net in nets)
    if isinstance(drift, str):
        return f"drift: {drift}"
    if isinstance(score, str):
        return f"score: {score}"
    if device == "cuda":
        return _fused_on_gpu(p, drift, score, x)
    instructions = workspace.instructions_name()
    assert instructions is not None
    fused = FusedPaths(p, drift, score, instructions)
    return workspace.memory_obstacle(fused.scratch_bytes(x)) or fused


def _fused_on_gpu(p: PathProblem, drift: Parts, score: Parts, x: Tensor) -> FusedPaths | str:
    if drift.condition is not None or score.condition is not None:
        return "its kernels for CUDA take no context"
    rounding = workspace.rounding_name()
    assert rounding is not None
    reason = paths_cuda.obstacle(drift, score, x.shape[1], rounding, device_and_stream(x)[0])
    return reason or FusedPaths(p, drift, score, f"cuda, {rounding}", rounding)


def _problem_obstacle(p: PathProblem, device: str) -> str:
    normal = type(p.prior) is StandardNormal and isinstance(p.prior.scale, float | int)
    if p.prior is not None and not (normal and p.prior.scale == 1):  # pyright: ignore
        return "its prior is N(0, I), and there is another prior"
    if p.checkpoint_every == 0:
        return "checkpoint_every=0 asks for the graph of every step"
    if device == "cpu" and not isinstance(p.key, NoiseKey):
        return "the key is a tensor of another device"
    return ""
