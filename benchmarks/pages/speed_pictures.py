"""The pictures of docs/benchmarks.md, from the reports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from .drawing import COLOURS, INK, MARKERS, new_figure, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

STEPS = "benchmarks_steps.png"
SCALING = "benchmarks_scaling.png"
EQUAL_COMPUTE = "benchmarks_equal_compute.png"
#: Bars of this package, and of everything else.
OURS, OTHERS = COLOURS[0], "#a8b1bd"
LABELS = {
    "ddpm": "DDPM, PyTorch",
    "ddpm_fused": "DDPM, fused",
    "release": "authors' adjoint",
    "torchsde": "torchsde, sdeint",
    "torchsde_adjoint": "torchsde, adjoint",
    "graph": "autograd of the loop",
    "graph_bf16": "loop in bfloat16",
    "compiled": "torch.compile, step",
    "compiled_loop": "torch.compile, loop",
    "adjoint": "adjoint, any networks",
    "fused": "fused",
    "fused_bf16": "fused, bfloat16",
}
PANELS = {
    "steps_2d_1": "2-D, one thread",
    "steps_2d_2": "2-D, two threads",
    "steps_small_1": "120 trajectories, DDPM of 2000",
    "steps_table-6_1": "6 columns",
    "steps_table-21_1": "21 columns",
    "steps_table-63_1": "63 columns",
    "steps_image_1": "images, U-Net",
}
AXES = {"num_steps": "steps N", "batch": "batch B", "width": "width"}

Results = Mapping[str, dict[str, Any]]


def draw_pictures(results: Results, folder: Path, out: Path) -> list[Path]:
    """Draws every picture whose reports are there, and returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    steps = {title: results[name] for name, title in PANELS.items() if name in results}
    if steps:
        paths.append(_steps(steps, out / STEPS))
    if "scaling_1" in results:
        paths.append(_scaling(results["scaling_1"], out / SCALING))
    if "equal_compute_1" in results:
        paths.append(_equal_compute(results["equal_compute_1"], out / EQUAL_COMPUTE))
    return paths


# --- steps ---------------------------------------------------------------------------------------


def _steps(reports: Results, path: Path) -> Path:
    """Ratios to DDPM, a bar for each variant, a panel for each problem."""
    columns = min(2, len(reports))
    rows = -(-len(reports) // columns)
    figure = new_figure(5.2 * columns, 3.1 * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, (title, report) in zip(panels, reports.items(), strict=False):
        _bars(panel, report["variants"])
        panel.set_title(title, fontsize=10, color=INK, loc="left")
    for panel in panels[len(reports) :]:
        panel.set_axis_off()
    for panel in panels[max(0, len(reports) - columns) : len(reports)]:
        panel.set_xlabel("time of an update / DDPM's", fontsize=9, color=INK)
    return save(figure, path)


def _bars(panel: Axes, variants: Mapping[str, Any]) -> None:
    names = list(variants)
    medians = [variants[n]["ratio"]["median"] for n in names]
    quartiles = [variants[n]["ratio"]["quartiles"] for n in names]
    reach = max(high for _, high in quartiles)
    beyond = [
        [abs(m - q[side]) for m, q in zip(medians, quartiles, strict=True)] for side in (0, 1)
    ]
    colours = [OURS if "fused" in n or n == "adjoint" else OTHERS for n in names]
    panel.barh(names, medians, xerr=beyond, color=colours, height=0.68,
               error_kw={"ecolor": INK, "elinewidth": 0.9, "capsize": 2})  # fmt: skip
    for row, (median, (_, high)) in enumerate(zip(medians, quartiles, strict=True)):
        text = f"{median:.1f}" if median < 10 else f"{median:.0f}"
        panel.text(high + 0.015 * reach, row, text, va="center", fontsize=8, color=INK)
    panel.set_yticks(range(len(names)), [LABELS.get(n, n) for n in names])
    panel.invert_yaxis()
    panel.set_xlim(0, 1.12 * reach)
    plain(panel)
    panel.grid(visible=False, axis="y")
    panel.set_axisbelow(True)


# --- growth --------------------------------------------------------------------------------------


def _scaling(report: Mapping[str, Any], path: Path) -> Path:
    """Time and memory against N, B and width, both axes logarithmic."""
    axes = report["axes"]
    figure = new_figure(3.5 * len(axes), 5.6)
    grid = figure.subplots(2, len(axes), squeeze=False, sharex="col", sharey="row")
    for column, (name, found) in enumerate(axes.items()):
        for row, what in enumerate(("time", "memory")):
            panel = grid[row][column]
            for index, (engine, points) in enumerate(found["points"].items()):
                x = [point["value"] for point in points]
                grown = found["exponents"][engine][what]["last"]
                panel.plot(
                    x,
                    [_value(point, what) for point in points],
                    color=COLOURS[index],
                    marker=MARKERS[index],
                    markersize=4.5,
                    linewidth=1.5,
                    label=f"{engine}: exponent {grown:.2f}",
                )
            panel.set(xscale="log", yscale="log")
            plain(panel)
            _round_numbers(panel.yaxis, (1.0, 3.0))
            panel.legend(frameon=False, fontsize=8)
        values = found["values"]
        grid[1][column].set_xticks(values, [f"{value:,}" for value in values])
        grid[1][column].set_xticks([], minor=True)
        grid[1][column].set_xlabel(AXES[name], fontsize=9, color=INK)
    grid[0][0].set_ylabel("time of a step [ms]", fontsize=9, color=INK)
    grid[1][0].set_ylabel("peak memory [MiB]", fontsize=9, color=INK)
    return save(figure, path)


def _value(point: Mapping[str, Any], what: str) -> float:
    return 1e3 * point["seconds"]["median"] if what == "time" else max(point["mebibytes"], 0.1)


def _round_numbers(axis: Axis, subs: tuple[float, ...]) -> None:
    """Ticks as plain numbers."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


# --- bounds --------------------------------------------------------------------------------------


def _equal_compute(report: Mapping[str, Any], path: Path) -> Path:
    """Bounds against seconds of training."""
    figure = new_figure(7.2, 4.9)
    panel = figure.subplots()
    for index, run in enumerate(report["runs"].values()):
        points = run["points"]
        panel.errorbar(
            [point["seconds"] for point in points],
            [point["nats"] for point in points],
            [point["error"] for point in points],
            color=COLOURS[index],
            marker=MARKERS[index],
            markersize=4.5,
            linewidth=1.5,
            capsize=2,
            label=run["title"],
        )
    if report["entropy"] is not None:
        panel.axhline(report["entropy"], color=INK, linewidth=1.0, linestyle=(0, (5, 3)),
                      label="entropy of the data")  # fmt: skip
    panel.set_xscale("log")
    plain(panel)
    _round_numbers(panel.xaxis, (1.0, 2.0, 5.0))
    panel.set_xlabel("processor seconds of training", fontsize=9, color=INK)
    panel.set_ylabel("bound on \N{MINUS SIGN}log p [nats]", fontsize=9, color=INK)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    return save(figure, path)
