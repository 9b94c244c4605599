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
# # DiNof's cutoff: where the flow takes over
#
# A diffusion model samples in many small steps from pure noise. DiNof stops the diffusion early, at the time *t_cutoff*, where data are noisy but
# not yet noise, and lets a normalizing flow model what is there. The diffusion then has a shorter way to go. What does that do to
# speed and quality?
#
# A sweep of four cutoffs on eight Gaussians, with the same networks and the same number of training steps. At the cutoff 1 there is
# nothing for a flow to do: that is an ordinary diffusion model, which starts from a normal.

# %%
import time

import matplotlib.pyplot as plt
import torch

from diffflow_ext import DiNof, NoiseKey
from diffflow_ext.data import sample_toy, toy_entropy
from diffflow_ext.figures import metric_curves
from diffflow_ext.flows import spline_flow
from diffflow_ext.metrics import energy_distance, with_floor
from diffflow_ext.nets import FourierMLP
from diffflow_ext.processes import VP

data = torch.from_numpy(sample_toy("8-gaussians", 20_000, seed=0))
held_out = torch.from_numpy(sample_toy("8-gaussians", 12_000, seed=1))
cutoffs = (0.1, 0.25, 0.5, 1.0)

# %% [markdown]
# ## What is at the cutoff
#
# The process is $x_t = \alpha(t)\,x_0 + \sigma(t)\,\varepsilon$. It has no parameters, so what the flow has to learn can be drawn before
# any training: data at the four cutoffs.

# %%
torch.manual_seed(0)
process = VP()
figure, panels = plt.subplots(1, 4, figsize=(10, 2.9), sharex=True, sharey=True)
for panel, cutoff in zip(panels, cutoffs, strict=True):
    alpha, sigma = process.alpha(torch.tensor(cutoff)), process.sigma(torch.tensor(cutoff))
    points = alpha * data[:3000] + sigma * torch.randn(3000, 2)
    panel.scatter(*points.T, s=1)
    panel.set(title=f"t = {cutoff}\nsignal {alpha:.2f}, noise {sigma:.2f}", aspect="equal")
figure.tight_layout()

# %% [markdown]
# ## Training
#
# `mean_loss` is the sum of two losses that share no parameter: the score's up to the cutoff, and the flow's at it. The gradients of the
# flow are larger, so each part is clipped by itself.


# %%
def trained(cutoff: float, steps: int = 400) -> DiNof:
    torch.manual_seed(0)
    flow = spline_flow(2, transforms=3, hidden=(64, 64)) if cutoff < 1 else None
    model = DiNof(FourierMLP(2, width=64), flow, "vp", t_cutoff=cutoff)
    parts = [
        part for part in (list(model.score_parameters()), list(model.flow_parameters())) if part
    ]
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        x0 = data[torch.randint(len(data), (256,))]
        loss = model.mean_loss(x0, NoiseKey(0, step))
        optimiser.zero_grad()
        loss.backward()
        for part in parts:
            torch.nn.utils.clip_grad_norm_(part, 1.0)
        optimiser.step()
        schedule.step()
    return model


models, seconds = {}, {}
for cutoff in cutoffs:
    start = time.process_time()
    models[cutoff] = trained(cutoff)
    seconds[cutoff] = time.process_time() - start
for cutoff in cutoffs:
    print(
        f"cutoff {cutoff:<4} training takes {seconds[cutoff] / seconds[1.0]:.1f} times as long as without a flow"
    )

# %% [markdown]
# A step with a flow costs a few times as much as one without. The comparison below is between equal numbers of steps, and so not one of
# equal training time.
#
# ## Quality against steps
#
# For each cutoff samples with 5 to 100 steps; a step is one evaluation of the score network, and the flow is evaluated once. The energy distance to held-out data is given as a multiple of its
# *floor*, the distance of as many real points: 1 is as good as data.

# %%
counts = (5, 10, 20, 50, 100)
test = held_out[:2000]
curves = {}
for cutoff, model in models.items():
    points = []
    for count in counts:
        samples = model.sample((2000, 2), count, NoiseKey(1))
        distance = with_floor(energy_distance, samples, test, held_out[2000:])
        points.append((count, distance.value["value"] / distance.floor["value"]))
    curves[f"t_cutoff = {cutoff}"] = points
metric_curves(
    curves, "steps of a sample", "energy distance, floors", "Eight Gaussians", ("real data", 1.0)
)

# %% [markdown]
# - **Few steps.** At 5 steps an earlier cutoff is clearly better than a later one: five steps cover a short way well, and the whole way badly.
# - **More steps.** The late cutoffs catch up, as far as their networks have learned: below that no number of
#   steps helps. The early ones gain nothing, they were there already.
#
# Look at the points of 5 steps, too:

# %%
figure, panels = plt.subplots(2, 4, figsize=(10, 5.2), sharex=True, sharey=True)
for column, (cutoff, model) in zip(panels.T, models.items(), strict=True):
    flowed = model.prior.sample((2000, 2), NoiseKey(1)).detach()
    column[0].scatter(*flowed.T, s=1, color="tab:gray")
    column[1].scatter(*model.sample((2000, 2), 5, NoiseKey(1)).T, s=1, color="tab:orange")
    column[0].set(title=f"t_cutoff = {cutoff}", aspect="equal", xlim=(-2.8, 2.8), ylim=(-2.8, 2.8))
    column[1].set(aspect="equal")
panels[0, 0].set_ylabel("the flow's samples")
panels[1, 0].set_ylabel("after 5 steps")
figure.tight_layout()

# %% [markdown]
# Above is where sampling begins, below where it ends. At an early cutoff the flow does most of the work, and what it gets wrong stays wrong. At a late one
# the diffusion does the work, in steps that are too long: the ring comes out too small or too thin. After so short a training none separates the eight.
#
# ## Likelihood
#
# The density of the model is exact: that of the ordinary equation up to the cutoff, and the flow's there.

# %%
entropy = toy_entropy("8-gaussians")
nats = {}
for cutoff, model in models.items():
    with torch.no_grad():
        nats[cutoff] = float(-model.log_prob(test[:1000], 40).mean())
    print(
        f"t_cutoff {cutoff:<4} -log p of held-out points {nats[cutoff]:.2f} nats, entropy of the set {entropy:.2f}"
    )

# %% [markdown]
# How to choose: if samples must be fast and a flow fits your data (few dimensions, or images with Glow), cut early; if the flow is the weak part, as it may be for
# large images, cut late: the released configurations of the paper have 0.6. What a longer training does on two spirals is in the
# [results](../results.md#where-dinofs-diffusion-ends).
