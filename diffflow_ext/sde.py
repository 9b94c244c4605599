r"""DiffFlowSDE: a learned forward SDE and its learned reversal.

.. math::
    \text{forward} \quad & dx = f(t, x) \, dt + g(t) \, dw, \quad x(t_0) \sim \text{data} \\
    \text{reverse} \quad & dx = [f(t, x) - g(t)^2 s(t, x)] \, dt + g(t) \, dw,
                           \quad x(t_N) \sim \mathcal N(0, I)

Drift f and score s are trained together so that both have the same law on paths; the loss bounds
the negative log-likelihood of the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from . import _checks, _kernels, _traced, samplers
from ._sweeps import Network, PathProblem
from .adjoint import Key, build_problem, mean_path_loss, path_loss
from .diffusion import Diffusion
from .grids import TimeGrid

__all__ = ["DiffFlowSDE"]

Engine = Literal["auto", "autograd"]
_Method = TypeVar("_Method", bound=Callable[..., Any])


def _eager(method: _Method) -> _Method:
    """Keeps a method out of graphs that torch.compile records."""
    return torch.compiler.disable(method)  # pyright: ignore


class DiffFlowSDE(nn.Module):
    r"""A pair of neural SDEs, trained by maximum likelihood of paths.

    Networks are called as ``net(t, x)`` with t of shape () or (B,) and x of shape (B, *event), and
    return the shape of x. They may be compiled, run under autocast, use dropout, share parameters.
    The backward pass of :meth:`loss` evaluates them again: train() and eval() must stay as they
    were, and layers that count their calls (BatchNorm's running statistics) count these too.

    Arguments:
        drift: The drift f, an nn.Module or any callable.
        score: The score s, an nn.Module or any callable.
        diffusion: The coefficient g(t) > 0: a number, a function of a tensor of times, or a module
            (:class:`diffflow_ext.diffusion.GeometricDiffusion`, learnable or not).
        params: Tensors that drift and score depend on besides the parameters of nn.Modules. Only
            callables that are not modules need it.
        score_memory: Bytes of activations up to which scores of several states are evaluated in
            one call, see :func:`diffflow_ext.adjoint.diffflow_loss`. Worth it on a GPU with small
            nets.

    Raises:
        TypeError: If drift or score is not callable.

    References:
        | Diffusion Normalizing Flow (Zhang & Chen, 2021)
        | https://arxiv.org/abs/2110.07579

    Example:
        >>> from diffflow_ext.nets import FourierMLP
        >>> sde = DiffFlowSDE(FourierMLP(2), FourierMLP(2), diffusion=0.5)
        >>> grid = TimeGrid.power(30, t_end=1.0)
        >>> loss = sde.mean_loss(torch.randn(64, 2), grid)
        >>> loss.backward()
        >>> sde.sample((10, 2), grid).shape
        torch.Size([10, 2])
    """

    def __init__(
        self,
        drift: Network,
        score: Network,
        diffusion: Diffusion = 1.0,
        *,
        params: Iterable[Tensor] = (),
        score_memory: int | None = None,
    ) -> None:
        super().__init__()
        for name, net in (("drift", drift), ("score", score)):
            if not callable(net):
                raise TypeError(
                    f"DiffFlowSDE: expected {name} to be callable as {name}(t, x), got {net!r}"
                )
        self.drift: Any = drift
        self.score: Any = score
        self.diffusion: Any = diffusion
        self.extra_params = tuple(params)
        self.score_memory = score_memory
        self.number = _traced.register(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A copy or a loaded model is another model: operators must not find the original.
        self.number = _traced.register(self)

    def network_parameters(self) -> list[Tensor]:
        """Returns the tensors that get gradients through drift and score."""
        modules = [net for net in (self.drift, self.score) if isinstance(net, nn.Module)]
        return [p for net in modules for p in net.parameters()] + list(self.extra_params)

    def _problem(
        self, op: str, x0: Tensor, grid: TimeGrid, key: Key | None, **options: Any
    ) -> tuple[PathProblem, Tensor, Tensor]:
        return build_problem(
            f"DiffFlowSDE.{op}",
            self.drift,
            self.score,
            x0,
            grid,
            diffusion=self.diffusion,
            params=self.network_parameters(),
            key=key,
            score_memory=self.score_memory,
            **options,
        )

    # --- training --------------------------------------------------------------------------------

    def forward(
        self, x0: Tensor, grid: TimeGrid, key: Key | None = None, **options: Any
    ) -> Tensor:
        """Returns :meth:`mean_loss`, so that wrappers which call the module train it."""
        return self.mean_loss(x0, grid, key, **options)

    def loss(
        self,
        x0: Tensor,
        grid: TimeGrid,
        key: Key | None = None,
        *,
        checkpoint_every: int = 1,
        sample_offset: int = 0,
        engine: Engine = "auto",
    ) -> Tensor:
        r"""Returns the loss of each sample along one path, with its exact gradient.

        .. math:: L = -\log \mathcal N(x_N; 0, I) + \sum_{i=0}^{N-1} \tfrac12 \| \delta^B_i \|^2

        Arguments:
            x0: The data, shape (B, *event), float32 or float64.
            grid: The times, from data to noise.
            key: Seed and stream of the noise. Default: drawn from torch's generator.
            checkpoint_every: Keep every k-th state and simulate the others again; 0 keeps the
                graph of every step. Neither values nor gradients depend on it.
                A step that torch.compile records always runs the adjoint.
            sample_offset: The global index of the first sample.
            engine: "auto" or "autograd": the adjoint for any networks.

        Returns:
            The losses, shape (B,), in nats.

        Raises:
            ValueError: If an argument is out of its range, or data are not finite.
            TypeError: If an argument has the wrong type.
            RuntimeError: If a network depends on a trainable tensor that is not a parameter.
        """
        _check_engine("DiffFlowSDE.loss", engine)
        if torch.compiler.is_compiling():
            return _traced.path_loss(self, x0, grid, key, sample_offset, checkpoint_every)
        p, x0, g = self._problem(
            "loss", x0, grid, key, checkpoint_every=checkpoint_every, sample_offset=sample_offset
        )
        return path_loss(p, x0, g)

    def mean_loss(
        self,
        x0: Tensor,
        grid: TimeGrid,
        key: Key | None = None,
        *,
        weight: Tensor | None = None,
        checkpoint_every: int = 1,
        sample_offset: int = 0,
        engine: Engine = "auto",
    ) -> Tensor:
        """Returns the mean (or weighted sum) of :meth:`loss` over the batch, for training.

        Value and gradient come from one sweep with N+1 network evaluations fewer. Networks that
        draw random numbers (dropout) draw them in another order than in :meth:`loss`.

        Arguments:
            x0: The data, shape (B, *event).
            grid: The times, from data to noise.
            key: Seed and stream of the noise.
            weight: Weights of the samples, shape (B,); default 1/B. No gradient flows into them.
            checkpoint_every: As in :meth:`loss`.
            sample_offset: The global index of the first sample.
            engine: As in :meth:`loss`.

        Returns:
            The mean, shape (), in nats.

        Raises:
            ValueError: If an argument is out of its range, or data are not finite.
            TypeError: If an argument has the wrong type.
            RuntimeError: If a network depends on a trainable tensor that is not a parameter.
        """
        op = "DiffFlowSDE.mean_loss"
        _check_engine(op, engine)
        if torch.compiler.is_compiling():
            at = (x0, grid, key, sample_offset, checkpoint_every)
            return _traced.mean_loss(self, *at, weight=_checks.weights(op, weight, x0))
        p, x0, g = self._problem(
            "mean_loss", x0, grid, key,
            checkpoint_every=checkpoint_every, sample_offset=sample_offset,
        )  # fmt: skip
        return mean_path_loss(p, x0, g, _checks.weights(op, weight, x0))

    # --- likelihood ------------------------------------------------------------------------------

    @_eager
    def elbo(
        self,
        x0: Tensor,
        grid: TimeGrid,
        key: Key | None = None,
        *,
        checkpoint_every: int = 1,
        sample_offset: int = 0,
    ) -> Tensor:
        r"""Returns a lower bound of log p(x0), one path per sample.

        .. math:: \log p(x_0) \ge \mathbb E \Big[ \sum_i \tfrac12 \| \delta^F_i \|^2 - L \Big]
                  - d \log \frac{g_N}{g_0}

        The last term comes from the normalisers of the Gaussian steps; without it the bound is
        wrong as soon as g varies.

        Arguments:
            x0: The data, shape (B, *event).
            grid: The times, from data to noise.
            key: Seed and stream of the noise.
            checkpoint_every: As in :meth:`loss`.
            sample_offset: The global index of the first sample.

        Returns:
            Unbiased estimates of the bound, shape (B,), in nats. Differentiable.

        Raises:
            ValueError: If an argument is out of its range, or data are not finite.
            TypeError: If an argument has the wrong type.
        """
        p, x0, g = self._problem(
            "elbo", x0, grid, key, checkpoint_every=checkpoint_every, sample_offset=sample_offset
        )
        energy = x0.new_zeros(x0.shape[0])
        for i in range(p.num_steps):
            energy = _kernels.noise_energy(x0, p.key, i, p.sample_offset, energy)
        dimensions = math.prod(x0.shape[1:])
        return energy - path_loss(p, x0, g) - dimensions * torch.log(g[-1] / g[0])

    # --- paths and samples -----------------------------------------------------------------------

    @_eager
    @torch.no_grad()
    def encode(
        self, x0: Tensor, grid: TimeGrid, key: Key | None = None, *, sample_offset: int = 0
    ) -> Tensor:
        """Returns the end x_N of a forward path from each sample, shape (B, *event)."""
        p, x0, _ = self._problem("encode", x0, grid, key, sample_offset=sample_offset)
        return samplers.forward_path(p, x0, None)

    @_eager
    @torch.no_grad()
    def path(
        self, x0: Tensor, grid: TimeGrid, key: Key | None = None, *, sample_offset: int = 0
    ) -> Tensor:
        """Returns a forward path from each sample, shape (N+1, B, *event), index i at time t_i."""
        p, x0, _ = self._problem("path", x0, grid, key, sample_offset=sample_offset)
        states = x0.new_empty((p.num_steps + 1, *x0.shape))
        states[0] = x0
        samplers.forward_path(p, x0, states)
        return states

    def sample(
        self,
        shape: tuple[int, ...],
        grid: TimeGrid,
        key: Key | None = None,
        stochasticity: float = 1.0,
        last_step: samplers.LastStep = "noisy",
        *,
        sample_offset: int = 0,
    ) -> Tensor:
        r"""Returns samples of the model: the reverse family from noise to data.

        .. math:: x_i = x_{i+1} - \left[ f - \tfrac{1 + \lambda^2}{2} g^2 s \right]
                        (t_{i+1}, x_{i+1}) \, \Delta t_i
                        + \lambda g_{i+1} \sqrt{\Delta t_i} \, \varepsilon

        Arguments:
            shape: The shape (B, *event).
            grid: The times; any grid, not only one that was trained on.
            key: Seed and stream of the noise.
            stochasticity: The factor :math:`\lambda \ge 0`. 1 is the trained process, 0 the
                probability-flow ODE (Euler).
            last_step: "noisy" takes the step into the data like all others; "mean" leaves its
                noise out; "tweedie" takes it and then denoises, :math:`x + \sigma^2 s(t_1, x)`
                with
                :math:`\sigma = \lambda g_1 \sqrt{\Delta t_0}`, for one more evaluation.
            sample_offset: The global index of the first sample: samples n ... n+B-1 of one big
                call equal those of a call with this offset.

        Returns:
            The samples, shape (B, *event), dtype and device of the networks' parameters.

        Raises:
            ValueError: If an argument is out of its range.
            TypeError: If an argument has the wrong type.

        References:
            | Diffusion Normalizing Flow (Zhang & Chen, 2021), equations 12 and 17, section 4.3
            | https://arxiv.org/abs/2110.07579
        """
        return self._sample(shape, grid, key, stochasticity, last_step, sample_offset, False)

    def sample_path(
        self,
        shape: tuple[int, ...],
        grid: TimeGrid,
        key: Key | None = None,
        stochasticity: float = 1.0,
        last_step: samplers.LastStep = "noisy",
        *,
        sample_offset: int = 0,
    ) -> Tensor:
        """Returns all states of :meth:`sample`, shape (N+1, B, *event), index i at time t_i."""
        return self._sample(shape, grid, key, stochasticity, last_step, sample_offset, True)

    @_eager
    @torch.no_grad()
    def _sample(
        self,
        shape: tuple[int, ...],
        grid: TimeGrid,
        key: Key | None,
        stochasticity: float,
        last_step: str,
        sample_offset: int,
        keep: bool,
    ) -> Tensor:
        op = "DiffFlowSDE.sample"
        shape = _checks.event_shape(op, "shape", shape)
        strength = _checks.finite(op, "stochasticity", stochasticity)
        if strength < 0:
            raise ValueError(f"{op}: expected stochasticity >= 0, got {strength}")
        kind = samplers.check_last_step(op, last_step)
        p, x, _ = self._problem(
            "sample", self._blank(shape), grid, key, sample_offset=sample_offset
        )
        x = samplers.standard_normal(p, x)
        states = x.new_empty((p.num_steps + 1, *shape)) if keep else None
        if states is not None:
            states[-1] = x
        x0 = samplers.reverse_path(p, x, strength, kind, states)
        return x0 if states is None else states

    def _blank(self, shape: tuple[int, ...]) -> Tensor:
        """Returns zeros where the parameters are; float64 parameters make a float64 state."""
        like = next(iter(self.network_parameters()), torch.empty(0))
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        return torch.zeros(shape, dtype=dtype, device=like.device)


def _check_engine(op: str, engine: str) -> None:
    if engine not in ("auto", "autograd"):
        raise ValueError(f"{op}: expected engine to be 'auto' or 'autograd', got {engine!r}")
