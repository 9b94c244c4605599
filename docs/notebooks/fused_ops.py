# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A variant of your own, on the fused operations
#
# `DiffFlowSDE` has one loss. Below it lie the operations that it is made of: a step with its noise, the residual of the reverse process,
# normals by key, each one pass over memory with its own gradient. This notebook builds a variant that the library doesn't have, checks it
# against plain torch in float64, and measures what the operations save.
#
# The variant: the noise schedule is $g(t) = e^{a + b t}$ with learned a and b, and the loss is read with a control variate.

# %%
import time
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from diffflow_ext import DiffFlowSDE, NoiseKey, TimeGrid
from diffflow_ext.data import sample_toy
from diffflow_ext.functional import em_step, normal, residual_cost
from diffflow_ext.nets import FourierMLP

grid = TimeGrid.power(num_steps=10, t_end=1.0)
times, steps = grid.times.tolist(), grid.steps()


class Parts(nn.Module):
    """The networks and the schedule."""

    def __init__(self) -> None:
        super().__init__()
        self.drift = FourierMLP(2, width=32, depth=1)
        self.score = FourierMLP(2, width=32, depth=1)
        self.exponents = nn.Parameter(torch.tensor([-0.7, 0.2]))

    def g(self, t: float) -> Tensor:
        return (self.exponents[0] + self.exponents[1] * t).exp()


# %% [markdown]
# ## The loss
#
# One path, with the forward step and the cost of a reverse step left open, so that the same loop runs on both kinds of operations. The
# last term is there because g is learned: steps of the two processes have noise of different sizes, and what remains of their normalising constants is
# $d \log (g_N / g_0)$.

# %%
Step = Callable[..., Tensor]


def path_loss(parts: Parts, x: Tensor, key: NoiseKey, step: Step, cost: Step) -> Tensor:
    f, total = parts.drift(torch.tensor(times[0]), x), 0.0
    for i, dt in enumerate(steps):
        t, g, g_next = torch.tensor(times[i + 1]), parts.g(times[i]), parts.g(times[i + 1])
        x_next = step(x, f, dt, g, key, i)
        f = parts.drift(t, x_next)
        total = total + cost(x, x_next, f, parts.score(t, x_next), dt, g_next)
        x = x_next
    dimensions = x.shape[1]
    log_ratio = (parts.g(times[-1]) / parts.g(times[0])).log()
    return total + 0.5 * x.square().sum(1) + dimensions * log_ratio


def fused_step(x: Tensor, f: Tensor, dt: float, g: Tensor, key: NoiseKey, i: int) -> Tensor:
    return em_step(x, f, dt=dt, g=g, key=key, step=i)


def fused_cost(x: Tensor, x_next: Tensor, f: Tensor, s: Tensor, dt: float, g: Tensor) -> Tensor:
    return residual_cost(x, x_next, f, s, dt=dt, g_next=g)


def plain_step(x: Tensor, f: Tensor, dt: float, g: Tensor, key: NoiseKey, i: int) -> Tensor:
    z = normal(tuple(x.shape), key, purpose="forward", step=i, dtype=x.dtype)
    return x + f * dt + g * dt**0.5 * z


def plain_cost(x: Tensor, x_next: Tensor, f: Tensor, s: Tensor, dt: float, g: Tensor) -> Tensor:
    residual = (x - x_next + (f - g**2 * s) * dt) / (g * dt**0.5)
    return 0.5 * residual.square().sum(1)


# %% [markdown]
# The noise of `em_step` is `normal(..., key, purpose="forward", step=i)`: a value with a name, not a draw from a generator. So plain torch can be
# given the very same, and a backward pass computes it again instead of keeping it.
#
# ## Is it right?
#
# In float64, the value and the gradient of each parameter, those of the schedule included.

# %%
torch.manual_seed(0)
exact = Parts().double()
x0 = torch.from_numpy(sample_toy("moons", 64, seed=0)).double()
key = NoiseKey(0)
losses, gradients = [], []
for step, cost in ((fused_step, fused_cost), (plain_step, plain_cost)):
    losses.append(path_loss(exact, x0, key, step, cost))
    gradients.append(torch.autograd.grad(losses[-1].mean(), list(exact.parameters())))
value_error = float(((losses[0] - losses[1]) / losses[1]).detach().abs().max())
gradient_error = max(
    float((a - b).abs().max() / b.abs().max()) for a, b in zip(*gradients, strict=True) if b.any()
)
print(f"values differ by {value_error:.0e}, gradients by {gradient_error:.0e}, relative")
assert max(value_error, gradient_error) < 1e-6

# %% [markdown]
# ## Noise that can be asked for again
#
# A loss scatters with its noise, mostly with $\tfrac12 \sum |z|^2$, which says nothing of the model and whose mean is known. Taking
# that off and putting the mean back is a control variate. It is one line more, because the noise can be asked for again.

# %%
parts = Parts()
optimiser = torch.optim.Adam(parts.parameters(), lr=3e-3)
data = torch.from_numpy(sample_toy("moons", 5000, seed=0))
for step in range(600):
    x = data[torch.randint(len(data), (128,))]
    loss = path_loss(parts, x, NoiseKey(1, step), fused_step, fused_cost).mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
print(
    f"learned schedule: g from {parts.g(0.0):.2f} at the data to {parts.g(1.0):.2f} at the noise"
)


@torch.no_grad()
def estimates(x: Tensor, key: NoiseKey) -> tuple[Tensor, Tensor]:
    loss = path_loss(parts, x, key, fused_step, fused_cost)
    draws = [normal(tuple(x.shape), key, purpose="forward", step=i) for i in range(len(steps))]
    energy = sum(0.5 * (z.square() - 1).sum(1) for z in draws)
    return loss, loss - energy


draws = [estimates(data[:256], NoiseKey(2, i)) for i in range(100)]
both = {
    "plain": torch.stack([loss for loss, _ in draws]),
    "with the control variate": torch.stack([loss for _, loss in draws]),
}
means = [float(losses.mean()) for losses in both.values()]
scatter = [float(losses.std(dim=0).mean()) for losses in both.values()]
figure, axes = plt.subplots(figsize=(6, 2.8))
for (name, losses), mean, deviation in zip(both.items(), means, scatter, strict=True):
    print(f"{name:25} loss {mean:.2f} nats, one sample's scatters by {deviation:.2f}")
    axes.hist(losses.flatten().numpy(), bins=80, range=(-5, 25), histtype="step", label=name)
axes.set(xlabel="loss of one path, nats", ylabel="paths")
axes.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# Two estimates of the same number, and the second needs far fewer paths. Gradients don't change: the noise has none. (For its own loss the library
# has this as `bound_minus_loss`.)
#
# ## What do the operations save?
#
# The processor time of one step with its cost and of their gradients, for states large enough that memory is what takes time: the formula in
# plain torch over the fused operations. Then that of the whole loss, where networks take their share. Last the library's own loss, with a fixed g: for
# these networks all of it is one call of compiled code, and autograd keeps next to nothing.


# %%
class Kept:
    """Counts the bytes that autograd keeps, each storage once."""

    def __enter__(self) -> "Kept":
        self.storages: dict[int, int] = {}
        self.alive: list[Tensor] = []
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.note, lambda x: x)
        self.hooks.__enter__()
        return self

    def note(self, x: Tensor) -> Tensor:
        self.alive.append(x)  # So that no storage is used twice.
        self.storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)

    @property
    def bytes(self) -> int:
        return sum(self.storages.values())


big = [torch.randn(4096, 64, requires_grad=True) for _ in range(3)]
noise = torch.tensor(0.5, requires_grad=True)
sde = DiffFlowSDE(parts.drift, parts.score, diffusion=0.5)


def one_step(step: Step, cost: Step) -> Tensor:
    x_next = step(big[0], big[1], 0.05, noise, key, 0)
    return cost(big[0], x_next, big[1], big[2], 0.05, noise).mean()


def whole(step: Step, cost: Step) -> Tensor:
    return path_loss(parts, data[:512], key, step, cost).mean()


def own(step: Step, cost: Step) -> Tensor:
    return sde.mean_loss(data[:512], grid, key)


def measured(loss: Callable[[Step, Step], Tensor], step: Step, cost: Step) -> tuple[float, int]:
    with Kept() as kept:
        loss(step, cost)
    best = float("inf")
    for _ in range(20):
        start = time.process_time()
        loss(step, cost).backward()
        best = min(best, time.process_time() - start)
    return best, kept.bytes


one = [
    measured(one_step, *kind)[0] for kind in ((plain_step, plain_cost), (fused_step, fused_cost))
]
plain, fused = (
    measured(whole, *kind) for kind in ((plain_step, plain_cost), (fused_step, fused_cost))
)
library = measured(own, fused_step, fused_cost)
print(f"one step: plain takes {one[0] / one[1]:.1f} times as long as fused")
print(f"whole loss: plain takes {plain[0] / fused[0]:.1f} times as long as fused")
print(f"the library's loss: plain takes {plain[0] / library[0]:.1f} times as long", end=", ")
print(f"and keeps {plain[1] / 2**10:,.0f} KiB instead of {library[1] / 2**10:,.0f}")

# %% [markdown]
# The first number is what the operations themselves save: each intermediate result of the formula is a pass over memory. In the whole loss of small vectors the
# networks take nearly all the time, so there it is close to one. So write a variant for what it computes; when it is worth it, make
# `DiffFlowSDE` do the work: drift, score, `diffusion` (any module or function of t, also a learned one), grid and prior are all yours to choose, and its loss
# then keeps one state a step ([benchmarks](../benchmarks.md)).
#
# All operations, with their formulas, are [here](../api/functional.md).
