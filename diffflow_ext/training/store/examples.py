"""Trained runs that come with the package, and the folders of runs by name."""

from __future__ import annotations

from pathlib import Path

#: Before the name of a run that comes with the package, wherever a run directory is expected.
PREFIX = "examples:"
#: What they are, by name; their model cards say how they were made.
EXAMPLES = {
    f"{PREFIX}rings": "a trained run: DiffFlow of four-rings, for commands that take RUN",
    f"{PREFIX}magic": "a trained run: DiffFlow of magic, for commands that take RUN",
}
_FOLDER = Path(__file__).resolve().parents[1] / "examples"


def is_example(name: str | Path) -> bool:
    """Returns whether a name is one of the form ``examples:NAME``, and not a path."""
    return str(name).startswith(PREFIX)


def run_folder(name: str | Path) -> Path:
    """Returns the folder of a run: that of an example by its name, or the path itself.

    Raises:
        ValueError: If there is no such example.
    """
    if not is_example(name):
        return Path(name)
    if str(name) not in EXAMPLES:
        raise ValueError(
            f"run: expected the folder of a run or one of {', '.join(EXAMPLES)}, got {str(name)!r}"
        )
    return _FOLDER / str(name).removeprefix(PREFIX)


def comes_with_package(folder: Path) -> bool:
    """Returns whether a folder is that of an example, or in one."""
    resolved = folder.resolve()
    return _FOLDER in (resolved, *resolved.parents)
