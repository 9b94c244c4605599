"""Who may import whom, inside the package and in csrc/.

Imports inside functions and those for type checkers alone (`TYPE_CHECKING`) count like all others.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from helpers import CSRC, ROOT

PACKAGE = ROOT / "diffflow_ext"

#: Packages from the bottom up. Each imports from levels below its own alone.
LEVELS: list[set[str]] = [
    {"functional", "nets", "data", "metrics", "figures"},
    {"processes", "flows"},
    {"engines"},
    {"likelihood"},
    {"models"},
    {"training"},
    {"cli", "estimators"},
    {"__main__"},
]
#: These import no other package of ours, and only USERS_OF_LEAVES import them.
LEAVES = {"nets", "data", "metrics", "figures"}
USERS_OF_LEAVES = {"training", "cli", "estimators"}
#: Modules of each package from the bottom up. Each imports from those before it alone.
ORDER: dict[str, str] = {
    "functional": """
        core memory tensors checks contexts sums operator noise affine steps residual adjoint
        perturb reference
    """,
    "processes": "grids diffusion linear chain",
    "flows": "adapters prior spline glow ffjord",
    "nets": "conditions mlp unet_blocks unet noise masked",
    "engines": """
        conditions autocast network choice problem
        adjoint.replay adjoint.calls adjoint.forward adjoint.backward adjoint.losses adjoint.paths
        chain
        fused.workspace fused.embedding fused.perceptrons fused.losses fused.paths_cuda fused.paths
        ode.velocity fused.ode fused.regression ode.divergence ode.solver
        paths cuda_graph
    """,
    "likelihood": "images bounds variational ode",
    "models": """
        state denoising reverse predictors chain_steps pair diffflow dinof ddpm learned_forward
        nfdm_terms nfdm_parts nfdm ode_sampler
    """,
    "data": """
        formats.reading formats.archives formats.arrays formats.columns formats.cells
        formats.marks formats.layout formats.words formats.text formats.frames formats.tables
        formats.idx formats.cifar formats.resizing formats.pictures formats.labels formats.images
        sets.home sets.toy column encoding masks conditions display kinds dataset known
        sets.magic sets.maf fetching image_sources sources rows
    """,
    "metrics": """
        points distances frechet two_sample manifolds floor
        features.digits features.files
    """,
    "figures": "panels axes points paths images frames histogram",
    "training": """
        config.rules config.sections config.fields config.files config.defaults config.schedules
        store.folders store.examples store.directory store.checkpoint store.runs store.saver
        store.dataset store.inputs
        recipes.contexts recipes.base recipes.networks recipes.paths recipes.diffflow
        recipes.dinof recipes.ddpm recipes.nfdm recipes.flows recipes.build
        parallel.device parallel.distributed parallel.sharding parallel.progress
        loop.callbacks loop.loggers loop.batches loop.session loop.state loop.diagnosis
        loop.captured loop.step loop.starting loop.trainer loop.train
        evaluation.sampling evaluation.scoring evaluation.given evaluation.sample_file
        evaluation.imputation evaluation.filling evaluation.table evaluation.card evaluation.hub
        evaluation.sharing evaluation.loaded_run evaluation.run_data evaluation.curve
        evaluation.likelihoods evaluation.quality evaluation.axes evaluation.pictures
        evaluation.extractor evaluation.evaluate evaluation.report_pictures evaluation.report
    """,
    "cli": "output flags doctor training figures impute report commands program",
    "estimators": "parameters targets density models",
}
#: What folders of `training` may import besides themselves; those not named here, all before them.
FOLDERS_OF_TRAINING = {
    "config": set[str](),
    "store": {"config"},
    "recipes": {"config"},
    "parallel": {"config", "recipes"},
    "evaluation": {"config", "store", "recipes", "parallel"},
}
#: The oracle of tests and benchmarks.
ORACLE = "diffflow_ext.functional.reference"
#: Packages that need no library but torch; others are imported in functions, where asked for.
NEEDS_TORCH_ALONE = {"functional", "processes", "flows", "nets", "engines", "likelihood", "models"}


# --- Python --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """One import: by which module, of what, in which line, and whether inside a function."""

    module: str
    target: str
    line: int
    lazy: bool

    @property
    def package(self) -> str:
        return package_of(self.module)

    @property
    def imported(self) -> str | None:
        """The package of ours that is imported, None for other libraries."""
        return package_of(self.target) if is_ours(self.target) else None

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def package_of(module: str) -> str:
    """`engines` of `diffflow_ext.engines.paths`, `__init__` of `diffflow_ext`."""
    return module.split(".")[1] if "." in module else "__init__"


def is_ours(module: str) -> bool:
    return module.split(".")[0] == "diffflow_ext"


def parents(module: str) -> list[str]:
    """`a` and `a.b` of `a.b.c`."""
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


@cache
def modules(folder: str) -> dict[str, Path]:
    """The modules of a folder of the checkout by name; a package is named without `__init__`."""
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in sorted((ROOT / folder).rglob("*.py"))
    }


def statements(tree: ast.AST, lazy: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes, and whether a function holds them."""
    for node in ast.iter_child_nodes(tree):
        yield node, lazy
        is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from statements(node, lazy or is_function)


def targets(node: ast.AST, package: list[str], known: dict[str, Path]) -> list[str]:
    """What one statement imports, as full names of modules where they are ours."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = package[: len(package) - node.level + 1] if node.level else []
    stem = ".".join([*base, *([node.module] if node.module else [])])
    below = [f"{stem}.{alias.name}" for alias in node.names]
    # `from . import a` runs the package before it looks for a module a.
    return [stem, *(name for name in below if name in known)]


@cache
def imports_of(folder: str) -> list[Import]:
    """All imports in the modules of a folder of the checkout."""
    known = {**modules("diffflow_ext"), **modules("benchmarks")}
    found = []
    for module, file in modules(folder).items():
        package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
        for node, lazy in statements(ast.parse(file.read_text())):
            for target in targets(node, package, known):
                found.append(Import(module, target, getattr(node, "lineno", 0), lazy))
    return found


def between_packages() -> list[Import]:
    """Imports of one package of ours by another."""
    return [
        one
        for one in imports_of("diffflow_ext")
        if one.imported not in (None, "__init__", one.package) and one.package != "__init__"
    ]


def inside_packages() -> Iterator[tuple[str, Import, str, str]]:
    """Imports inside one package, with the names of both modules in it."""
    for one in imports_of("diffflow_ext"):
        prefix = f"diffflow_ext.{one.package}."
        if one.module.startswith(prefix) and one.target.startswith(prefix):
            names = one.module.removeprefix(prefix), one.target.removeprefix(prefix)
            if not any(is_package(name) for name in (one.module, one.target)):
                yield one.package, one, *names


def is_package(module: str) -> bool:
    return modules("diffflow_ext")[module].name == "__init__.py"


def test_the_top_holds_packages_alone() -> None:
    names = {path.name for path in PACKAGE.iterdir() if not path.match("__pycache__")}
    names = {name for name in names if not re.fullmatch(r"_core\..*\.so", name)}
    assert names == {*ORDER, "__init__.py", "__main__.py", "py.typed"}
    assert set(ORDER) | {"__main__"} == set().union(*LEVELS)


def test_every_module_has_its_place() -> None:
    for package, order in ORDER.items():
        prefix = f"diffflow_ext.{package}."
        below = [name for name in modules("diffflow_ext") if name.startswith(prefix)]
        there = {name.removeprefix(prefix) for name in below if not is_package(name)}
        assert there == set(order.split()), f"put into ORDER of {Path(__file__).name}"


def test_imports_are_read() -> None:
    """The reader itself, on every form of import."""
    source = (
        "import a.b\nfrom .c import d\nfrom .. import e\ndef f():\n    from diffflow_ext import g"
    )
    known = dict.fromkeys(["p.q.c", "p.e"], ROOT)
    found = [
        (target, lazy)
        for node, lazy in statements(ast.parse(source))
        for target in targets(node, ["p", "q"], known)
    ]
    assert found == [
        ("a.b", False), ("p.q.c", False), ("p", False), ("p.e", False), ("diffflow_ext", True),
    ]  # fmt: skip
    pairs = {(one.package, one.imported) for one in between_packages()}
    assert {("engines", "functional"), ("training", "models"), ("cli", "training")} <= pairs


def test_imports_between_packages_go_down() -> None:
    """Leaves stand alone: they import nobody, and few import them."""
    rank = {name: rank for rank, level in enumerate(LEVELS) for name in level}
    wrong = [
        one
        for one in between_packages()
        if rank[one.imported or ""] >= rank[one.package]
        or (one.imported in LEAVES and one.package not in USERS_OF_LEAVES)
    ]
    assert not wrong, "\n".join(map(str, wrong))


def test_imports_inside_a_package_go_down() -> None:
    wrong = []
    for package, one, importer, imported in inside_packages():
        order = ORDER[package].split()
        own, other = importer.split(".")[0], imported.split(".")[0]
        allowed = FOLDERS_OF_TRAINING.get(own) if package == "training" else None
        apart = allowed is not None and other not in {own, *allowed}
        if apart or order.index(imported) >= order.index(importer):
            wrong.append(one)
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("folder", ["diffflow_ext", "benchmarks"])
def test_no_circle(folder: str) -> None:
    """Importing a module runs the packages that hold it, too."""
    graph: dict[str, set[str]] = {name: set() for name in modules(folder)}
    for one in imports_of(folder):
        own = {one.module, *parents(one.module)}
        run = {one.target, *(set(parents(one.target)) - own)}
        graph[one.module] |= run & graph.keys() - {one.module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_imports_across_packages_name_the_package() -> None:
    """Relative imports stay inside a package; nobody imports through the top."""
    for one in imports_of("diffflow_ext"):
        assert one.target != "diffflow_ext" or one.package in ("__init__", "__main__", "cli"), one
    for name, file in modules("diffflow_ext").items():
        depth = len(parents(name)) - (file.name != "__init__.py")
        for dots in re.findall(r"^\s*from (\.+)", file.read_text(), re.M):
            assert name == "diffflow_ext" or len(dots) <= depth, file


def test_functions_import_optional_libraries_alone() -> None:
    wrong = [
        one
        for one in imports_of("diffflow_ext")
        if one.lazy and (is_ours(one.target) or one.target in sys.stdlib_module_names)
    ]
    assert not wrong, "\n".join(map(str, wrong))


def test_only_the_doors_import_by_name() -> None:
    """By names in text, when they are first used: `diffflow --help` needs no torch."""
    by_name = re.compile(r"import_module\(\s*f?[\"'](diffflow_ext|\{__name__\})")
    files = modules("diffflow_ext").items()
    doors = {name for name, file in files if by_name.search(file.read_text())}
    assert doors == {"diffflow_ext", "diffflow_ext.cli.program"}


def test_the_oracle_stands_apart() -> None:
    assert not [str(one) for one in imports_of("diffflow_ext") if one.target == ORACLE]
    used = {one.target for one in imports_of("diffflow_ext") if one.module == ORACLE}
    below = {"diffflow_ext.functional.core", "diffflow_ext.functional.noise"}
    assert {name for name in used if is_ours(name)} <= below


def test_one_module_loads_the_core() -> None:
    for name, file in modules("diffflow_ext").items():
        names = {one.target for one in imports_of("diffflow_ext") if one.module == name}
        assert not any(target.endswith("_core") for target in names), file
        if name != "diffflow_ext.functional.core":
            assert not re.search(r"""import_module\(.*_core""", file.read_text()), file


def test_models_need_torch_alone() -> None:
    allowed = {"torch", "diffflow_ext", *sys.stdlib_module_names}
    wrong = [
        one
        for one in imports_of("diffflow_ext")
        if one.package in NEEDS_TORCH_ALONE
        and not one.lazy
        and one.module != ORACLE
        and one.target.split(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(map(str, wrong))


def test_importing_all_that_is_public_loads_no_leaf() -> None:
    code = "import sys; from diffflow_ext import *; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    packages = {name.split(".")[1] for name in loaded if name.startswith("diffflow_ext.")}
    assert {"functional", "models"} <= packages
    assert not packages & {*LEAVES, "training", "cli", "estimators"}
    assert ORACLE not in loaded
    assert not {"matplotlib", "torchdiffeq", "zuko", "normflows"} & set(loaded)


# --- C++ -----------------------------------------------------------------------------------------

#: What the files of each folder may include besides their own. `fused` stands for fused/*.h alone,
#: whose activations are written once, for vectors and for GPU threads.
INCLUDES = {
    "math": set[str](),
    "ops": {"math"},
    "fused": {"math", "ops/noise.h", "fused/cpu/simd.h", "fused/gpu/scalar.h"},
    "fused/cpu": {"math", "ops/noise.h", "ops/simd.h", "ops/noise_cpu.h", "fused"},
    "fused/gpu": {"math", "ops", "fused"},
    "cmake": set[str](),
    "bindings": {"math", "ops", "fused", "fused/cpu", "fused/gpu"},
}


def test_folders_of_the_core_are_known() -> None:
    folders = {str(file.parent.relative_to(CSRC)) for file in CSRC.rglob("*.*") if file.is_file()}
    assert folders == set(INCLUDES)


@pytest.mark.parametrize("folder", INCLUDES)
def test_includes_go_down(folder: str) -> None:
    allowed = INCLUDES[folder] | {folder}
    for file in sorted(path for path in (CSRC / folder).iterdir() if path.is_file()):
        for header in re.findall(r'#include "(.+)"', file.read_text()):
            if header == "cuda_host.h":  # the tests' stand-in for the CUDA runtime
                continue
            path = (file.parent / header).resolve()
            assert path.is_file(), f"{file}: {header}"
            name = path.relative_to(CSRC)
            assert {str(name), str(name.parent)} & allowed, f"{file} includes {header}"
