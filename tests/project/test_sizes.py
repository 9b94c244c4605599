"""Files and functions that a reader can hold in the head: limits of their length."""

from __future__ import annotations

import ast
from pathlib import Path

from checkout import files_of_the_checkout
from helpers import ROOT

LINES_OF_A_FILE = 400
LINES_OF_A_FUNCTION = 30

#: What may be longer, how long at most, and why.
EXCEPTIONS: dict[str, tuple[int, str]] = {
    "tests/benchmarks/test_pages.py:reports": (44, "a report of each kind, written out"),
    "tests/flows/test_prior.py": (403, "all tests of one module"),
    "tests/nets/test_unet.py:by_hand": (45, "a U-Net written out, layer by layer"),
}


def sources(*suffixes: str) -> list[Path]:
    """Files of code that belong to the checkout, committed or new."""
    return [ROOT / name for name in files_of_the_checkout() if name.endswith(suffixes)]


def too_long(sizes: dict[str, int], limit: int) -> list[str]:
    return [
        f"{name}: {size} lines"
        for name, size in sizes.items()
        if size > EXCEPTIONS.get(name, (limit, ""))[0]
    ]


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    """Lines of a function's body without its docstring, comments and empty lines."""
    body = function.body[ast.get_docstring(function) is not None :]
    if not body:
        return 0
    whole = lines[body[0].lineno - 1 : body[-1].end_lineno]
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in whole)


def functions() -> dict[str, int]:
    """The number of lines of every Python function, by file and name."""
    sizes = {}
    for path in sources(".py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                name = f"{path.relative_to(ROOT)}:{node.name}"
                sizes[name] = max(sizes.get(name, 0), code_lines(node, text.splitlines()))
    return sizes


def files() -> dict[str, int]:
    """The number of lines of every source file."""
    paths = sources(".py", ".h", ".cuh", ".cpp", ".cu", ".sh")
    return {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in paths}


def test_files_are_short() -> None:
    long = too_long(files(), LINES_OF_A_FILE)
    assert not long, "\n".join(long)


def test_functions_are_short() -> None:
    long = too_long(functions(), LINES_OF_A_FUNCTION)
    assert not long, "\n".join(long)


def test_exceptions_are_needed() -> None:
    sizes = {**files(), **functions()}
    for name, (limit, reason) in EXCEPTIONS.items():
        usual = LINES_OF_A_FUNCTION if ":" in name else LINES_OF_A_FILE
        assert usual < sizes.get(name, 0) <= limit, f"{name} needs no exception: {reason}"


def test_lines_of_a_function_are_counted() -> None:
    source = 'def f():\n    """Two.\n\n    lines"""\n    # why\n    a = 1\n\n    return a\n'
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.FunctionDef)
    assert code_lines(node, source.splitlines()) == 2
