"""The numbers of an evaluation: as a table, and as the JSON of evaluation.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffflow_ext.data.display import title_of
from diffflow_ext.data.formats.reading import read_bytes

from ..store.directory import RunDirectory

#: Larger files are no evaluations and are not read.
MAX_BYTES = 2**20
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

#: Errors of files that hold something else than the numbers of an evaluation.
_MALFORMED = (
    ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError,
)  # fmt: skip
Row = tuple[str, str, str, str]


def spell(result: Mapping[str, Any]) -> str:
    """Returns the numbers as JSON, with null for those that aren't finite."""
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in result.items()
    }
    return json.dumps(plain, indent=1, allow_nan=False) + "\n"


def read_evaluation(op: str, directory: RunDirectory) -> dict[str, Any] | None:
    """Returns the numbers of a run's evaluation.json, of which a table can be made.

    None if there is no such file. A ValueError, which begins with `op`, says that it's something
    else, or of a version that had other numbers.
    """
    path = directory.evaluation
    if not path.exists():
        return None
    try:
        numbers = with_nans(_decoded(op, path))
        format_table(numbers)
        str(numbers["package"])
    except _MALFORMED as error:
        raise ValueError(
            f"{op}: {path}: expected an evaluation of this version, got"
            f" {type(error).__name__}: {error}; evaluate the run again, or move the file away"
        ) from error
    return numbers


def is_evaluation(op: str, path: Path) -> bool:
    """Returns whether a file is an evaluation, of whatever version of the package."""
    try:
        return "package" in _decoded(op, path)
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _decoded(op: str, path: Path) -> Any:
    return json.loads(read_bytes(op, path, MAX_BYTES))


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
    head = f"{title_of(result['data'])}, {result['model']}, {settings_of(result)}"
    return "\n".join([head, *_aligned(table_rows(result)), *table_notes(result)])


def settings_of(r: Mapping[str, Any]) -> str:
    """Returns the step, the options and the seed of an evaluation in a line."""
    steps = "" if r["num_steps"] is None else f", N = {r['num_steps']}"
    options = "".join(f", {name} {value}" for name, value in r["sampler"].items())
    compared = f", n = {r['n']}" if r["n"] else ""
    return f"step {r['step']}{steps}{options}{compared}, seed {r['seed']}"


def table_rows(result: Mapping[str, Any]) -> list[Row]:
    """Returns the rows of the table of an evaluation; the first has the heads of the columns."""
    rows: list[Row] = [("-log p, lower is better", "model", "reference", "reading")]
    for name, title in result["estimators"].items():
        rows += _likelihood(result, name, title)
    return rows + [_measure(result, name, MEASURES[name]) for name in MEASURES if name in result]


def table_notes(result: Mapping[str, Any]) -> list[str]:
    """Returns what a reader must know of the floors, if the table has any with a scatter."""
    return NOTES if any(result.get(f"{name}_floor_spread") for name in MEASURES) else []


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
