"""Drives CMake. Metadata stands in pyproject.toml.

Environment:
    DIFFFLOW_CUDA        AUTO (default), ON or OFF: build the CUDA kernels.
    DIFFFLOW_CUDA_ARCHS  architectures as CMake writes them, default
                         "80-real;86-real;89-real;90;100-real;120",
                         and up to 90 before CUDA 12.8.
    DIFFFLOW_NVCC=pypi   let pip fetch the CUDA 13 compiler as wheels (needs build isolation).
    DIFFFLOW_WERROR=ON   a compiler's warning ends the build; for our own tests.
    MAX_JOBS             number of compilers that run at a time.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
#: The oldest tools that build it; pyproject.toml names the same, but for CMake.
NEEDED = {"setuptools": "77", "pybind11": "2.12", "ninja": "1.10", "cmake": "3.20"}
#: What a compiler takes for csrc/bindings/module.cpp; the other sources take less.
COMPILER_BYTES = 2**30
NVCC_WHEELS = [
    "nvidia-cuda-nvcc==13.0.*",
    "nvidia-nvvm==13.0.*",
    "nvidia-cuda-crt==13.0.*",
    "nvidia-cuda-runtime==13.0.*",
    "nvidia-cuda-cccl==13.0.*",
]


def numbers(version: str) -> tuple[int, ...]:
    """Returns the first two numbers in a text, (3, 25) for "cmake version 3.25.1", or ()."""
    found = re.search(r"(\d+)(?:\.(\d+))?", version)
    return tuple(int(part or 0) for part in found.groups()) if found else ()


def version_of_program(program: str | None) -> str:
    """Returns the version that a program prints, or "" where it does not run."""
    try:
        done = subprocess.run(
            [program or "", "--version"], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    found = re.search(r"\d+(\.\d+)+", done.stdout)
    return found[0] if found and done.returncode == 0 else ""


def version_of_pybind11() -> str:
    """Returns the version of the pybind11 that would be used, or ""."""
    try:
        import pybind11
    except ImportError:
        return ""
    return pybind11.__version__


def refuse_old(found: dict[str, str]) -> None:
    """Ends the build where one of the tools, given with their versions, is missing or too old."""
    bad = [name for name, version in found.items() if numbers(version) < numbers(NEEDED[name])]
    if not bad:
        return
    got = ", ".join(f"{name} {found[name] or 'missing'}" for name in bad)
    wanted = " ".join(f"'{name}>={NEEDED[name]}'" for name in bad)
    hint = f"run `pip install {wanted}`, or install without --no-build-isolation"
    folder = tempfile.gettempdir()
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        hint += (f"; pip puts programs into {folder}, where none can run (it is mounted noexec): "
                 "set TMPDIR to another folder")  # fmt: skip
    raise SystemExit(f"diffflow_ext: expected {wanted} to build with, got {got}; {hint}")


def refuse_read_only() -> None:
    """Ends the build where setuptools could not write beside the sources, as it always does."""
    if not os.access(ROOT, os.W_OK):
        raise SystemExit(
            f"diffflow_ext: expected a source folder that may be written, got {ROOT}; copy it to "
            "another place and install the copy"
        )


def build_requirements() -> list[str]:
    """Names what pip must fetch for this build beyond pyproject.toml: only what is missing."""
    wanted = []
    if numbers(version_of_program("cmake")) < numbers(NEEDED["cmake"]):
        wanted.append(f"cmake>={NEEDED['cmake']}")
    if os.environ.get("DIFFFLOW_NVCC") == "pypi":
        wanted += NVCC_WHEELS
    return wanted


def cuda_root_of_wheels(build: Path) -> Path | None:
    """Makes a CUDA toolkit folder from the compiler wheels, or returns None where there are none.

    The wheels share one root, site-packages/nvidia/cu13, which lacks `lib64` and the unversioned
    libcudart that nvcc looks for; a folder of links beside the build supplies them.
    """
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or []) if spec else []:
        source = Path(place) / "cu13"
        if (source / "bin" / "nvcc").exists():
            root = build / "cuda"
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(source, root, symlinks=True)
            (root / "lib64").symlink_to("lib")
            for library in (root / "lib").glob("libcudart.so.*"):
                (root / "lib" / "libcudart.so").symlink_to(library.name)
            (root / "bin" / "nvcc").chmod(0o755)
            return root
    return None


def ninja_program() -> str | None:
    """Returns the ninja to build with: the one of the build requirements, else that on PATH."""
    try:
        import ninja

        folders = [ninja.BIN_DIR, None]
    except ImportError:
        folders = [None]
    return next(filter(None, (shutil.which("ninja", path=folder) for folder in folders)), None)


def free_memory() -> Iterator[int]:
    """Yields the bytes that the machine and the container have left, where Linux tells."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                yield int(line.split()[1]) * 1024
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        if limit.strip() != "max":
            # The cache of files gives way.
            lines = (group / "memory.stat").read_text().splitlines()
            cache = dict(line.split() for line in lines)["inactive_file"]
            yield int(limit) - int(used) + int(cache)
    except (OSError, LookupError, ValueError):
        pass


def number_of_jobs() -> int:
    """Returns how many compilers run at a time: MAX_JOBS, or as processors and memory allow."""
    wish = os.environ.get("MAX_JOBS", "").strip()
    if wish:
        if not wish.isdecimal() or int(wish) < 1:
            raise SystemExit(f"diffflow_ext: expected MAX_JOBS to be 1 or more, got {wish!r}")
        return int(wish)
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it.
    processors = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min([processors, *(free // COMPILER_BYTES for free in free_memory())]))


def forget_findings(build: Path) -> None:
    """Drops what CMake found at an earlier configure and keeps the object files.

    Compilers come and go between two installs from one checkout: an nvcc that was missing is there
    now, and the ninja of an isolated build is deleted when it ends.
    """
    (build / "CMakeCache.txt").unlink(missing_ok=True)
    for found in (build / "CMakeFiles").glob("[0-9]*.*"):
        shutil.rmtree(found)


class FreshPython(build_py):
    """Copies modules into an empty folder, or those removed since would be shipped again."""

    def run(self) -> None:
        """Runs the command."""
        if not getattr(self, "editable_mode", False):
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """Configures and builds the extension with CMake and ninja."""

    def build_extension(self, ext: Extension) -> None:
        """Builds the module and puts it where setuptools expects it."""
        refuse_old({
            "pybind11": version_of_pybind11(),
            "ninja": version_of_program(ninja_program()),
            "cmake": version_of_program("cmake"),
        })  # fmt: skip
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        # Not build_temp: an editable install gets a new one each time, and compiles all anew.
        base = Path(self.get_finalized_command("build").build_base)  # pyright: ignore
        build = (base / f"cmake-{self.plat_name}-{sys.implementation.cache_tag}").resolve()
        build.mkdir(parents=True, exist_ok=True)
        forget_findings(build)
        self._run(["cmake", "-S", str(ROOT), "-B", str(build), *self._configuration(build)])
        self._run(["cmake", "--build", str(build), "--parallel", str(number_of_jobs())])
        output.parent.mkdir(parents=True, exist_ok=True)
        built = next(path for path in build.glob("_core.*") if path.suffix in (".so", ".pyd"))
        shutil.copy2(built, output)

    def _configuration(self, build: Path) -> list[str]:
        import pybind11

        options = {
            "CMAKE_MAKE_PROGRAM": ninja_program(),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "DIFFFLOW_VERSION": self.distribution.get_version(),
            "DIFFFLOW_CUDA": os.environ.get("DIFFFLOW_CUDA", "AUTO").upper(),
            "DIFFFLOW_WERROR": os.environ.get("DIFFFLOW_WERROR", "OFF"),
        }
        if os.environ.get("DIFFFLOW_CUDA_ARCHS"):
            options["DIFFFLOW_CUDA_ARCHS"] = os.environ["DIFFFLOW_CUDA_ARCHS"]
        if os.environ.get("DIFFFLOW_NVCC") == "pypi":
            root = cuda_root_of_wheels(build)
            if root is not None:
                options["CMAKE_CUDA_COMPILER"] = str(root / "bin" / "nvcc")
        return ["-G", "Ninja", *(f"-D{name}={value}" for name, value in options.items())]

    def _run(self, command: list[str]) -> None:
        try:
            subprocess.run(command, check=True)
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"diffflow_ext: `{' '.join(command)}` failed, see above") from error


# Before setuptools reads pyproject.toml, which an old one does not understand.
refuse_old({"setuptools": setuptools.__version__})
refuse_read_only()
setup(
    ext_modules=[Extension("diffflow_ext._core", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": FreshPython},
    setup_requires=build_requirements(),
)
