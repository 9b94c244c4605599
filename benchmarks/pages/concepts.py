"""The diagrams of docs/concepts.md: a path and a step of it, the adjoint, and noise as a value.

    python -m benchmarks.pages.concepts

Paths, residuals and noise are those that the package computes, of a linear SDE whose score is
known.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.patches import FancyArrowPatch, Rectangle

from diffflow_ext import NoiseKey, figures
from diffflow_ext.figures.panels import BLUE, FAINT, INK, ORANGE, new_figure, style
from diffflow_ext.functional import backward_residual, em_step, normal

from ..common.files import ROOT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The SDE dx = -x dt + g dw, and data N(0, VARIANCE).
STEPS, LENGTH, G, VARIANCE, PATHS = 8, 0.25, 1.0, 0.15, 60
#: The path and the step that are shown: one whose parts are all large enough to be seen.
ONE, SHOWN = 32, 3
KEY = NoiseKey(seed=11)
PALE_BLUE, PALE_ORANGE = "#cfe0f3", "#f6d9c4"


def draw_diagrams(out: Path) -> list[Path]:
    """Draws the diagrams into a folder; returns their paths."""
    made = {"path": path_and_step(), "adjoint": adjoint(), "noise": noise()}
    return [figures.save(figure, out / f"concepts_{name}.png") for name, figure in made.items()]


# --- a path, and a step of it --------------------------------------------------------------------


def variances() -> list[float]:
    """Returns the variance of each state: that of the data, and after each step."""
    found = [VARIANCE]
    for _ in range(STEPS):
        found.append((1.0 - LENGTH) ** 2 * found[-1] + G**2 * LENGTH)
    return found


def paths() -> torch.Tensor:
    """Returns states of forward paths, shape (STEPS + 1, PATHS, 1)."""
    start = normal((PATHS, 1), KEY, purpose="prior", dtype=torch.float64)
    states = [VARIANCE**0.5 * start]
    for i in range(STEPS):
        x = states[-1]
        states.append(em_step(x, -x, key=KEY, step=i, dt=LENGTH, g=G))
    return torch.stack(states)


def residual(states: torch.Tensor, i: int) -> tuple[float, float]:
    """Returns the mean of the reverse step to state i of the path shown, and its residual."""
    x, x_next = states[i], states[i + 1]
    score = -x_next / variances()[i + 1]
    delta = backward_residual(x, x_next, -x_next, score, dt=LENGTH, g_next=G)
    return float((x - G * LENGTH**0.5 * delta)[ONE]), float(delta[ONE])


def path_and_step() -> Figure:
    """Returns a picture of paths, and of the forward and the reverse reading of one step."""
    states = paths()
    figure = new_figure(9.6, 3.9)
    left, right = figure.subplots(1, 2, width_ratios=[1.0, 1.25])
    times, one = LENGTH * np.arange(STEPS + 1), states[:, ONE, 0].numpy()
    left.plot(times, states[..., 0].numpy(), color=FAINT, linewidth=0.7)
    left.plot(times, one, color=INK, linewidth=1.2, marker="o", markersize=5)
    left.plot(times[SHOWN : SHOWN + 2], one[SHOWN : SHOWN + 2], color=INK, linewidth=3.0)
    names = (
        (0, "$x_0$", 7),
        (SHOWN, "$x_i$", -16),
        (SHOWN + 1, "$x_{i+1}$", 7),
        (STEPS, "$x_N$", 7),
    )
    for i, name, up in names:
        left.annotate(name, (times[i], one[i]), (3, up), textcoords="offset points", fontsize=12)
    style(left)
    left.set(xlabel="time, from data to noise", ylabel="state")
    left.set_title("a path of the forward SDE, among others", fontsize=11, color=INK)
    _draw_step(right, states)
    right.set_title("one step, read in both directions", fontsize=11, color=INK)
    return figure


def _draw_step(panel: Axes, states: torch.Tensor) -> None:
    x, x_next = (float(states[SHOWN + k, ONE, 0]) for k in range(2))
    ahead, (back, _) = x - x * LENGTH, residual(states, SHOWN)
    deviation = G * LENGTH**0.5
    for at, mean, side, colour in ((1.0, ahead, 1, PALE_BLUE), (0.0, back, -1, PALE_ORANGE)):
        y = np.linspace(mean - 3 * deviation, mean + 3 * deviation, 200)
        bell = 0.32 * np.exp(-0.5 * ((y - mean) / deviation) ** 2)
        panel.fill_betweenx(y, at, at + side * bell, color=colour, linewidth=0)
    _arrow(panel, (0.0, x), (1.0, ahead), BLUE)
    _arrow(panel, (1.0, ahead), (1.0, x_next), BLUE, width=2.6)
    _arrow(panel, (1.0, x_next), (0.0, back), ORANGE)
    _arrow(panel, (0.0, back), (0.0, x), ORANGE, width=2.6)
    panel.plot([0.0, 1.0], [x, x_next], "o", color=INK, markersize=7, zorder=5)
    forward, reverse = (
        r"$+\, f(t_i, x_i)\,\Delta t$",
        r"$-\,(f - g^2 s)(t_{i+1}, x_{i+1})\,\Delta t$",
    )
    texts = (
        (0.5, 0.5 * (x + ahead) - 0.12, forward, BLUE, "center", "top"),
        (1.05, 0.5 * (ahead + x_next), r"$g\sqrt{\Delta t}\;\delta^F_i$", BLUE, "left", "center"),
        (0.5, 0.5 * (x_next + back) + 0.15, reverse, ORANGE, "center", "bottom"),
        (-0.05, 0.5 * (back + x), r"$g\sqrt{\Delta t}\;\delta^B_i$", ORANGE, "right", "center"),
    )
    for across, up, text, colour, side, edge in texts:
        panel.text(across, up, text, color=colour, fontsize=12.5, ha=side, va=edge, zorder=6)
    _name_states(panel, x, x_next)
    panel.set(xlim=(-0.5, 1.5), xticks=[0, 1], xticklabels=["$t_i$", "$t_{i+1}$"], yticks=[])
    panel.tick_params(labelsize=12, length=0)
    for spine in panel.spines.values():
        spine.set_color(FAINT)


def _name_states(panel: Axes, x: float, x_next: float) -> None:
    panel.annotate("$x_i$", (0, x), (-22, -10), textcoords="offset points", fontsize=13)
    panel.annotate("$x_{i+1}$", (1, x_next), (9, 2), textcoords="offset points", fontsize=13)
    panel.text(-0.45, x - 1.9, "reverse: a normal at $t_i$", color=ORANGE, fontsize=10)
    panel.text(
        1.45, x - 1.9, "forward: a normal at $t_{i+1}$", color=BLUE, fontsize=10, ha="right"
    )


def _arrow(panel: Axes, start: Any, end: Any, colour: str, width: float = 1.6) -> None:
    panel.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color=colour,
                                    linewidth=width, shrinkA=4, shrinkB=4, zorder=4))  # fmt: skip


# --- the adjoint ---------------------------------------------------------------------------------

LAYERS, CHAIN, NOW = 5, 6, 3
FILLED, EMPTY = "#2f74b5", "white"


def adjoint() -> Figure:
    """Returns a picture of what autograd keeps, and of what the adjoint keeps."""
    figure = new_figure(9.6, 4.3)
    above, below = figure.subplots(2, 1)
    states = range(CHAIN + 1)
    title = "autograd keeps all that the networks computed, at each state"
    _chain(above, [True for _ in states], title)
    title = "the adjoint keeps the states, and evaluates the networks again at one after the other"
    _chain(below, [k == NOW for k in states], title)
    for k in range(CHAIN, NOW, -1):
        _arrow(below, (k - 0.08, -0.62), (k - 0.92, -0.62), ORANGE)
    texts = ((CHAIN + 0.12, "left", r"$A_N$"),
             (NOW - 0.12, "right", rf"$A_{NOW} = \partial L / \partial x_{NOW}$"))  # fmt: skip
    for place, side, text in texts:
        below.text(place, -0.62, text, color=ORANGE, fontsize=13, va="center", ha=side)
    above.text(-0.5, -0.75, "filled: in memory", color=FILLED, fontsize=10)
    return figure


def _chain(panel: Axes, kept: Sequence[bool], title: str) -> None:
    """Draws states, and above each the layers of the networks, filled if they are in memory."""
    for k, is_kept in enumerate(kept):
        panel.plot(k, 0.0, "o", markersize=25, color=FILLED)
        panel.text(k, 0.0, f"$x_{k}$" if k < CHAIN else "$x_N$", color="white", fontsize=11,
                   ha="center", va="center")  # fmt: skip
        for layer in range(LAYERS):
            # The residual of a step takes the score at its end: at x_0 there is none.
            for side in (-0.3, 0.04)[: 1 if k == 0 else 2]:
                colour = FILLED if is_kept else EMPTY
                panel.add_patch(Rectangle((k + side, 0.48 + 0.2 * layer), 0.26, 0.14,
                                          facecolor=colour, edgecolor=FILLED, linewidth=0.8,
                                          alpha=1.0 if is_kept else 0.45))  # fmt: skip
        if k < CHAIN:
            _arrow(panel, (k + 0.2, 0.0), (k + 0.8, 0.0), INK)
    for k, place, name in ((0, -0.17, "$f$"), (1, -0.17, "$f$"), (1, 0.17, "$s$")):
        panel.text(k + place, 1.62, name, ha="center", fontsize=11, color=INK)
    panel.set_title(title, fontsize=11.5, color=INK)
    panel.set(xlim=(-0.6, CHAIN + 0.6), ylim=(-0.95, 1.95))
    panel.set_axis_off()


# --- noise as a value ----------------------------------------------------------------------------

BATCH, HALF = 8, 4


def table_of_noise(key: NoiseKey, first: int, count: int) -> np.ndarray:
    """Returns the first element of each sample's noise at each step, shape (count, STEPS)."""
    draws = [normal((count, 1), key, step=i, sample_offset=first)[:, 0] for i in range(STEPS)]
    return torch.stack(draws, dim=1).numpy()


def noise() -> Figure:
    """Returns a picture of the noise of a batch, of the same in two halves, and of another key."""
    whole = table_of_noise(KEY, 0, BATCH)
    halves = np.concatenate([table_of_noise(KEY, first, HALF) for first in (0, HALF)])
    other = table_of_noise(NoiseKey(KEY.seed, stream=1), 0, BATCH)
    figure = new_figure(9.6, 3.1)
    panels = figure.subplots(1, 3)
    titles = (
        "NoiseKey(seed=11, stream=0)", "the same key, in two halves", "NoiseKey(seed=11, stream=1)"
    )  # fmt: skip
    for panel, values, title in zip(panels, (whole, halves, other), titles, strict=True):
        image = panel.imshow(values, cmap="PuOr", vmin=-2.5, vmax=2.5, aspect="auto")
        panel.set_title(title, fontsize=10.5, color=INK)
        panel.set(xlabel="step", xticks=range(STEPS), yticks=range(BATCH))
        panel.tick_params(labelsize=8.5, length=0)
        for spine in panel.spines.values():
            spine.set_visible(False)
    panels[0].set_ylabel("sample")
    panels[1].axhline(HALF - 0.5, color="white", linewidth=6)
    figure.colorbar(image, ax=panels, label="normal number", shrink=0.9)  # pyright: ignore[reportPossiblyUnboundVariable]
    return figure


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the pages")
    for path in draw_diagrams(parser.parse_args(words).docs / "pictures"):
        print(path)


if __name__ == "__main__":
    main()
