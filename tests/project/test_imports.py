"""The direction of dependencies: an import goes only to the left in the table below."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import CSRC, ROOT

PACKAGE = ROOT / "diffflow_ext"

#: From left to right. A module may import from groups to the left of its own, and from no other.
LAYERS: list[set[str]] = [
    {"_words"},
    {"noise"},
    {"_backend"},
    {"_checks"},
    {"_kernels"},
    {"grids", "diffusion", "_operators", "_replay", "_first_order", "_activations"},
    {"_autograd"},
    {"_affine"},
    {"functional"},
    {"_foreign_flows"},
    {"priors", "processes", "_engines"},
    {"_fused_embedding"},
    {"_perceptrons"},
    {"_fused_flow"},
    {"_divergence"},
    {"_sweeps", "probability_flow"},
    {"_gpu_paths"},
    {"adjoint", "samplers", "trajectory"},
    {"_regression"},
    {"_denoising"},
    {"_traced"},
    {"sde"},
    {"likelihood", "losses", "graphs"},
    {"_variational", "_predictors"},
    {"_chain_steps"},
    {"dinof", "ddpm"},
    {"doctor"},
    {"training"},
    {"cli"},
    {"__main__"},
]
#: These import nothing of the package but their own parts; training and cli may import them.
LEAVES: dict[str, set[str]] = {
    "nets": {"nets"},
    "flows": {"flows"},
    "data": {"data"},
    "metrics": {"metrics", "_points"},
    "sample_quality": {"sample_quality", "_npy", "_points"},
    "features": {"features", "_npy", "_points"},
    "_npy": {"_npy"},
    "_points": {"_points"},
    "figures": {"figures", "figures_images", "_panels"},
    "figures_images": {"figures_images", "_panels"},
    "_panels": {"_panels"},
}
USERS_OF_LEAVES = {"training", "cli", "doctor"}
#: The oracle of the tests; part of no layer.
ORACLE = "reference"
#: What the core may import from outside: the layers up to the two other models.
CORE_LIBRARIES = {"torch"}

RANK = {name: rank for rank, group in enumerate(LAYERS) for name in group}


@dataclass(frozen=True)
class Import:
    """One import: from which file, of what, in dots."""

    file: Path
    target: str
    line: int

    @property
    def importer(self) -> str:
        """The module or subpackage of the package that holds the file."""
        parts = self.file.relative_to(PACKAGE).with_suffix("").parts
        return parts[0]

    @property
    def imported(self) -> str | None:
        """The module or subpackage of the package that is imported, None for other libraries."""
        first, _, rest = self.target.partition(".")
        return rest.split(".")[0] if first == "diffflow_ext" else None

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.target}"


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes, inside functions too, but not those that only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if not is_type_checking(node):
            yield node
            yield from statements(node)


def imports_of(file: Path) -> Iterator[Import]:
    package = ["diffflow_ext", *file.relative_to(PACKAGE).parts[:-1]]
    for node in statements(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from . import a, b` names modules; `from .a import b` names what is in one.
                whole = f"{stem}.{alias.name}"
                yield Import(file, whole if stem == "diffflow_ext" else stem, node.lineno)


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def all_imports() -> list[Import]:
    return [one for file in files() for one in imports_of(file)]


def inside() -> list[Import]:
    """Imports of one part of the package by another."""
    return [
        one
        for one in all_imports()
        if one.imported is not None and one.importer not in ("__init__", ORACLE)
    ]


def test_every_module_has_its_place() -> None:
    known = set(RANK) | set(LEAVES) | {ORACLE, "__init__"}
    parts = {file.relative_to(PACKAGE).with_suffix("").parts[0] for file in files()}
    assert parts <= known, f"put into the table of {Path(__file__).name}: {parts - known}"


def test_imports_are_found() -> None:
    """The reader itself: all forms, and the number to be expected of a package of this size."""
    pairs = {(one.importer, one.imported) for one in inside()}
    assert {("_kernels", "_backend"), ("_kernels", "noise"), ("_checks", "_backend")} <= pairs
    assert ("training", "sde") in pairs
    assert len(pairs) > 30


def test_an_import_goes_only_to_the_left() -> None:
    wrong = [
        str(one)
        for one in inside()
        if one.importer in RANK
        and one.imported in RANK
        and one.importer != one.imported
        and RANK[one.imported] >= RANK[one.importer]
    ]
    assert not wrong


def test_leaves_import_nothing_of_the_package() -> None:
    wrong = [
        str(one)
        for one in inside()
        if one.importer in LEAVES and one.imported not in LEAVES[one.importer]
    ]
    assert not wrong


def test_only_the_top_imports_leaves() -> None:
    wrong = [
        str(one)
        for one in inside()
        if one.imported in LEAVES and one.importer not in USERS_OF_LEAVES | set(LEAVES)
    ]
    assert not wrong


def test_nobody_imports_the_reference() -> None:
    assert not [str(one) for one in all_imports() if one.imported == ORACLE]


def test_the_reference_imports_no_kernels() -> None:
    used = {one.imported for one in imports_of(PACKAGE / f"{ORACLE}.py")} - {None}
    assert used == {"noise"}


def test_only_the_backend_loads_the_core() -> None:
    for file in files():
        names = {one.target for one in imports_of(file)}
        assert not any(name.endswith("_core") for name in names), file
        if file.name != "_backend.py":
            assert not re.search(r"""import_module\(.*_core""", file.read_text()), file


def test_the_core_needs_torch_alone() -> None:
    core = {name for name in RANK if RANK[name] <= RANK["ddpm"]}
    wrong = [
        str(one)
        for one in all_imports()
        if one.importer in core
        and one.imported is None
        and one.target.split(".")[0] not in CORE_LIBRARIES | set(sys.stdlib_module_names)
        # Where it is asked for: the import stands in a function and its lack has a message.
        and (one.importer, one.target.split(".")[0]) != ("probability_flow", "torchdiffeq")
    ]
    assert not wrong


def test_importing_the_package_loads_no_leaf() -> None:
    code = "import sys, diffflow_ext; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    parts = {name.split(".")[1] for name in loaded if name.startswith("diffflow_ext.")}
    assert "functional" in parts
    assert not parts & (set(LEAVES) | {"training", "cli", ORACLE})
    assert not {"matplotlib", "torchdiffeq", "zuko", "normflows"} & set(loaded)


# --- C++ -----------------------------------------------------------------------------------------

#: What the headers of each folder may include besides their own.
ROOMS = {
    "math": set[str](),
    "kernels": {"math"},
    "trajectory": {"math", "kernels"},
    "bindings": {"kernels", "trajectory"},
}


@pytest.mark.parametrize("room", ROOMS)
def test_headers_include_only_their_own_room_or_those_before(room: str) -> None:
    allowed = ROOMS[room] | {room}
    for file in sorted((CSRC / room).iterdir()):
        for header in re.findall(r'#include "(.+)"', file.read_text()):
            if header == "cuda_host.h":  # the tests' stand-in for the CUDA runtime
                continue
            path = (file.parent / header).resolve()
            assert path.is_file(), f"{file}: {header}"
            assert path.parent.name in allowed, f"{file} includes {header}"


def test_the_core_knows_nothing_of_torch() -> None:
    for file in sorted(CSRC.rglob("*.*")):
        headers = re.findall(r"#include [<\"](.+)[>\"]", file.read_text())
        assert not [name for name in headers if name.startswith(("torch", "ATen", "c10"))], file
