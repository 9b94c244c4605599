"""The pictures of the pages, from the reports and the samples beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from diffflow_ext import figures
from diffflow_ext.figures.panels import FAINT, INK, grid_lines, new_figure

from ..common.reports import read_samples
from .digits import picture_of_digits
from .quality import of_size
from .tables import Report, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

DATA = "#6b7280"
COLOURS = ("#1f4e8c", "#d2570c", "#2a9d8f", "#7b4bb3", "#c2335a", "#7a9e2e", "#6b7280")
MARKERS = "osD^vPX"
DASHED = (0, (5, 3))
#: Bars of this package, and of everything else.
OURS, OTHERS = COLOURS[0], "#a8b1bd"
IS_OURS = ("ddpm_fused", "adjoint", "scores_batched", "fused", "fused_bf16")
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
#: Steps N of the samples of images that are shown.
SHOWN_STEPS, SHOWN_STEPS_DINOF = (5, 30), (20, 50)
#: The grey of what is not given, and the draws of a model that are shown.
UNKNOWN, DRAWN = 128, 3
NATS = "\N{MINUS SIGN}log p [nats]"


def draw_pictures(results: Results, folder: Path, out: Path) -> list[Path]:
    """Draws every picture whose reports are there, and returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    made: dict[str, Figure] = {}
    steps = {title: results[name] for name, title in PANELS.items() if name in results}
    two = [r for r in results.values() if r.get("benchmark") == "compare_2d"]
    two.sort(key=lambda report: report["data"])
    if steps:
        made["benchmarks_steps"] = _steps(steps)
    if "scaling_1" in results:
        made["benchmarks_scaling"] = _scaling(results["scaling_1"])
    if "equal_compute_1" in results:
        made["benchmarks_equal_compute"] = _equal_compute(results["equal_compute_1"])
    if two:
        made["compare_2d"], made["compare_2d_steps"] = _clouds(two, folder), _steps_2d(two)
    sweeps = [n for n, r in results.items() if r.get("benchmark") == "dinof_sweep"]
    made |= {name: _sweep(results[name]) for name in sweeps}
    paths = [out / f"{name}.png" for name in made]
    for path, figure in zip(paths, made.values(), strict=True):
        figure.set_dpi(130)
        figures.save(figure, path)
    for report in results.values():
        if report.get("benchmark") == "compare_images":
            paths += _images(report, folder, out)
        elif report.get("benchmark") == "filling":
            paths.append(_half_pictures(report, folder, out))
        elif report.get("benchmark") == "digits_by_class":
            paths.append(picture_of_digits(report, folder, out))
    return paths


# --- parts ---------------------------------------------------------------------------------------


def _plain(panel: Axes) -> None:
    panel.tick_params(labelsize=8.5, color=FAINT, labelcolor=INK)
    for spine in panel.spines.values():
        spine.set_color(FAINT)
    grid_lines(panel)


def _label(panel: Axes, x: str = "", y: str = "") -> None:
    panel.set_xlabel(x, fontsize=9, color=INK)
    panel.set_ylabel(y, fontsize=9, color=INK)


def _style(index: int, size: float = 4.5, width: float = 1.5) -> dict[str, Any]:
    """Colour and marker of a curve."""
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    return {"color": colour, "marker": marker, "markersize": size, "linewidth": width}


def _round_numbers(axis: Axis, subs: tuple[float, ...]) -> None:
    """Ticks as plain numbers."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


# --- docs/benchmarks.md --------------------------------------------------------------------------


def _steps(reports: Mapping[str, Report]) -> Figure:
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
        _label(panel, "time of an update / DDPM's")
    return figure


def _bars(panel: Axes, variants: Mapping[str, Any]) -> None:
    names = list(variants)
    medians = [variants[n]["ratio"]["median"] for n in names]
    quartiles = [variants[n]["ratio"]["quartiles"] for n in names]
    reach = max(high for _, high in quartiles)
    beyond = np.abs(np.array(medians) - np.array(quartiles).T)
    colours = [OURS if n in IS_OURS else OTHERS for n in names]
    panel.barh(names, medians, xerr=beyond, color=colours, height=0.68,
               error_kw={"ecolor": INK, "elinewidth": 0.9, "capsize": 2})  # fmt: skip
    for row, (median, (_, high)) in enumerate(zip(medians, quartiles, strict=True)):
        text = f"{median:.1f}" if median < 10 else f"{median:.0f}"
        panel.text(high + 0.015 * reach, row, text, va="center", fontsize=8, color=INK)
    panel.set_yticks(range(len(names)), [_short(variants[n]["title"]) for n in names])
    panel.invert_yaxis()
    panel.set_xlim(0, 1.12 * reach)
    _plain(panel)
    panel.grid(visible=False, axis="y")


def _short(title: str) -> str:
    """A variant's title as it fits beside a bar."""
    title = title.replace("autograd of the loop,", "loop,").replace("`", "")
    return title.replace('engine="autograd"', "adjoint").replace('engine="fused"', "fused")


def _scaling(report: Report) -> Figure:
    """Time and memory against N, B and width, both axes logarithmic."""
    axes = report["axes"]
    figure = new_figure(3.5 * len(axes), 5.6)
    grid = figure.subplots(2, len(axes), squeeze=False, sharex="col", sharey="row")
    for column, (name, found) in zip(grid.T, axes.items(), strict=True):
        for panel, what in zip(column, ("time", "memory"), strict=True):
            _growth(panel, found, what)
        values = found["values"]
        column[1].set_xticks(values, [f"{value:,}" for value in values])
        column[1].set_xticks([], minor=True)
        _label(column[1], AXES[name])
    grid[0][0].set_ylabel("time of a step [ms]", fontsize=9, color=INK)
    grid[1][0].set_ylabel("peak memory [MiB]", fontsize=9, color=INK)
    return figure


def _growth(panel: Axes, found: Mapping[str, Any], what: str) -> None:
    for index, (engine, points) in enumerate(found["points"].items()):
        y = [
            1e3 * p["seconds"]["median"] if what == "time" else max(p["mebibytes"], 0.1)
            for p in points
        ]
        grown = found["exponents"][engine][what]["last"]
        label = f"{engine}: exponent {grown:.2f}"
        panel.plot([point["value"] for point in points], y, label=label, **_style(index))
    panel.set(xscale="log", yscale="log")
    _plain(panel)
    _round_numbers(panel.yaxis, (1.0, 3.0))
    panel.legend(frameon=False, fontsize=8)


def _equal_compute(report: Report) -> Figure:
    """Bounds against seconds of training."""
    figure = new_figure(7.2, 4.9)
    panel = figure.subplots()
    for index, run in enumerate(report["runs"].values()):
        x, y, error = ([p[part] for p in run["points"]] for part in ("seconds", "nats", "error"))
        panel.errorbar(x, y, error, capsize=2, label=run["title"], **_style(index))
    if report["entropy"] is not None:
        panel.axhline(report["entropy"], color=INK, linewidth=1.0, linestyle=DASHED,
                      label="entropy of the data")  # fmt: skip
    panel.set_xscale("log")
    _plain(panel)
    _round_numbers(panel.xaxis, (1.0, 2.0, 5.0))
    _label(panel, "processor seconds of training", "bound on \N{MINUS SIGN}log p [nats]")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    return figure


# --- docs/results.md -----------------------------------------------------------------------------


def _clouds(reports: Sequence[Report], folder: Path) -> Figure:
    """Samples beside data, a row for each set."""
    titles = {"data": "data"}
    titles |= {name: one["title"] for report in reports for name, one in report["models"].items()}
    figure = new_figure(2.0 * len(titles), 2.0 * len(reports) + 0.3)
    axes = figure.subplots(len(reports), len(titles), squeeze=False)
    for report, panels in zip(reports, axes, strict=True):
        samples = read_samples(folder / report["samples"])
        reach = 1.12 * float(np.abs(samples["data"]).max())
        for index, (name, panel) in enumerate(zip(titles, panels, strict=True)):
            points = samples.get(name, np.empty((0, 2))).astype(np.float64)
            colour = DATA if name == "data" else COLOURS[index - 1]
            panel.scatter(points[:, 0], points[:, 1], s=0.7, color=colour, linewidths=0)
            panel.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[])
            panel.set_aspect("equal")
            for spine in panel.spines.values():
                spine.set_color(FAINT)
        panels[0].set_ylabel(report["data"].replace("-", " "), fontsize=9.5, color=INK)
    for title, panel in zip(titles.values(), axes[0], strict=True):
        panel.set_title(title.replace(", ", ",\n"), fontsize=9.5, color=INK)
    return figure


def _steps_2d(reports: Sequence[Report]) -> Figure:
    """Energy distance against network evaluations, a panel for each set."""
    # The legend needs room too.
    figure = new_figure(max(2.7 * len(reports), 8.5), 3.6)
    axes = figure.subplots(1, len(reports), squeeze=False, sharey=True)[0]
    for report, panel in zip(reports, axes, strict=True):
        for index, (title, points) in enumerate(_curves_2d(report).items()):
            x, y, error = (np.array(part) for part in zip(*points, strict=True))
            panel.errorbar(x, y, error, label=title, **_style(index, 4, 1.3))
        panel.axhline(1.0, color=INK, linewidth=1.0, linestyle=DASHED)
        panel.set(xscale="log", yscale="log")
        panel.set_title(report["data"].replace("-", " "), fontsize=10, color=INK)
        _label(panel, "network evaluations")
        _plain(panel)
    axes[0].set_ylabel("energy distance / real data", fontsize=9, color=INK)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _curves_2d(report: Report) -> dict[str, list[tuple[float, float, float]]]:
    """The better of each model's ways with noise and without, and both of DDPM's."""
    curves: dict[str, list[tuple[float, float, float]]] = {}
    left_out = {"diffflow": 0.0}
    for name, one in report["models"].items():
        for found in one["sampling"]:
            noise = found["options"].get("stochasticity")
            if noise is not None and noise == left_out.get(name, 1.0):
                continue
            sampler = {"ddim": " (DDIM)", "ancestral": " (ancestral)"}
            title = one["title"] + sampler.get(found["options"].get("sampler", ""), "")
            title += " (ODE)" if noise == 0 else ""
            point = (found["evaluations"], found["mean"], found["error"] or 0.0)
            curves.setdefault(title, []).append(point)
    return curves


def _sweep_measures(one: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Values of a training with their errors, by the label of their axis."""
    nats, sampling = one["likelihood"].get("ode") or one["likelihood"]["exact"], one["sampling"]
    return {
        "energy distance / real data": (sampling["mean"], sampling["error"] or 0.0),
        NATS: (nats["nats"], nats["error"]),
        "CPU seconds for 10,000 samples": (sampling["cpu_seconds_per_10000"], 0.0),
    }


def _sweep(report: Report) -> Figure:
    """Quality, likelihood and time against the cutoff; the ends as lines across."""
    found = {name: _sweep_measures(one) for name, one in report["parts"].items()}
    ends = {n: found.pop(n) for n in ("flow", "diffusion") if n in found}
    figure, cutoffs = new_figure(10.5, 3.3), [float(name) for name in found]
    labels = next(iter(found.values()))
    for panel, label in zip(figure.subplots(1, 3), labels, strict=True):
        y, error = (np.array(v) for v in zip(*(one[label] for one in found.values()), strict=True))
        panel.errorbar(cutoffs, y, error, label="DiNof", **_style(0, 4, 1.4))
        for colour, (name, measures) in zip(COLOURS[1:], ends.items(), strict=False):
            panel.axhline(measures[label][0], color=colour, linewidth=1.2, linestyle=DASHED,
                          label=f"{name} alone")  # fmt: skip
        _label(panel, "cutoff", label)
        panel.set_yscale("linear" if label == NATS else "log")
        _plain(panel)
    figure.axes[0].legend(frameon=False, fontsize=8.5)
    return figure


def _half_pictures(report: Report, folder: Path, out: Path) -> Path:
    """Rows of digits, of what was given of them, and of what was drawn for the rest."""
    samples = read_samples(folder / report["samples"])
    given = samples["data"].copy()
    given[..., given.shape[-2] // 2 :, :] = UNKNOWN
    rows = {"data": samples["data"], "given": given}
    for model, one in report["models"].items():
        draws = np.moveaxis(samples[model], 1, 0)
        shown = DRAWN if "parameters" in one else 1
        rows |= {f"{one['title']}, {i + 1}": draws[i] for i in range(shown)}
    name = f"filling_{report['data']}{report['size']}"
    figure = figures.image_rows(rows, f"{of_size(report)}: half pictures")
    return figures.save(figure, out / f"{name}.png")


def _images(report: Report, folder: Path, out: Path) -> list[Path]:
    """Rows of samples, and their distance against the number of steps."""
    samples = read_samples(folder / report["samples"])
    rows, curves = {"data": samples["data"]}, {}
    for model, one in report["models"].items():
        shown = SHOWN_STEPS_DINOF if model == "dinof" else SHOWN_STEPS
        for found in one["sampling"]:
            options, num_steps = found["options"], found["num_steps"]
            if options.get("stochasticity") == 1.0:  # The tables have these.
                continue
            kind = " (DDIM)" if options.get("sampler") == "ddim" else ""
            kind = " (no noise)" if options.get("stochasticity") == 0 else kind
            title = one["title"] + kind
            if num_steps in shown:
                rows[f"{title}, N = {num_steps}"] = samples[found["key"]]
            curves.setdefault(title, []).append((found["evaluations"], found["fd"]))
    floor = ("training against test images", report["floors"]["test"]["fd"])
    name = f"compare_images_{report['data']}{report['size']}"
    title = f"{of_size(report)}: samples"
    return [
        figures.save(figures.image_rows(rows, title), out / f"{name}.png"),
        figures.save(
            figures.metric_curves(
                curves, "network evaluations N", report["label"], f"{title} against steps", floor
            ),
            out / f"{name}_fd.png",
        ),
    ]  # fmt: skip
