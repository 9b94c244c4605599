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
# # Digits on demand
#
# Pictures with labels: a model learns the distribution of pictures *given* the label, so that it can be asked for a three. The set is
# the digits of scikit-learn, 1,797 pictures of 8 x 8 pixels, which come with it. The model is DDPM, because its samples are fast; `diffflow`,
# `dinof` and `nfdm` take labels by the same two words.

# %%
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from diffflow_ext.figures import image_rows
from diffflow_ext.training import configure, load_run, train

folder = Path(tempfile.mkdtemp())
digits = load_digits()
images = np.minimum(digits.images * 16, 255).astype(np.uint8)[
    :, None
]  # bytes, (n, channel, height, width)
labels = digits.target
np.savez(folder / "digits.npz", images=images, labels=labels)
image_rows({str(k): images[labels == k][:12] for k in range(10)}, "The set: 12 of each digit")

# %% [markdown]
# ## Training
#
# A file of pictures and an array of labels in it: `condition="label"` finds them. [Other forms](../howto/conditions.md) are folders with one
# sub-folder a class, or a dataset of torch. The network is a small U-Net; a tenth of the pictures are learned without
# their label, which guidance will need below.

# %%
config = configure(
    "ddpm",
    data=str(folder / "digits.npz"),
    condition="label",
    timesteps=100,
    unet_base=16,
    unet_mults="1,2",
    unet_blocks=1,
    unet_attention="off",
    learning_rate=2e-3,
    batch_size=48,
    steps=400,
)
train(config, folder / "run", progress=False)
run = load_run(folder / "run")
run

# %% [markdown]
# ## Asking for a digit
#
# `given` says which. One value is for all samples, a list has one for each.

# %%
threes = run.sample(12, given={"label": 3}, seed=0)
mixed = run.sample(10, given=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], seed=0)
image_rows({"3": threes.numpy(), "0 to 9": mixed.numpy()}, "What was asked for")

# %% [markdown]
# ## Does it give what is asked for?
#
# A classifier that was trained on the real pictures says. It is wrong at times on real ones too, so its rate there is the best that one can
# expect. `guidance` strengthens the condition: 1 is the model's own distribution, more pushes samples towards what
# tells their digit from the others.

# %%
judge = LogisticRegression(max_iter=2000).fit(images[:1300].reshape(1300, -1) / 255, labels[:1300])
rest = images[1300:].reshape(-1, 64) / 255
on_real = judge.score(rest, labels[1300:])
print(f"real pictures     recognised {on_real:.2f}")

wanted = np.repeat(np.arange(10), 12)
recognised, spread, shown = {}, {}, {}
for weight in (1.0, 2.0, 4.0):
    samples = run.sample(len(wanted), given=wanted, guidance=weight, seed=1, num_steps=25).numpy()
    flat = samples.reshape(len(samples), -1) / 255
    recognised[weight] = float((judge.predict(flat) == wanted).mean())
    # How much pictures of the same digit differ: the deviation of a pixel within a class.
    spread[weight] = float(np.mean([flat[wanted == k].std(axis=0).mean() for k in range(10)]))
    shown[f"{weight:g}"] = samples[wanted == 3]
    print(
        f"guidance {weight:<8g} recognised {recognised[weight]:.2f}, spread {spread[weight]:.3f}"
    )
in_classes = [images[labels == k].reshape(-1, 64).std(axis=0).mean() / 255 for k in range(10)]
real_spread = float(np.mean(in_classes))
print(f"real pictures     spread {real_spread:.3f}")
image_rows(shown, "Threes, with more and more guidance")

# %% [markdown]
# Guidance makes samples easier to recognise and more alike: look along the rows. With it samples can be recognised *more* often than
# real digits, and that isn't a sign of quality: they no longer follow the distribution of the data. Their spread shows it, which
# falls with every weight; compare it with that of real digits. Use weight 1 for
# samples of the model, and more where only the label counts.
#
# ## And backwards: a classifier for nothing
#
# A density given the label is a classifier by Bayes' rule: the label under which a picture is the most probable. That asks ten bounds of each picture, and
# only needs the model that was trained for samples.

# %%
some, truth = images[-40:], labels[-40:]
bounds = np.stack(
    [run.log_prob(some, given={"label": k}, estimator="bound").numpy() for k in range(10)]
)
by_density = float((bounds.argmax(axis=0) == truth).mean())
print(f"the label of the highest bound is right for {by_density:.2f} of the pictures")

# %% [markdown]
# Part of these pictures were in the model's training, so this number is a demonstration, not a measurement. A fair one, on the digits of MNIST and
# with several models, is on the page of [results](../results.md#digits-by-class).
