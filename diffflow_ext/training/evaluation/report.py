"""The numbers of an evaluation as a table for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from diffflow_ext.data.display import title_of

#: Larger files are no evaluations and are not read.
MAX_EVALUATION_BYTES = 2**20
#: Measures of samples in the order of the table, with their titles.
MEASURES = {
    "energy_distance": "energy distance",
    "sliced_wasserstein": "sliced Wasserstein",
    "c2st": "told apart from data",
    "fd": "Fréchet distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}

READINGS = {
    "c2st": "by a classifier; 0.5, chance, is best",
    "precision": "samples among data",
    "recall": "data among samples",
    "density": "samples in a ball of data over their mean",
    "coverage": "data with a sample near",
}

#: Within so many standard deviations of the floor, samples and real data are not told apart.
SCATTERS = 2
#: What a reader must know of the floors, below the table.
NOTES = [
    "Reference of distances: as many real data, mean ± standard deviation of up to 4 draws.",
    "Within two of these the samples are as near as real data; nearer is chance, not better.",
]

Row = tuple[str, str, str, str]


def with_nans(result: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the numbers of an evaluation.json, with NaN for null where that isn't finite."""
    likely = [*MEASURES, *result["estimators"]]
    gone = [name for name, value in result.items() if value is None]
    gone = [name for name in gone if name.startswith(tuple(likely))]
    return dict(result) | {
        name: math.nan for name in gone if not name.endswith(("_spread", "_ratio"))
    }


def format_table(result: Mapping[str, Any]) -> str:
    """Returns the numbers of `evaluate` as a table for a terminal."""
    rows: list[Row] = [("-log p, lower is better", "model", "reference", "reading")]
    for name, title in result["estimators"].items():
        rows += _likelihood(result, name, title)
    measures = [name for name in MEASURES if name in result]
    rows += [_measure(result, name, MEASURES[name]) for name in measures]
    notes = NOTES if any(result.get(f"{name}_floor_spread") for name in measures) else []
    return "\n".join([_head(result), *_aligned(rows), *notes])


def _head(r: Mapping[str, Any]) -> str:
    steps = "" if r["num_steps"] is None else f", N = {r['num_steps']}"
    options = "".join(f", {name} {value}" for name, value in r["sampler"].items())
    compared = f", n = {r['n']}" if r["n"] else ""
    run = f"{title_of(r['data'])}, {r['model']}, step {r['step']}"
    return f"{run}{steps}{options}{compared}, seed {r['seed']}"


def _likelihood(r: Mapping[str, Any], name: str, title: str) -> list[Row]:
    nats = f"{r[name]:.4f} ± {r[f'{name}_error']:.4f}"
    label, few = f"{title}, nats", f"n = {r[f'{name}_n']}"
    halved: list[Row] = []
    if f"{name}_step_error" in r:
        halved = [("  with half the steps", f"{r[f'{name}_step_error']:+.4f}", "", "")]
    if f"{name}_bits" in r:
        bits = f"{r[f'{name}_bits']:.4f} ± {r[f'{name}_bits_error']:.4f}"
        return [(label, nats, "", few), ("  bits/dim", bits, "", ""), *halved]
    excess = few
    if r["gaussian_nll"] is not None:
        excess = f"{r[f'{name}_minus_gaussian']:+.4f} against a Gaussian, {few}"
    return [
        (label, nats, _number(r["gaussian_nll"]), excess),
        ("  in data units", f"{r[f'{name}_data_units']:.4f}", *_against_entropy(r, name)),
        *halved,
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _against_entropy(r: Mapping[str, Any], name: str) -> tuple[str, str]:
    if r["entropy"] is None:
        return "", ""
    excess = r[f"{name}_data_units"] - r["entropy"]
    return f"{r['entropy']:.4f}", f"{excess:+.4f} against the entropy, the least there is"


def _measure(r: Mapping[str, Any], name: str, title: str) -> Row:
    title, value, floor = r.get(f"{name}_label", title), r[name], r[f"{name}_floor"]
    spread, reading = r.get(f"{name}_floor_spread"), READINGS.get(name, "")
    reference = f"{floor:.5f}" + ("" if spread is None else f" ± {spread:.2g}")
    if f"{name}_ratio" in r:
        reading = _beside_real(value, floor, spread, r[f"{name}_ratio"])
    return title, f"{value:.5f}", reference, reading


def _beside_real(value: float, floor: float, spread: float | None, ratio: float | None) -> str:
    """Says how a distance compares with those of real data, whose mean and scatter are given."""
    if ratio is None:
        return ""
    text = f"{ratio:.2f} times real data"
    if spread is not None and abs(value - floor) <= SCATTERS * spread:
        return f"{text}, within scatter"
    return f"{text}, no better" if value < floor else text


def _aligned(rows: Sequence[Row]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
