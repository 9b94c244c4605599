"""What the tables of the pages share: reports, cells, and blocks that are filled in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

MISSING = "*Not measured yet.*\n"
MINUS, NONE, DASH = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{EN DASH}"
Report = Mapping[str, Any]
#: Reports by file name without ending.
Results = Mapping[str, Report]
Block = Callable[[Results], str]
Numbers = Mapping[str, Any] | None


# --- blocks --------------------------------------------------------------------------------------


def of(name: str, make: Callable[[Any], str]) -> Block:
    """A block that is made from one report."""
    return lambda results: make(results[name]) if name in results else MISSING


def of_all(names: Sequence[str], make: Callable[[list[Any]], str]) -> Block:
    """A block that is made from those of some reports that are there."""

    def block(results: Results) -> str:
        reports = [results[name] for name in names if name in results]
        return make(reports) if reports else MISSING

    return block


def conditions(benchmarks: Sequence[str]) -> Block:
    """Where each report of some benchmarks comes from."""

    def block(results: Results) -> str:
        rows = [
            [f"[{name}.json](../benchmarks/results/{name}.json)", f"`{r['command']}`",
             _each_once(f"{m['cpu']}, {count(m['threads'], 'thread')}" for m in _machines(r)),
             _each_once(f"{m['commit'][:7]}{' and changes' if m['dirty'] else ''}"
                        for m in _machines(r))]
            for name, r in results.items() if r.get("benchmark") in benchmarks
        ]  # fmt: skip
        return table(["report", "command", "machine", "commit"], rows) if rows else MISSING

    return block


def _machines(report: Report) -> list[Any]:
    """The machines of a report's parts, or that of the report."""
    parts = report.get("models")
    own = [part["machine"] for part in parts.values() if "machine" in part] if parts else []
    return own or [report["machine"]]


def _each_once(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(texts))


# --- cells ---------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table, its first column to the left and the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def best_marked(rows: Sequence[tuple[str, Sequence[float | None], Sequence[str]]]) -> list[Any]:
    """Returns rows of a table in which the least value of each column is bold."""
    columns = list(zip(*(values for _, values, _ in rows), strict=True))
    least = [min((v for v in column if v is not None), default=None) for column in columns]
    return [
        [title, *(f"**{cell}**" if value is not None and value == low else cell
                  for value, cell, low in zip(values, cells, least, strict=True))]
        for title, values, cells in rows
    ]  # fmt: skip


def with_error(value: float | None, error: float | None = None, digits: int = 2) -> str:
    if value is None:
        return NONE
    text = f"{value:.{digits}f}".replace("-", MINUS)
    return text if error is None else f"{text} ± {error:.{digits}f}"


def number(value: float | None) -> str:
    """Returns a number with about three digits."""
    if value is None:
        return NONE
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def milliseconds(one: Numbers) -> str:
    """Median, and minimum in brackets."""
    if one is None:
        return NONE
    return f"{number(1e3 * one['seconds']['median'])} ({number(1e3 * one['seconds']['min'])})"


def ratio(one: Numbers) -> str:
    """Median, and quartiles in brackets."""
    if one is None:
        return NONE
    low, high = one["ratio"]["quartiles"]
    return f"{number(one['ratio']['median'])} ({number(low)}{DASH}{number(high)})"


def count(amount: int, what: str) -> str:
    """Returns an amount of things."""
    return f"{amount} {what}{'' if amount == 1 else 's'}"


def at(report: Numbers, *path: str) -> Any:
    """Returns what lies at a path of names, None where something is missing."""
    for name in path:
        if report is None:
            return None
        report = report.get(name)
    return report


def titles(reports: Sequence[Report], part: str) -> dict[str, str]:
    """Names and titles of the models or variants that some report has, in order."""
    return {name: one["title"] for report in reports for name, one in report[part].items()}
