"""The pictures of docs/results.md, from the reports and the samples beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffflow_ext import figures

from ..common.runs import read_samples
from .drawing import COLOURS, FAINT, INK, MARKERS, new_figure, plain, save

DATA = "#6b7280"
COLUMNS_2D = ("data", "diffflow", "ddpm_steps", "ddpm_time", "ffjord_time")
NATS = "\N{MINUS SIGN}log p [nats]"

Results = Mapping[str, dict[str, Any]]


def draw_pictures(results: Results, folder: Path, out: Path) -> list[Path]:
    """Draws every picture whose reports are there, and returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    two = {n: r for n, r in results.items() if r.get("benchmark") == "compare_2d"}
    paths: list[Path] = []
    if two:
        paths.append(_clouds(two, folder, out / "compare_2d.png"))
        paths.append(_steps_2d(two, out / "compare_2d_steps.png"))
    for name, report in results.items():
        if report.get("benchmark") == "dinof_sweep":
            paths.append(_sweep(report, out / f"{name}.png"))
    images = results.get("compare_images_mnist16")
    if images is not None:
        paths += _images(images, folder, out)
    return paths


def _clouds(reports: Results, folder: Path, path: Path) -> Path:
    """Samples beside data, a row for each set."""
    rows = sorted(reports.values(), key=lambda report: report["data"])
    figure = new_figure(2.0 * len(COLUMNS_2D), 2.0 * len(rows) + 0.3)
    axes = figure.subplots(len(rows), len(COLUMNS_2D), squeeze=False)
    for report, panels in zip(rows, axes, strict=True):
        samples = read_samples(folder / report["samples"])
        reach = 1.12 * float(np.abs(samples["data"]).max())
        for name, panel in zip(COLUMNS_2D, panels, strict=True):
            points = samples.get(name, np.empty((0, 2))).astype(np.float64)
            colour = DATA if name == "data" else COLOURS[COLUMNS_2D.index(name) - 1]
            panel.scatter(points[:, 0], points[:, 1], s=0.7, color=colour, linewidths=0)
            panel.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[])
            panel.set_aspect("equal")
            for spine in panel.spines.values():
                spine.set_color(FAINT)
        panels[0].set_ylabel(report["data"].replace("-", " "), fontsize=9.5, color=INK)
    titles = {n: one["title"] for report in rows for n, one in report["models"].items()}
    for name, panel in zip(COLUMNS_2D, axes[0], strict=True):
        panel.set_title(titles.get(name, name), fontsize=9.5, color=INK)
    return save(figure, path)


def _steps_2d(reports: Results, path: Path) -> Path:
    """Energy distance against network evaluations, a panel for each set."""
    rows = sorted(reports.values(), key=lambda report: report["data"])
    figure = new_figure(2.7 * len(rows), 3.3)
    axes = figure.subplots(1, len(rows), squeeze=False, sharey=True)[0]
    for report, panel in zip(rows, axes, strict=True):
        for index, (title, points) in enumerate(_curves_2d(report).items()):
            x, y, error = (np.array(part) for part in zip(*points, strict=True))
            panel.errorbar(
                x,
                y,
                error,
                color=COLOURS[index % len(COLOURS)],
                label=title,
                marker=MARKERS[index % len(MARKERS)],
                markersize=4,
                linewidth=1.3,
            )
        panel.axhline(1.0, color=INK, linewidth=1.0, linestyle=(0, (5, 3)))
        panel.set(xscale="log", yscale="log")
        panel.set_title(report["data"].replace("-", " "), fontsize=10, color=INK)
        panel.set_xlabel("network evaluations", fontsize=9, color=INK)
        plain(panel)
    axes[0].set_ylabel("energy distance / real data", fontsize=9, color=INK)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return save(figure, path)


def _curves_2d(report: Mapping[str, Any]) -> dict[str, list[tuple[float, float, float]]]:
    curves: dict[str, list[tuple[float, float, float]]] = {}
    for one in report["models"].values():
        for found in one["sampling"]:
            if found["options"].get("stochasticity") == 0:
                continue
            sampler = {"ddim": " (DDIM)", "ancestral": " (ancestral)"}
            title = one["title"] + sampler.get(found["options"].get("sampler", ""), "")
            point = (found["evaluations"], found["mean"], found["error"] or 0.0)
            curves.setdefault(title, []).append(point)
    return curves


def _sweep(report: Mapping[str, Any], path: Path) -> Path:
    """Quality, likelihood and time against the cutoff; the ends as lines across."""
    parts = report["parts"]
    inner = {float(name): one for name, one in parts.items() if name not in ("flow", "diffusion")}
    measures = {
        "energy distance / real data": lambda one: (one["sampling"]["mean"],
                                                    one["sampling"]["error"] or 0.0),
        NATS: _sweep_nats,
        "CPU seconds for 10,000 samples": lambda one: (
            one["sampling"]["cpu_seconds_per_10000"], 0.0),
    }  # fmt: skip
    figure = new_figure(10.5, 3.3)
    for panel, (label, measure) in zip(figure.subplots(1, 3), measures.items(), strict=True):
        y, error = (np.array(v) for v in zip(*map(measure, inner.values()), strict=True))
        panel.errorbar(
            list(inner),
            y,
            error,
            color=COLOURS[0],
            marker="o",
            markersize=4,
            linewidth=1.4,
            label="DiNof",
        )
        for name, colour in (("flow", COLOURS[1]), ("diffusion", COLOURS[2])):
            if name in parts:
                panel.axhline(
                    measure(parts[name])[0],
                    color=colour,
                    linewidth=1.2,
                    linestyle=(0, (5, 3)),
                    label=f"{name} alone",
                )
        panel.set_xlabel("cutoff", fontsize=9, color=INK)
        panel.set_ylabel(label, fontsize=9, color=INK)
        if label != NATS:
            panel.set_yscale("log")
        plain(panel)
    figure.axes[0].legend(frameon=False, fontsize=8.5)
    return save(figure, path)


def _sweep_nats(one: Mapping[str, Any]) -> tuple[float, float]:
    found = one["likelihood"].get("ode") or one["likelihood"]["exact"]
    return found["nats"], found["error"]


def _images(report: Mapping[str, Any], folder: Path, out: Path) -> list[Path]:
    """Rows of samples, and their distance against the number of steps."""
    samples = read_samples(folder / report["samples"])
    rows, curves = {"data": samples["data"]}, {}
    for one in report["models"].values():
        for found in one["sampling"]:
            kind = " (DDIM)" if found["options"].get("sampler") == "ddim" else ""
            title = one["title"] + kind
            rows[f"{title}, N = {found['num_steps']}"] = samples[found["key"]]
            curves.setdefault(title, []).append((found["evaluations"], found["fd"]))
    floor = ("training images", report["floors"]["test"]["fd"])
    return [
        figures.image_rows(out / "compare_images.png", rows, "MNIST at 16 x 16: samples"),
        figures.metric_curves(
            out / "compare_images_fd.png", curves, "network evaluations N", report["label"],
            "MNIST at 16 x 16: samples against steps", log_x=True, log_y=True, floor=floor,
        ),
    ]  # fmt: skip
