"""Writes the tables and pictures of pages in docs/ from reports alone.

    python -m benchmarks.pages.write

Tables stand between lines `<!-- begin NAME -->` and `<!-- end NAME -->`; everything else on a page
is prose and stays.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.files import RESULTS, ROOT
from .defaults import BLOCKS as DEFAULTS_BLOCKS
from .pictures import draw_pictures
from .quality import BLOCKS as QUALITY_BLOCKS
from .speed import BLOCKS as SPEED_BLOCKS
from .tables import Block, Results
from .wheels import BLOCKS as WHEELS_BLOCKS

#: The blocks of each page in docs/.
PAGES: dict[str, Mapping[str, Block]] = {
    "benchmarks": SPEED_BLOCKS, "results": QUALITY_BLOCKS, "training": DEFAULTS_BLOCKS,
    "install": WHEELS_BLOCKS,
}  # fmt: skip
BLOCK = re.compile(r"(<!-- begin ([\w-]+)[^>]*-->\n).*?(<!-- end \2 -->)", re.DOTALL)


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the reports in a folder by file name without ending."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def filled(text: str, blocks: Mapping[str, Block], results: Results) -> str:
    """Returns a page with its tables made anew."""
    return BLOCK.sub(lambda match: match[1] + blocks[match[2]](results) + match[3], text)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the reports")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the pages")
    args = parser.parse_args(words)
    results = read_results(args.results)
    for name, blocks in PAGES.items():
        page = args.docs / f"{name}.md"
        page.write_text(filled(page.read_text(), blocks, results))
    for path in draw_pictures(results, args.results, args.docs / "pictures"):
        print(path)


if __name__ == "__main__":
    main()
