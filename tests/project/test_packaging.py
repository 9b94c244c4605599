"""Installing: with and without isolation, offline, editable, from the sdist, with a broken nvcc.

Every install runs in a copy of the checkout and goes into a virtual environment of its own, which
has no torch: the compiled core must neither be built with it nor need it.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import setuptools
from checkout import files_of_the_checkout
from helpers import ROOT

FIRST_STEPS = ROOT / "benchmarks" / "wheels" / "first_steps.py"
# The module alone, without the package around it, which would import torch.
BUILD_INFO = """
import importlib.util, json, sys, sysconfig
from pathlib import Path
folder = Path(sys.argv[1] if len(sys.argv) > 1 else sysconfig.get_path("platlib")) / "diffflow_ext"
path, = folder.glob("_core.*.so")
spec = importlib.util.spec_from_file_location("diffflow_ext._core", path)
core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
assert "torch" not in sys.modules
print(json.dumps(dict(core.build_info())))
"""


def run(
    *command: str | Path, cwd: Path, fails: bool = False, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command without the settings of builds that the caller's environment may hold."""
    hidden = ("DIFFFLOW_", "CUDACXX", "PYTHONPATH", "PIP_CONSTRAINT", "MAX_JOBS")
    env = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    # Objects without optimisation and debug information are made in less than half the time.
    env |= {"CMAKE_BUILD_TYPE": "None", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **settings}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stdout[-6000:]
    return done


@dataclass
class Environment:
    """A virtual environment, and pip from outside at work on it."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def pip(
        self, *arguments: str | Path, cwd: Path, fails: bool = False, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        pip = (sys.executable, "-m", "pip", "--python", self.python)
        return run(*pip, *arguments, cwd=cwd, fails=fails, **settings)

    def build_info(self, folder: Path | None = None) -> dict[str, Any]:
        where = [] if folder is None else [folder]
        done = run(self.python, "-c", BUILD_INFO, *where, cwd=self.folder)
        return json.loads(done.stdout)

    def inherit(self) -> None:
        """Lets it see, after its own, the packages of the interpreter that runs the tests."""
        own = run(
            self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))",
            cwd=self.folder,
        )  # fmt: skip
        Path(own.stdout.strip(), "parent.pth").write_text(sysconfig.get_path("purelib"))


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    return Environment(tmp_path / "venv")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout, in a folder whose name is not plain."""
    folder = tmp_path / "a chéckout"
    for name in files_of_the_checkout():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    return folder


@pytest.fixture
def broken_nvcc(tmp_path: Path) -> str:
    """A PATH on which the first nvcc is one that always fails."""
    nvcc = tmp_path / "broken" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    nvcc.chmod(0o755)
    return f"{nvcc.parent}:{os.environ['PATH']}"


def build_of(checkout: Path, before: str, **settings: str) -> str:
    """Runs some lines of Python and a build that must fail; returns what was printed."""
    script = f"{before}\nfrom setuptools import build_meta\nbuild_meta.build_wheel('dist')"
    return run(sys.executable, "-c", script, cwd=checkout, fails=True, **settings).stdout


def program(folder: Path, name: str, prints: str) -> None:
    """Writes a program that prints a line."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\necho '{prints}'\n")
    (folder / name).chmod(0o755)


def test_old_and_missing_tools_are_named(checkout: Path, tmp_path: Path) -> None:
    old = build_of(checkout, "import setuptools; setuptools.__version__ = '65.5.0'")
    assert "expected 'setuptools>=77' to build with, got setuptools 65.5.0; run" in old
    assert "`pip install 'setuptools>=77'`, or install without --no-build-isolation" in old

    missing = "import sys; sys.modules['pybind11'] = sys.modules['ninja'] = None"
    text = build_of(checkout, missing, PATH="")
    assert "got pybind11 missing, ninja missing, cmake missing; run `pip install" in text
    assert "'pybind11>=2.12' 'ninja>=1.10' 'cmake>=3.20'" in text

    program(tmp_path / "old", "cmake", "cmake version 3.9.6")
    program(tmp_path / "old", "ninja", "1.9.0")
    text = build_of(checkout, "import sys; sys.modules['ninja'] = None", PATH=f"{tmp_path}/old")
    assert "got ninja 1.9.0, cmake 3.9.6; run `pip install 'ninja>=1.10' 'cmake>=3.20'`" in text

    # A temporary folder from which nothing can be started, so that pip's programs do not run.
    noexec = "import os; os.statvfs = lambda path: type('', (), {'f_flag': os.ST_NOEXEC})"
    text = build_of(checkout, f"{missing}; {noexec}", PATH="", TMPDIR=str(tmp_path))
    assert f"{tmp_path}, where none can run (it is mounted noexec): set TMPDIR to" in text


def test_the_tools_are_those_that_pip_brings() -> None:
    """What a message names is what pyproject.toml asks for."""
    line = re.search(r"^requires = (.*)$", (ROOT / "pyproject.toml").read_text(), re.M)
    assert line is not None
    named = re.search(r"^NEEDED = (.*)$", (ROOT / "setup.py").read_text(), re.M)
    assert named is not None
    needed = json.loads(named[1])
    assert needed.pop("cmake") == "3.20"
    assert json.loads(line[1]) == [f"{name}>={version}" for name, version in needed.items()]
    assert "VERSION 3.20)" in (ROOT / "CMakeLists.txt").read_text()


def test_a_source_folder_that_may_not_be_written_is_named(checkout: Path) -> None:
    text = build_of(checkout, "import os; os.access = lambda path, mode: False")
    assert f"expected a source folder that may be written, got {checkout}; copy it to" in text


def test_number_of_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as processors, memory and the user allow."""
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: None)
    names = runpy.run_path(str(ROOT / "setup.py"))
    jobs, its_globals = names["number_of_jobs"], names["number_of_jobs"].__globals__
    monkeypatch.delenv("MAX_JOBS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    for free, expected in (([3 << 30], 3), ([64 << 30, 5 << 30], 5), ([1000], 1), ([], 8)):
        monkeypatch.setitem(its_globals, "free_memory", lambda free=free: iter(free))
        assert jobs() == expected
    monkeypatch.setenv("MAX_JOBS", "7")
    assert jobs() == 7
    for wish in ("0", "-2", "two", "1.5"):
        monkeypatch.setenv("MAX_JOBS", wish)
        with pytest.raises(SystemExit, match=f"expected MAX_JOBS to be 1 or more, got '{wish}'"):
            jobs()
    for free in names["free_memory"]():
        assert 0 < free < 1 << 50


def test_no_build_requirement_is_torch(checkout: Path) -> None:
    script = (
        "from setuptools import build_meta as b; "
        "print(b.get_requires_for_build_wheel() + b.get_requires_for_build_editable())"
    )
    found = run(sys.executable, "-c", script, cwd=checkout).stdout.splitlines()[-1]
    declared = (checkout / "pyproject.toml").read_text().split("[project]")[0].split("requires")[1]
    assert "torch" not in found + declared


@pytest.mark.slow
def test_install_with_isolation_and_again(
    checkout: Path, environment: Environment, broken_nvcc: str
) -> None:
    # The machine's first nvcc does not work: a build for the CPU, which says why.
    first = environment.pip("install", "-v", "--no-deps", ".", cwd=checkout, PATH=broken_nvcc)
    assert "WITHOUT CUDA kernels" in first.stdout
    info = environment.build_info()
    assert info["cuda"] is False
    assert "no working CUDA compiler was found" in info["cuda_note"]
    assert run(environment.python, "-c", "import torch", cwd=checkout, fails=True)

    # Again from the same checkout: the first build's ninja is gone, and nvcc works now.
    one = {"DIFFFLOW_CUDA_ARCHS": "80-real"}  # The other five show nothing more.
    environment.pip("install", "--no-deps", "--force-reinstall", ".", cwd=checkout, **one)
    info = environment.build_info()
    assert info["cuda"] is (shutil.which("nvcc") is not None)
    assert bool(info["cuda_note"]) is not info["cuda"]

    # The package around it, with torch.
    environment.inherit()
    script = "import diffflow_ext; print(diffflow_ext.__file__, diffflow_ext.__version__)"
    done = run(environment.python, "-c", script, cwd=environment.folder)
    assert str(environment.folder) in done.stdout
    assert info["version"] in done.stdout
    assert (environment.folder / "bin" / "diffflow").exists()


def test_cuda_on_needs_a_compiler(
    checkout: Path, environment: Environment, broken_nvcc: str
) -> None:
    environment.inherit()
    install = ("install", "--no-deps", "--no-build-isolation", ".")
    failed = environment.pip(
        *install, cwd=checkout, fails=True, PATH=broken_nvcc, DIFFFLOW_CUDA="ON"
    )
    assert "DIFFFLOW_CUDA=ON, but no working CUDA compiler was found" in failed.stdout
    assert "DIFFFLOW_CUDA=OFF builds for the CPU only" in failed.stdout


@pytest.mark.slow
def test_the_sdist_builds_wheels_that_work_then_editable(
    checkout: Path, environment: Environment, tmp_path: Path
) -> None:
    """Offline, all from one build folder: its name is not plain, and compiling takes long."""
    shutil.unpack_archive(sdist_of(checkout), tmp_path / "the sdíst")
    (source,) = (tmp_path / "the sdíst").iterdir()
    environment.inherit()
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    settings = {"PIP_NO_INDEX": "1", "DIFFFLOW_CUDA": "OFF", "PATH": tools}
    options = ("--no-deps", "--no-build-isolation")

    gone = source / "diffflow_ext" / "removed_later.py"
    gone.touch()
    environment.pip("wheel", *options, "-w", "first", ".", cwd=source, **settings)
    gone.unlink()
    environment.pip("wheel", *options, "-w", "second", ".", cwd=source, **settings)
    assert "diffflow_ext/removed_later.py" in names_in_wheel(source / "first")
    check_wheel(names_in_wheel(source / "second"))

    (wheel,) = (source / "second").glob("*.whl")
    environment.pip("install", *options, wheel, cwd=source, **settings)
    found = run(environment.python, FIRST_STEPS, cwd=environment.folder).stdout.splitlines()
    assert json.loads(found[-1])["cuda"] is False

    environment.pip("install", *options, "--editable", ".", cwd=source, **settings)
    info = environment.build_info(source)
    assert info["cuda"] is False
    assert info["cuda_note"] == "switched off by DIFFFLOW_CUDA=OFF"
    script = "import importlib.util as u; print(u.find_spec('diffflow_ext').origin)"
    done = run(environment.python, "-c", script, cwd=environment.folder)
    assert done.stdout.strip() == str(source / "diffflow_ext" / "__init__.py")


def sdist_of(checkout: Path) -> Path:
    script = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    run(sys.executable, "-c", script, cwd=checkout)
    (archive,) = (checkout / "dist").glob("*.tar.gz")
    return archive


def names_in_wheel(folder: Path) -> list[str]:
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def check_wheel(names: list[str]) -> None:
    """A wheel holds the package, its licence and nothing else."""
    package = [name for name in names if name.startswith("diffflow_ext/")]
    rest = {name.split("/")[0] for name in names} - {"diffflow_ext"}
    assert len(rest) == 1, rest
    assert next(iter(rest)).endswith(".dist-info")
    assert any(name.endswith("licenses/LICENSE") for name in names)
    runs = {name for name in package if name.startswith("diffflow_ext/training/examples/")}
    page = {f"diffflow_ext/training/evaluation/report.{e}" for e in ("html", "css", "js")}
    assert page <= {*package}
    assert {Path(name).suffix for name in {*package} - runs - page} <= {".py", ".typed", ".so"}
    examples = (ROOT / "diffflow_ext/training/examples").rglob("*.*")
    assert runs == {str(path.relative_to(ROOT)) for path in examples}
    assert sum(name.startswith("diffflow_ext/_core.") for name in package) == 1
    wanted = {str(p.relative_to(ROOT)) for p in (ROOT / "diffflow_ext").rglob("*.py")}
    assert {name for name in package if name.endswith(".py")} == wanted


def test_sdist_holds_all_that_is_committed(checkout: Path) -> None:
    with tarfile.open(sdist_of(checkout)) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    folders = ("csrc/", "diffflow_ext/", "tests/", "benchmarks/", "docs/")
    assert names >= {name for name in files_of_the_checkout() if name.startswith(folders)}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile"} <= names
