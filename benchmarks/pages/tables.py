"""What pages made from reports share: which report stands where, cells of tables, filling in.

A page is prose with tables between lines `<!-- begin NAME ... -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.runs import RESULTS

DOCS = RESULTS.parent.parent / "docs"
BLOCK = re.compile(r"(<!-- begin ([\w-]+)[^>]*-->\n).*?(<!-- end \2 -->)", re.DOTALL)
MISSING = "*Not measured yet.*\n"
MINUS, NONE = "\N{MINUS SIGN}", "\N{EN DASH}"
#: Benchmarks that stand on docs/benchmarks.md; every other one stands on docs/results.md.
OF_BENCHMARKS_PAGE = ("steps", "scaling", "equal_compute", "memory", "ops")

Results = Mapping[str, dict[str, Any]]
Blocks = Mapping[str, Callable[[Results], str]]
Cell = str
Numbers = Mapping[str, Any] | None


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the reports in a folder by file name without ending."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def stands_on(report: Mapping[str, Any]) -> str | None:
    """Returns the page whose conditions name a report, None for files that are no report."""
    if "benchmark" not in report:
        return None
    return "benchmarks" if report["benchmark"] in OF_BENCHMARKS_PAGE else "results"


# --- cells ---------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Returns a table, its first column to the left and the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def with_error(value: float | None, error: float | None = None, digits: int = 2) -> Cell:
    if value is None:
        return NONE
    text = f"{value:.{digits}f}".replace("-", MINUS)
    return text if error is None else f"{text} ± {error:.{digits}f}"


def number(value: float | None) -> Cell:
    """Returns a number with about three digits."""
    if value is None:
        return NONE
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def milliseconds(one: Mapping[str, Any] | None) -> Cell:
    """Median, and minimum in brackets."""
    if one is None:
        return NONE
    found = one["seconds"]
    return f"{number(1e3 * found['median'])} ({number(1e3 * found['min'])})"


def ratio(one: Mapping[str, Any] | None) -> Cell:
    """Median, and quartiles in brackets."""
    if one is None:
        return NONE
    low, high = one["ratio"]["quartiles"]
    return f"{number(one['ratio']['median'])} ({number(low)}\N{EN DASH}{number(high)})"


def mebibytes(one: Mapping[str, Any] | None) -> Cell:
    """Peak memory."""
    return number(at(one, "mebibytes"))


def best_marked(rows: Sequence[tuple[str, Sequence[float | None], Sequence[Cell]]]) -> list[Any]:
    """Returns rows of a table in which the least value of each column is bold."""
    columns = list(zip(*(values for _, values, _ in rows), strict=True))
    least = [min((v for v in column if v is not None), default=None) for column in columns]
    return [
        [title, *(f"**{cell}**" if value is not None and value == low else cell
                  for value, cell, low in zip(values, cells, least, strict=True))]
        for title, values, cells in rows
    ]  # fmt: skip


def at(report: Mapping[str, Any] | None, *path: str) -> Any:
    """Returns what lies at a path of names, None where something is missing."""
    for name in path:
        if report is None:
            return None
        report = report.get(name)
    return report


# --- page ----------------------------------------------------------------------------------------


def conditions(results: Results, page: str) -> str:
    """Where each report of a page comes from."""
    rows = [
        [f"[{name}.json](../benchmarks/results/{name}.json)", f"`{r['command']}`",
         f"{r['machine']['cpu']}, {count(r['machine']['threads'], 'thread')}",
         f"{r['machine']['commit'][:7]}{' and changes' if r['machine']['dirty'] else ''}"]
        for name, r in results.items() if stands_on(r) == page
    ]  # fmt: skip
    return table(["report", "command", "machine", "commit"], rows) if rows else MISSING


def count(number: int, what: str) -> str:
    """Returns a number of things."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def filled(page: str, results: Results, blocks: Blocks) -> str:
    """Returns a page with its tables made anew."""

    def block(match: re.Match[str]) -> str:
        return match[1] + blocks[match[2]](results) + match[3]

    return BLOCK.sub(block, page)


def write_page(
    words: Sequence[str] | None,
    doc: str | None,
    page: Path,
    blocks: Blocks,
    draw: Callable[[Results, Path, Path], list[Path]],
) -> None:
    """The command of a page: its tables and pictures from a folder of reports."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=page)
    parser.add_argument("--pictures", type=Path, default=DOCS / "pictures")
    args = parser.parse_args(sys.argv[1:] if words is None else words)
    results = read_results(args.results)
    args.page.write_text(filled(args.page.read_text(), results, blocks))
    for path in draw(results, args.results, args.pictures):
        print(path)
