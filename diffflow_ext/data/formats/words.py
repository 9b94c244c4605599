"""Which columns of a text are texts, and whether the first line of such a text has names."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import BinaryIO

from .columns import Categories, Selection, Values
from .layout import MISSING, Layout, decoded, is_word, split, without

FIRST_ROWS = 10_000  # that show which columns are texts


def text_columns(stream: BinaryIO, layout: Layout, selection: Selection) -> set[int]:
    """Returns the positions of columns of texts: those of which most cells are no numbers."""
    asked = {i for i in layout.kept if layout.names[i] in selection.texts}
    unsure = [
        i for i in layout.kept if i not in asked and layout.names[i] not in selection.numbers
    ]
    found, present = Counter[int](), Counter[int]()
    lines = (
        without(line, layout.skipped) for line in decoded(stream, layout.start, layout.source)
    )
    rows = split(lines, layout.delimiter, layout.line, layout.source)
    for _, cells in islice(rows, FIRST_ROWS):
        if len(cells) < len(layout.names):
            continue
        for i in unsure:
            cell = cells[i].strip()
            present[i] += cell.lower() not in MISSING
            found[i] += is_word(cell)
    return asked | {i for i in unsure if 2 * found[i] > present[i]}


def lonely_first_row(values: Values, layout: Layout, categories: Categories) -> list[str]:
    """Returns a doubt if the texts of the first row stand in no other, as names do."""
    columns = [i for i, name in enumerate(_names(layout)) if name in categories]
    if layout.has_names or len(values) < 3 or not columns:
        return []
    if any((values[1:, i] == values[0, i]).any() for i in columns):
        return []
    first = ", ".join(repr(categories[_names(layout)[i]][int(values[0, i])]) for i in columns)
    return [
        f"the first line was read as a row, though its texts ({first}) stand in no other; if it "
        "names the columns, write names that are no numbers"
    ]


def _names(layout: Layout) -> list[str]:
    return [layout.names[i] for i in layout.kept]
