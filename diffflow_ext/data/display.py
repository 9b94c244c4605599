"""Data in a line, and as a table of HTML for notebooks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .conditions import Conditions
from .encoding import Encoding
from .formats.columns import listed

#: Rows of a table of columns at most, and its head.
MOST_ROWS = 30
COLUMN_HEAD = ("column", "kind", "values in training", "role")


def title_of(name: str) -> str:
    """Returns the name of a set for titles: of a path, of whatever system, its last part."""
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] or name


def dataset_facts(data: Any) -> dict[str, str]:
    """Returns what a :class:`Dataset` is, in words by their names."""
    facts = {role: f"{len(getattr(data, role)):,}" for role in ("train", "valid", "test")}
    facts |= content_facts(data.encoding, data.conditions, tuple(data.train.shape[1:]))
    return facts | ({"left out": "; ".join(data.notes)} if data.notes else {})


def content_facts(
    encoding: Encoding | None, conditions: Conditions | None, shape: Sequence[int]
) -> dict[str, str]:
    """Returns what one datum is, and what it is given, in words by their names."""
    facts = {"images": " x ".join(map(str, shape))}
    if encoding is not None:
        facts = {"columns": listed(encoding.names)}
    return facts | ({} if conditions is None else {"given": conditions.describe()})


def in_a_line(title: str, facts: Mapping[str, str]) -> str:
    """Returns a text in the form of a call."""
    return f"{title}({', '.join(f'{name} {text}'.strip() for name, text in facts.items())})"


def in_html(
    title: str,
    facts: Mapping[str, str],
    encoding: Encoding | None = None,
    conditions: Conditions | None = None,
) -> str:
    """Returns HTML: a title, facts, a table of columns and conditions; texts are escaped."""
    parts = [f"<p><b>{escape(title)}</b></p>", _table([*facts.items()])]
    if encoding is not None:
        rows = column_rows(encoding, conditions)
        parts.append(_table([COLUMN_HEAD, *rows[:MOST_ROWS]], is_headed=True))
        if len(rows) > MOST_ROWS:
            parts.append(f"<p>and {len(rows) - MOST_ROWS:,} more columns</p>")
    return f"<div>{''.join(parts)}</div>"


def column_rows(
    encoding: Encoding | None, conditions: Conditions | None
) -> list[tuple[str, str, str, str]]:
    """Returns a row for each column of a table and of its conditions; none of images."""
    if encoding is None:
        return []
    given = () if conditions is None else conditions.columns
    roles = [*((c, "data") for c in encoding.columns), *((c, "given") for c in given)]
    return [(c.name, c.kind_in_words, c.values_in_words, role) for c, role in roles]


def _table(rows: Sequence[Sequence[str]], *, is_headed: bool = False) -> str:
    lines = list[str]()
    for row in rows:
        cell = "th" if is_headed and row is rows[0] else "td"
        lines.append("".join(f"<{cell}>{escape(text)}</{cell}>" for text in row))
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
