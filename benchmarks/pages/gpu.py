"""What benchmarks.gpu.check has found on machines with a GPU, as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from .tables import NONE, Report, Results, count, number, table

NO_GPU = "*Nothing has been measured on a GPU yet.*\n"
#: How columns are headed; others by their name in the report.
HEADS = {
    "batch": "B", "num_steps": "N", "milliseconds": "ms", "mebibytes": "peak, MiB",
    "over_ddpm": "over DDPM, taken the same way", "gigabytes_per_second": "GB/s",
    "share_of_copy": "over a copy's GB/s", "eager_over_kernel": "eager / kernel",
    "states_a_step": "states a step", "states_allowed": "allowed",
}  # fmt: skip
#: Most characters of a reason in a table.
LONGEST = 200


def gpu(results: Results) -> str:
    """The reports of all machines; those of dry runs on a CPU are left out."""
    reports = [r for name, r in results.items() if name.startswith("gpu-check-")]
    return "\n".join(gpu_report(r) for r in reports if r["device"] != "cpu") or NO_GPU


def gpu_report(report: Report) -> str:
    """One check: where and when, each section's outcome, what was measured, what failed."""
    sections, name = report["sections"], report["name"]
    states = Counter(section["status"] for section in sections)
    outcome = ", ".join(f"{number} {status}" for status, number in states.items())
    head = (
        f"{report['card']}, {report['time'][:10]}, commit {_commit(report)}: "
        f"{count(len(sections), 'section')}, {outcome}; "
        f"[{name}.json](../benchmarks/results/{name}.json).\n\n"
    )
    rows = [
        [s["name"], s["status"], cell(s.get("seconds")), _tests(s["rows"]), cell(s.get("why"))]
        for s in sections
    ]
    text = head + table(["section", "outcome", "s", "tests", "why"], rows)
    for section in sections:
        text += _measurements(section["name"], section["rows"]) + _failures(section["rows"])
    return text


def _commit(report: Report) -> str:
    machines = [
        row["machine"] for s in report["sections"] for row in s["rows"] if "machine" in row
    ]
    known = [report["commit"], *(machine["commit"] for machine in machines)]
    return next((commit[:7] for commit in known if commit), "unknown")


def _tests(rows: Sequence[Report]) -> str:
    """How many of a section's tests have passed, failed and were skipped."""
    states = Counter(str(row.get("status")) for row in rows if "test" in row)
    return ", ".join(f"{number} {status}" for status, number in states.items()) or NONE


def _measurements(name: str, rows: Sequence[Report]) -> str:
    """A table of those rows of a section that are measurements."""
    rows = [row for row in rows if not {"test", "machine", "built"} & set(row)]
    names = list(dict.fromkeys(key for row in rows for key in row if key != "why"))
    names += ["why"] * any(row.get("why") for row in rows)
    if not names:
        return ""
    cells = [[cell(row.get(key)) for key in names] for row in rows]
    return f"\n**{name}**\n\n" + table([HEADS.get(key, key) for key in names], cells)


def _failures(rows: Sequence[Report]) -> str:
    failed = [row for row in rows if "test" in row and row.get("status") == "failed"]
    lines = (f"- {cell(row['test'])} failed: {cell(row.get('why'))}\n" for row in failed)
    return "".join(["\n"] * bool(failed) + list(lines))


def cell(value: Any) -> str:
    """Returns any value of a report as a table's cell."""
    if value is None or value == "":
        return NONE
    if isinstance(value, float):
        return number(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return " x ".join(map(cell, value))
    text = " ".join(str(value).replace("|", "/").split())
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."
