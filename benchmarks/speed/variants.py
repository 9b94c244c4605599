"""Every way to compute a training step that is compared, by name.

Each variant is one update: noise, loss, gradient, Adam. All of DiffFlow's compute the same loss
on the same grid; only how differs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from diffflow_ext import DDPM, DiffFlowSDE

from .problem import Pair, Problem, Step, update
from .torch_steps import compiled, compiled_loop, graph, release, torchsde


def ours(problem: Problem, scores_per_call: int = 1, **options: Any) -> Step:
    """DiffFlowSDE with an engine."""
    pair, grid = Pair(problem), problem.grid()
    sde = DiffFlowSDE(pair.drift, pair.score, problem.g, scores_per_call=scores_per_call)
    return update(pair.parameters(), lambda: sde.mean_loss(pair.data, grid, **options).backward())


def scores_batched(problem: Problem) -> Step:
    """The adjoint that evaluates half of the scores in one call: 15 of 30."""
    return ours(problem, max(1, problem.num_steps // 2), engine="autograd")


def in_bfloat16(step: Step) -> Step:
    def cast() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return step()

    return cast


def ddpm(problem: Problem, *, fused: bool) -> Step:
    """One time for each sample; fused, each distinct time of the chain is embedded once."""
    net = Pair(problem).score
    # A partial object is not known to be a perceptron, so its loss is torch's.
    model, data = DDPM(net if fused else partial(net)), Pair(problem).data
    return update(list(net.parameters()), lambda: model.mean_loss(data).backward())


def in_jax(problem: Problem, loss: str) -> Step:
    """The step in one jit, by the name of its loss."""
    from . import jax_steps  # Needs jax, which is optional.

    return jax_steps.training_step(problem, getattr(jax_steps, loss))


#: Those that need a `side` of None: their engine or library knows vectors only.
VECTORS_ONLY = (
    *("ddpm_fused", "torchsde", "torchsde_adjoint", "jax", "diffrax"),
    *("fused", "fused_bf16"),
)
#: What a variant needs beside this package.
NEEDS = {
    "torchsde": ("torchsde",),
    "torchsde_adjoint": ("torchsde",),
    "jax": ("diffrax", "optax"),
    "diffrax": ("diffrax", "optax"),
}
#: How to build each variant, and its title.
VARIANTS: dict[str, tuple[Callable[[Problem], Step], str]] = {
    "ddpm": (partial(ddpm, fused=False), "DDPM, PyTorch"),
    "ddpm_fused": (partial(ddpm, fused=True), "DDPM, fused"),
    "release": (release, "the authors' adjoint, PyTorch"),
    "torchsde": (partial(torchsde, adjoint=False), "torchsde, sdeint"),
    "torchsde_adjoint": (partial(torchsde, adjoint=True), "torchsde, sdeint_adjoint"),
    "graph": (graph, "autograd of the loop"),
    "graph_bf16": (lambda p: in_bfloat16(graph(p)), "autograd of the loop, bfloat16 autocast"),
    "compiled": (compiled, "autograd of the loop, each step compiled"),
    "compiled_loop": (compiled_loop, "autograd of the loop, compiled as a whole"),
    "jax": (partial(in_jax, loss="scan_loss"), "jax, the loop by `scan`, in one jit"),
    "diffrax": (partial(in_jax, loss="diffrax_loss"), "diffrax, in one jit"),
    "adjoint": (partial(ours, engine="autograd"), "`engine=\"autograd\"`"),
    "scores_batched": (scores_batched, "`engine=\"autograd\"`, `scores_per_call` N/2"),
    "fused": (partial(ours, engine="fused"), "`engine=\"fused\"`"),
    "fused_bf16": (lambda p: in_bfloat16(ours(p, engine="fused")), "`engine=\"fused\"`, bfloat16"),
}  # fmt: skip
