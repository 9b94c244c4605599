"""The same training step in jax: networks, loop, gradient and Adam in one jit.

The loop is diffrax's solver, or `jax.lax.scan`, which is what jax does without a solver's checks.
Both start from the weights of the PyTorch networks and draw all normals of a step at once, which
is faster than one after the other.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import lineax
import optax
import torch

from .problem import Pair, Problem, Step, residual

Array = Any
Networks = tuple[dict[str, Array], dict[str, Array]]
Loss = Callable[[Networks, Array, Array], Array]


def use_threads(threads: int) -> None:
    """Makes jax's pool of threads, which takes its size from the processors allowed.

    The threads may then run on all of them, as those of torch.
    """
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(allowed)[:threads]))
    try:
        jax.devices("cpu")
        jax.jit(lambda a: a @ a)(jnp.ones((512, 512))).block_until_ready()
    finally:
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), allowed)


def weights(net: torch.nn.Module) -> dict[str, Array]:
    """What a FourierMLP is made of, by its names."""
    return {name: jnp.asarray(value.detach().numpy()) for name, value in net.state_dict().items()}


def evaluate(w: dict[str, Array], t: Array, x: Array) -> Array:
    """FourierMLP with GELU: the time embedded once, the vectors in one batch."""

    def linear(name: str, h: Array) -> Array:
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def gelu(h: Array) -> Array:
        return jax.nn.gelu(h, approximate=False)

    angle = t * jax.lax.stop_gradient(w["frequencies"]) + w["phase"]
    time = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)])
    h = gelu(linear("input", x) + linear("time_out", gelu(linear("time_in", time))))
    for layer in range(sum(name.startswith("hidden") for name in w) // 2):
        h = gelu(linear(f"hidden.{layer}", h))
    return linear("output", h)


class _Increments(diffrax.AbstractPath):
    """Increments of a Brownian motion from normals that are there."""

    times: Array
    noise: Array
    t0 = -jnp.inf
    t1 = jnp.inf

    def evaluate(self, t0: Array, t1: Array | None = None, left: bool = True) -> Array:
        del left
        assert t1 is not None
        return jnp.sqrt(t1 - t0) * self.noise[jnp.searchsorted(self.times, t0)]


def diffrax_loss(problem: Problem, dtype: Any = jnp.float32) -> Loss:
    """The states from diffrax's Euler, its adjoint with a checkpoint a step; residuals after."""
    times, g = _times(problem, dtype), problem.g

    def loss(networks: Networks, x0: Array, noise: Array) -> Array:
        drift, _ = networks
        terms = diffrax.MultiTerm(
            diffrax.ODETerm(lambda t, x, args: evaluate(args, t, x)),
            diffrax.ControlTerm(
                lambda t, x, args: lineax.DiagonalLinearOperator(jnp.full_like(x, g)),
                _Increments(times, noise),
            ),
        )
        states = diffrax.diffeqsolve(
            terms,
            diffrax.Euler(),
            t0=times[0],
            t1=times[-1],
            dt0=None,
            y0=x0,
            args=drift,
            saveat=diffrax.SaveAt(ts=times),
            stepsize_controller=diffrax.StepTo(ts=times),
            max_steps=problem.num_steps,
            adjoint=diffrax.RecursiveCheckpointAdjoint(checkpoints=problem.num_steps),
        ).ys
        return _cost(networks, problem, times, states)

    return loss


def _cost(networks: Networks, p: Problem, times: Array, states: Array) -> Array:
    def add(total: Array, step: tuple[Array, ...]) -> tuple[Array, None]:
        x, x_next, t, t_next = step
        f, s = (evaluate(net, t_next, x_next) for net in networks)
        here = 0.5 * jnp.sum(residual(x, x_next, f, s, t_next - t, p.g) ** 2)
        return total + here, None

    steps = (states[:-1], states[1:], times[:-1], times[1:])
    total, _ = jax.lax.scan(add, 0.5 * jnp.sum(states[-1] ** 2), steps)
    return total / p.batch


def scan_loss(problem: Problem, dtype: Any = jnp.float32) -> Loss:
    """The loop by `jax.lax.scan`, the drift evaluated once a state."""
    times, p = _times(problem, dtype), problem

    def loss(networks: Networks, x0: Array, noise: Array) -> Array:
        drift, score = networks

        def step(carry: tuple[Array, ...], now: tuple[Array, ...]) -> tuple[Any, None]:
            x, f, total = carry
            t, t_next, normal = now
            dt = t_next - t
            x_next = x + f * dt + p.g * jnp.sqrt(dt) * normal
            f_next, s_next = evaluate(drift, t_next, x_next), evaluate(score, t_next, x_next)
            here = 0.5 * jnp.sum(residual(x, x_next, f_next, s_next, dt, p.g) ** 2)
            return (x_next, f_next, total + here), None

        first = (x0, evaluate(drift, times[0], x0), jnp.zeros((), x0.dtype))
        (x, _, total), _ = jax.lax.scan(step, first, (times[:-1], times[1:], noise))
        return (total + 0.5 * jnp.sum(x**2)) / p.batch

    return loss


def training_step(problem: Problem, make: Callable[[Problem], Loss]) -> Step:
    """Noise, loss, gradient and Adam in one jit, which waits for its result."""
    use_threads(torch.get_num_threads())
    pair, adam, loss = Pair(problem), optax.adam(1e-4), make(problem)
    x0 = jnp.asarray(pair.data.numpy())

    @jax.jit
    def one(networks: Networks, moments: Any, key: Array) -> Any:
        key, draw = jax.random.split(key)
        noise = jax.random.normal(draw, (problem.num_steps, *x0.shape), x0.dtype)
        slopes = jax.grad(loss)(networks, x0, noise)
        changes, moments = adam.update(slopes, moments)
        return optax.apply_updates(networks, changes), moments, key

    networks: Any = (weights(pair.drift), weights(pair.score))
    state = [networks, adam.init(networks), jax.random.key(0)]

    def step() -> None:
        state[:] = jax.block_until_ready(one(*state))

    return step


def _times(problem: Problem, dtype: Any) -> Array:
    return jnp.asarray(problem.grid().times.numpy(), dtype)
