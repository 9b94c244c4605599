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
# # A set in two dimensions, from scratch
#
# DiffFlow learns two processes together: one that turns data into noise, and one that turns noise into data. Here
# both are trained on a checkerboard, in a loop of our own, and then drawn beside DDPM, whose way to the noise is fixed.

# %%
from itertools import pairwise

import matplotlib.pyplot as plt
import torch

from diffflow_ext import DDPM, DiffFlowSDE, NoiseKey, TimeGrid
from diffflow_ext.data import sample_toy, toy_entropy
from diffflow_ext.figures import Paths, loss_curve, samples_beside_data, trajectories
from diffflow_ext.functional import normal
from diffflow_ext.metrics import energy_distance, with_floor
from diffflow_ext.nets import FourierMLP

torch.manual_seed(0)
data = torch.from_numpy(sample_toy("checkerboard", 20_000, seed=0))
held_out = torch.from_numpy(sample_toy("checkerboard", 12_000, seed=1))

figure, axes = plt.subplots(figsize=(3.2, 3.2))
axes.scatter(*data[:4000].T, s=1)
axes.set_aspect("equal")

# %% [markdown]
# ## The model
#
# The forward process is $dx = f(t, x)\,dt + g\,dw$ and the reverse one $dx = [f - g^2 s](t, x)\,dt + g\,dw$ with time running
# backwards. The drift $f$ and the score $s$ are networks, called as `net(t, x)`. Both processes are cut into N steps, and
# the loss compares what the forward one does with what the reverse one would have done.
#
# The scales tell each network how large its values will be: a drift has to move points by about 1 in the time
# T, and the score of the noise $g \sqrt T$ is about its inverse. So the last layers have numbers of order one.

# %%
T, g, N = 0.05, 0.3, 20
drift = FourierMLP(2, width=64, time_scale=0.4, output_scale=0.25 / T)
score = FourierMLP(2, width=64, time_scale=0.4, output_scale=1 / (g * T**0.5))
sde = DiffFlowSDE(drift, score, diffusion=g)
fine = TimeGrid.power(num_steps=N, t_end=T, power=0.9)
print(sde.engine_for(data[:256], fine))

# %% [markdown]
# `engine_for` says who computes the loss: for these perceptrons one call of compiled code. For any other network
# it is the adjoint, which keeps one state a step and computes the noise again. Nothing in the loop changes.
#
# ## Training
#
# Noise is no state of a generator: a `NoiseKey` of a seed and the number of the step names it, so a step can be repeated
# exactly. The first two thirds are on a coarse grid: it is cheaper, and it finds the shape of the paths.

# %%
steps, coarse = 800, TimeGrid.power(num_steps=N // 3, t_end=T, power=0.9)
optimiser = torch.optim.Adam(sde.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=5e-3, total_steps=steps)
bounds = []
for step in range(steps):
    grid = coarse if step < 2 * steps // 3 else fine
    x0 = data[torch.randint(len(data), (256,))]
    key = NoiseKey(seed=0, stream=step)
    loss = sde.mean_loss(x0, grid, key)
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(sde.parameters(), 1.0)
    optimiser.step()
    schedule.step()
    # The loss and this number together are a bound of -log p, which compares between grids.
    bounds.append(float(loss.detach() + sde.bound_minus_loss(x0, grid, key).mean()))

loss_curve(range(steps), bounds, title="Checkerboard: training", label="bound of -log p, nats")

# %% [markdown]
# 2.84 nats, where it begins, is what a standard normal has. The bound falls once more where the fine grid begins: each of
# its steps is shorter, and easier to reverse.
#
# ## What was learned
#
# Two numbers of held-out points, in nats, lower is better: the bound of $-\log p$ of the stochastic process, and the exact
# $-\log p$ of the ordinary equation with the same networks. No model can be better than the entropy of the set, which is known
# here. And the energy distance of samples to the data, beside its *floor*: the same distance of as many real points.

# %%
test = held_out[:2000]
with torch.no_grad():
    samples = sde.sample((2000, 2), fine, NoiseKey(1))
    bound = -sde.elbo(test, fine, NoiseKey(2)).mean()
    exact = -sde.log_prob(test, fine).mean()
distance = with_floor(energy_distance, samples, test, held_out[2000:])
entropy = toy_entropy("checkerboard")
print(f"bound {bound:.2f}, ODE {exact:.2f}, entropy of the set {entropy:.2f}")
print(f"energy distance {distance.value['value']:.4f}, floor {distance.floor['value']:.4f}")
samples_beside_data(test, samples, "Checkerboard: data and samples", columns=["x", "y"])

# %% [markdown]
# After some seconds on one core the squares are there, and their edges are soft: that is what a short training leaves. A longer one
# [sharpens them](../results.md#two-dimensions).
#
# ## DDPM, for comparison
#
# The same network and data, and a fixed way to the noise. A step of DDPM is one evaluation of one network, so it gets
# more of them.

# %%
ddpm = DDPM(FourierMLP(2, width=64), schedule="linear")
optimiser = torch.optim.Adam(ddpm.parameters())
ddpm_steps = 2500
schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=ddpm_steps)
for step in range(ddpm_steps):
    loss = ddpm.mean_loss(data[torch.randint(len(data), (256,))], NoiseKey(0, step))
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    schedule.step()

# %% [markdown]
# `ddpm.sample` returns the end of its paths. The states between are a loop over the times of its chain, forwards by the
# chain's own steps, and back by ancestral sampling: the mean of a step back is known from the noise that the network predicts.

# %%
times = torch.linspace(0, 1, 101)
sigma = ddpm.process.sigma(times)
moves = [ddpm.process.transition(float(s), float(t)) for s, t in pairwise(times)]
key = NoiseKey(3)
forward, reverse = [test[:1000]], [normal((1000, 2), key, purpose="prior")]
for i, (shrink, variance) in enumerate(moves):
    z = normal((1000, 2), key, purpose="forward", step=i)
    forward.append(shrink * forward[-1] + variance**0.5 * z)
for i, (shrink, variance) in reversed([*enumerate(moves)]):
    with torch.no_grad():
        eps = ddpm.eps_net(times[i + 1], reverse[-1])
    z = normal((1000, 2), key, purpose="reverse", step=i)
    mean = (reverse[-1] - variance / sigma[i + 1] * eps) / shrink
    reverse.append(mean + variance**0.5 * sigma[i] / sigma[i + 1] * z)
of_ddpm = Paths(torch.stack(forward), torch.stack(reverse[::-1]), times)

# %% [markdown]
# ## Both processes, side by side
#
# The figure of the DiffFlow paper: for each model a row from the data to the noise, read from left to right, and a row from the noise
# to the data, read from right to left. A point keeps the colour of its place in the data.

# %%
with torch.no_grad():
    there = sde.path(test[:1000], fine, NoiseKey(4))
    back = sde.sample_path((1000, 2), fine, NoiseKey(5))
paths = {"DiffFlow": Paths(there, back, fine.times), "DDPM": of_ddpm}
trajectories(paths, "Checkerboard: both processes of DiffFlow and DDPM")

# %% [markdown]
# Look for four things.
#
# - **Columns agree.** In each column the two clouds of a model have about the same shape: the reverse process undoes the
#   forward one.
# - **Colours.** DiffFlow moves points in an orderly way: neighbours stay neighbours, and the colours are still apart in the
#   noise. DDPM mixes them: its noise remembers nothing of the place that a point came from.
# - **Lines.** The grey lines are the paths of the black points up to that time: short and nearly straight in DiffFlow, random walks in DDPM.
# - **Where the shape is lost.** In DDPM's second column nothing is left of the squares: its reverse process finds
#   them in the last fifth of the time, where steps must be small. The learned process takes them apart over the whole time, and
#   20 steps are enough for it.
#
# DDPM's own squares, on the left, are more blurred than DiffFlow's after about the same seconds. With longer training, and all
# 1000 steps, it [comes closer](../results.md#two-dimensions).
#
# Next: [several models on many sets, at full length](../results.md), [the mathematics](../mathematics.md).
