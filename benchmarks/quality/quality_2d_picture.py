"""Draws samples of several runs below their data, in one picture.

python benchmarks/quality/quality_2d_picture.py RUN [RUN ...] --out docs/pictures/quality_2d.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diffflow_ext.data import open_dataset
from diffflow_ext.training import draw_samples, load_run

POINTS = 8000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    figure = Figure(figsize=(2.6 * len(args.runs), 5.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(args.runs), squeeze=False)
    for column, run in enumerate(args.runs):
        loaded = load_run(run)
        data = open_dataset(loaded.config.data, seed=loaded.config.data_seed).test[:POINTS]
        samples = draw_samples(loaded, POINTS, seed=0)
        reach = 1.15 * float(data.abs().max())
        for row, (points, color) in enumerate(((data, "#1f4e8c"), (samples, "#d1540c"))):
            panel = axes[row][column]
            panel.scatter(points[:, 0], points[:, 1], s=0.6, color=color, linewidths=0)
            panel.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[])
            panel.set_aspect("equal")
            for spine in panel.spines.values():
                spine.set_color("#c8ccd4")
        axes[0][column].set_title(loaded.record.name, fontsize=11)
    axes[0][0].set_ylabel("data")
    axes[1][0].set_ylabel("samples")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out)


if __name__ == "__main__":
    main()
