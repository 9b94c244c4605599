"""The table of docs/install.md: wheels that were built, and what each was used with."""

from __future__ import annotations

from collections.abc import Mapping

from .tables import Block, Report, of, table


def wheels(report: Report) -> str:
    """Returns a row for each wheel."""
    rows = []
    for kind, wheel in report["wheels"].items():
        used = [
            f"{run['torch']}{'' if run['result'] == 'works' else ': ' + run['result']}"
            for run in wheel["runs"]
        ]
        size = f"{wheel['bytes'] / 1e6:.2f} MB"
        rows.append([kind, size, ", ".join(used), wheel["commit"][:7]])
    return table(["wheel", "size", "torch that it was used with, on the CPU", "commit"], rows)


BLOCKS: Mapping[str, Block] = {"wheels": of("wheels", wheels)}
