"""Drives CMake. Metadata stands in pyproject.toml.

Environment:
    DIFFFLOW_CUDA        AUTO (default), ON or OFF: build the CUDA kernels.
    DIFFFLOW_CUDA_ARCHS  architectures as CMake writes them, default "80-real;90-real;90-virtual".
    DIFFFLOW_NVCC=pypi   let pip fetch the CUDA 13 compiler as wheels (needs build isolation).
    MAX_JOBS             number of compilers that run at a time.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MINIMUM_CMAKE = (3, 20)
NVCC_WHEELS = [
    "nvidia-cuda-nvcc==13.0.*",
    "nvidia-nvvm==13.0.*",
    "nvidia-cuda-crt==13.0.*",
    "nvidia-cuda-runtime==13.0.*",
    "nvidia-cuda-cccl==13.0.*",
]


def cmake_version(program: str) -> tuple[int, ...]:
    """Returns the version of a CMake program, or () where it does not run."""
    try:
        text = subprocess.run(
            [program, "--version"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ()
    found = re.search(r"(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else ()


def build_requirements() -> list[str]:
    """Names what pip must fetch for this build beyond pyproject.toml: only what is missing."""
    wanted = [] if cmake_version("cmake") >= MINIMUM_CMAKE else ["cmake>=3.20"]
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


def ninja_program() -> str:
    """Returns the ninja to build with: the one of the build requirements, else that on PATH."""
    try:
        import ninja

        folders = [ninja.BIN_DIR, None]
    except ImportError:
        folders = [None]
    program = next(filter(None, (shutil.which("ninja", path=folder) for folder in folders)), None)
    if program is None:
        raise SystemExit("diffflow_ext: ninja is needed to build; run `pip install ninja`")
    return program


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
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        # Not build_temp: an editable install gets a new one each time, and compiles all anew.
        base = Path(self.get_finalized_command("build").build_base)  # pyright: ignore
        build = (base / f"cmake-{self.plat_name}-{sys.implementation.cache_tag}").resolve()
        build.mkdir(parents=True, exist_ok=True)
        forget_findings(build)
        self._run(["cmake", "-S", str(ROOT), "-B", str(build), *self._configuration(build)])
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        self._run(["cmake", "--build", str(build), "--parallel", jobs])
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
        except FileNotFoundError as error:
            raise SystemExit(
                "diffflow_ext: CMake >= 3.20 is needed to build; run `pip install cmake ninja`"
            ) from error
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"diffflow_ext: `{' '.join(command)}` failed, see above") from error


setup(
    ext_modules=[Extension("diffflow_ext._core", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": FreshPython},
    setup_requires=build_requirements(),
)
