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
# # Likelihood as an anomaly score
#
# A density says how usual a row is, so the rows of lowest density are the strangest. This notebook tries that against
# scikit-learn's `IsolationForest`: on a set made for it, on a real table, and on a case where it fails, as it must.
#
# A score is judged by the area under its ROC curve: the probability that a strange row has a worse score than a usual
# one. 1 is perfect, 0.5 is chance. Models see usual rows alone in training.

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import IsolationForest
from sklearn.metrics import RocCurveDisplay, roc_auc_score

from diffflow_ext.data import sample_toy
from diffflow_ext.estimators import DiffFlowDensity

rng = np.random.default_rng(0)

# %% [markdown]
# ## Where it shines: a shape
#
# Usual points lie on two moons, strange ones anywhere. Many strange ones are between the moons: unusual together, and usual in
# each coordinate.

# %%
usual = sample_toy("moons", 3000, seed=0)
rows = np.concatenate([sample_toy("moons", 500, seed=1), rng.uniform(-2.2, 2.2, (500, 2))])
is_strange = np.repeat([False, True], 500)

forest = IsolationForest(random_state=0).fit(usual)
density = DiffFlowDensity(steps=800, num_steps=15, width=64, diffusion_start=0.4, random_state=0)
density.fit(usual)

moons = {"IsolationForest": forest.score_samples(rows), "DiffFlow": density.score_samples(rows)}
moons_area = {name: roc_auc_score(is_strange, -score) for name, score in moons.items()}
print({name: round(area, 3) for name, area in moons_area.items()})

# %%
side = np.linspace(-2.4, 2.4, 90)
plane = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
maps = {"IsolationForest": forest.score_samples(plane), "DiffFlow": density.score_samples(plane)}
figure, panels = plt.subplots(1, 2, figsize=(8, 4))
for panel, (name, score) in zip(panels, maps.items(), strict=True):
    # Ranks, because the two scores have different units.
    ranks = score.argsort().argsort().reshape(len(side), -1)
    panel.pcolormesh(side, side, ranks, cmap="Blues", rasterized=True)
    panel.scatter(*rows[is_strange].T, s=3, color="tab:orange")
    panel.set(title=f"{name}: what it finds usual, dark", aspect="equal")
figure.tight_layout()

# %% [markdown]
# The forest cuts along the axes, so its dark region is made of bars and blocks, and it finds the gaps between the moons almost
# usual. The density follows the shape.
#
# ## Where it is one among equals: a table
#
# Measurements of benign and malignant tumours; the benign ones are the usual rows. These are a few hundred rows of thirty columns: a
# case for simple methods. A small network, few steps and more noise (`diffusion_start`) keep the model from learning the
# rows by heart; compare the scores of seen and unseen rows to see whether they did.

# %%
X, y = load_breast_cancer(return_X_y=True)
benign, malignant = rng.permutation(X[y == 1]), rng.permutation(X[y == 0])
seen, unseen = benign[:250], benign[250:]
forest = IsolationForest(random_state=0).fit(seen)
density = DiffFlowDensity(
    steps=300, num_steps=10, width=32, depth=2, diffusion_start=1.0, random_state=0,
    options={"warmup": 50},
).fit(seen)  # fmt: skip
print(
    f"mean log p of seen rows {density.score(seen):.1f}, of unseen ones {density.score(unseen):.1f}"
)

rows = np.concatenate([unseen, malignant])
labels = np.repeat([False, True], [len(unseen), len(malignant)])
table = {"IsolationForest": forest.score_samples(rows), "DiffFlow": density.score_samples(rows)}
table_area = {name: roc_auc_score(labels, -score) for name, score in table.items()}

figure, panels = plt.subplots(1, 2, figsize=(8, 4))
for panel, title, scores, truth in (
    (panels[0], "moons", moons, is_strange),
    (panels[1], "tumours: benign is usual", table, labels),
):
    for name, score in scores.items():
        RocCurveDisplay.from_predictions(truth, -score, name=name, ax=panel)
    panel.set(
        title=title,
        xlabel="share of usual rows that are flagged",
        ylabel="share of strange rows found",
    )
figure.tight_layout()

# %% [markdown]
# On the table both curves are close: take the simpler method. What the density has more is a number in nats: it adds up over
# independent rows, compares between models, and can be drawn from.
#
# ## Where it fails
#
# Now the strange rows are forged: each is the mean of five usual ones. No patient is so average in all thirty columns at once.
#
# To see which scores are strange, half of the unseen rows show which are usual. The other half is judged, and what is forged of it. The rows of
# training would not do: their scores may be better than those of any other row.

# %%
held_out, judged = unseen[::2], unseen[1::2]
forged = np.stack([rng.choice(judged, 5, replace=False).mean(axis=0) for _ in range(50)])
rows = np.concatenate([judged, forged])
labels = np.repeat([False, True], [len(judged), len(forged)])
score = density.score_samples(rows)
# The place of each score among those of held-out rows, from 0 to 1: both ends are strange.
place = np.searchsorted(np.sort(density.score_samples(held_out)), score) / len(held_out)
forged_area = {
    "IsolationForest": roc_auc_score(labels, -forest.score_samples(rows)),
    "DiffFlow": roc_auc_score(labels, -score),
    "DiffFlow, both ends": roc_auc_score(labels, abs(place - 0.5)),
}
print({name: round(area, 3) for name, area in forged_area.items()})

figure, axes = plt.subplots(figsize=(6, 2.8))
for values, name in ((score[~labels], "usual rows"), (score[labels], "forged rows")):
    axes.hist(values, bins=np.linspace(0, 40, 41), histtype="step", density=True, label=name)
axes.set(xlabel="log p of a row, nats", ylabel="density")
axes.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# The areas of both methods are far below one half: forged rows look *more* usual than real ones. Nothing is wrong with the training. In
# many dimensions nearly all rows lie far from the point of highest density, and a row near that point is strange because its score is too
# good. Counting both ends as strange finds it. With images this is
# well known (Nalisnick et al. 2019, [arXiv 1810.09136](https://arxiv.org/abs/1810.09136)): models of detailed pictures give smooth ones higher densities.
#
# Before you trust a likelihood as an alarm:
#
# - **Try it on strange rows that you know.** An area below one half needs no other proof. If you have many of them, train a
#   classifier instead.
# - **Mind the units.** A density changes with the coordinates: of a column and of its logarithm the same rows have
#   different ranks. Ranks of rows are ranks in the units that you chose.
# - **Look at both ends.** A score above those of all held-out rows is strange too.
# - **Copies.** A column that is a function of others makes densities without bound; training warns of it.
# - **Discrete columns and gaps** make a score a bound with one draw of noise: take the mean over several seeds
#   ([your own table](own_table.md)).
#
# How to do it on a file of your own: [strange rows](../howto/anomalies.md).
