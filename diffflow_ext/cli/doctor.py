"""`diffflow doctor`: the state of an installation, and checks of its engine and noise."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil

import torch

from diffflow_ext.data.sets.home import data_home
from diffflow_ext.engines.fused.workspace import instructions_name
from diffflow_ext.functional.core import FUNCTIONS, build_info, core
from diffflow_ext.functional.noise import NoiseKey, philox_words
from diffflow_ext.models.diffflow import DiffFlowSDE
from diffflow_ext.nets import FourierMLP
from diffflow_ext.processes.grids import TimeGrid

# Philox4x32-10: (counter, key) and the words, as Random123 (Salmon et al., 2011) publishes them.
KNOWN_ANSWERS = (
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)

#: Optional libraries: their purpose, and the extra that installs them.
OPTIONAL = {
    "matplotlib": ("figures", "plot"),
    "pillow": ("image files", "data"),
    "h5py": ("BSDS300", "data"),
    "pyarrow": ("Parquet and Feather", "data"),
    "pooch": ("downloads", "data"),
    "huggingface_hub": ("sharing runs at the Hub", "hub"),
    "torchmetrics": ("metrics.fid", "fid"),
    "zuko": ("spline flows", "flows"),
    "normflows": ("Glow", "flows"),
    "torchdiffeq": ("the adaptive solver and FFJORD", "flows"),
    "tensorboard": ("--log-to tensorboard", "tensorboard"),
    "wandb": ("--log-to wandb", "wandb"),
    "mlflow-skinny": ("--log-to mlflow", "mlflow"),
}

#: Largest relative difference of two engines' losses: some dozens of float32 roundings.
ENGINES_AGREE = 1e-4
Finding = tuple[str, bool]


def examine() -> tuple[list[str], bool]:
    """Returns lines of text, and whether nothing is WRONG; a WARNING is about missing options."""
    findings = [*_required(), *_optional(), *_build(), *_devices(), *_processes(), _data_folder()]
    findings += [_check_core(), *_check_engine(), _check_noise()]
    return [line for line, _ in findings], all(good for _, good in findings)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _required() -> list[Finding]:
    """Reports Python and the required packages."""
    lines = [(f"python: {platform.python_version()} on {platform.system()} "
              f"{platform.machine()}", True)]  # fmt: skip
    needs = _requirements()
    if not needs:
        lines.append(("WARNING: diffflow_ext itself is not installed, only found: pip install it "
                      "to have its dependencies checked", True))  # fmt: skip
    lines += [_against(name, least) for name, least in {"torch": "2.4", **needs}.items()]
    return lines


def _requirements() -> dict[str, str]:
    """Returns the smallest allowed versions of the required packages."""
    try:
        listed = importlib.metadata.requires("diffflow_ext") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    plain = [text for text in listed if ";" not in text]
    matches = [re.match(r"([\w.-]+)>=([\d.]+)", text) for text in plain]
    return {match[1]: match[2] for match in matches if match}


def _against(name: str, least: str) -> Finding:
    version = _version(name)
    mend = f"; pip install '{name}>={least}'"
    if version is None:
        return f"{name}: WRONG, not installed, needs {least} or newer{mend}", False
    if _numbers(version) < _numbers(least):
        return f"{name}: WRONG, {version}, needs {least} or newer{mend}", False
    return f"{name}: {version}", True


def _numbers(version: str) -> tuple[int, ...]:
    """Returns the leading numbers of a version: (2, 13, 0) for 2.13.0+cpu."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _optional() -> list[Finding]:
    lines = []
    for name, (purpose, extra) in OPTIONAL.items():
        missing = f"not installed, needed for {purpose}; pip install 'diffflow_ext[{extra}]'"
        lines.append((f"{name}: {_version(name) or missing}", True))
    return lines


def _build() -> list[Finding]:
    info = build_info()
    left_out = info["instructions_left_out"]
    shown = {**info, "instructions": " ".join(info["instructions"]),
             "instructions_left_out": " ".join(left_out) or "none"}  # fmt: skip
    lines = [(f"build {name}: {value}", True) for name, value in shown.items()]
    lines += [(f"WARNING: code for {name} is not in this build, because the compiler failed on "
               f"it ({error}); set CXX to another compiler and reinstall diffflow_ext", True)
              for name, error in left_out.items()]  # fmt: skip
    installed = _version("diffflow_ext")
    if installed not in (None, info["version"]):
        lines.append((f"WRONG: the compiled module is of version {info['version']}, the package "
                      f"of {installed}; reinstall diffflow_ext", False))  # fmt: skip
    if not info["openmp"]:
        lines.append(("WARNING: built without OpenMP: the CPU kernels use one thread; "
                      "reinstall with a compiler that has it", True))  # fmt: skip
    return lines


def _devices() -> list[Finding]:
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    lines = [f"device cpu: {threads} threads, {cores} processors"]
    if threads > cores:
        lines.append(f"WARNING: {threads} threads on {cores} processors wait for one another; "
                     "set OMP_NUM_THREADS")  # fmt: skip
    for index in range(torch.cuda.device_count()):
        lines.append(f"device cuda:{index}: {torch.cuda.get_device_name(index)}")
    if torch.cuda.is_available() and not build_info()["cuda"]:
        lines.append(
            f"WARNING: there is a GPU, but this build has no CUDA kernels "
            f"({build_info()['cuda_note']}); reinstall with DIFFFLOW_CUDA=ON"
        )
    if build_info()["cuda"] and not torch.cuda.is_available():
        cuda = "sees no GPU" if torch.version.cuda else "is a build without CUDA"
        lines.append(f"WARNING: this build has CUDA kernels, but torch {cuda}; they lie idle")
    return [(line, True) for line in lines]


def _processes() -> list[Finding]:
    """Reports the backends of torch.distributed, and whether torchrun is installed."""
    if not torch.distributed.is_available():
        return [("WARNING: several processes: this torch has no torch.distributed", True)]
    available = {
        "gloo": torch.distributed.is_gloo_available(),
        "nccl": torch.distributed.is_nccl_available(),
    }
    backends = [name for name, good in available.items() if good]
    lines = [f"several processes: by {' and '.join(backends) or 'nothing'}"]
    if "gloo" not in backends:
        lines.append("WARNING: several processes on a CPU need gloo, which this torch lacks")
    if torch.cuda.device_count() > 1 and "nccl" not in backends:
        lines.append("WARNING: several GPUs need nccl, which this torch lacks")
    if shutil.which("torchrun") is None:
        lines.append("WARNING: torchrun is not on the PATH; take python -m torch.distributed.run")
    return [(line, True) for line in lines]


def _data_folder() -> Finding:
    """Reports whether the folder of named sets can be written."""
    home = data_home()
    parent = next(folder for folder in (home, *home.parents) if folder.exists())
    if parent.is_dir() and os.access(parent, os.W_OK):
        return f"data: {home}", True
    reason = "may not be written" if parent.is_dir() else "is not a folder"
    return f"WARNING: data: {home}: {parent} {reason}; set DIFFFLOW_DATA to another folder", True


def _check_core() -> Finding:
    """Reports whether the compiled module has all functions that the package calls."""
    missing = [name for name in FUNCTIONS if not hasattr(core, name)]
    if missing:
        return (f"core: WRONG, the compiled module lacks {', '.join(missing)}: it is older than "
                "the Python files; reinstall diffflow_ext", False)  # fmt: skip
    return f"core: all of {len(FUNCTIONS)} functions that are called", True


def _check_engine() -> list[Finding]:
    """Reports whether the losses of the fused engine, if there is one, agree with the adjoint."""
    try:
        name = instructions_name()
        if name is None:
            return [("engine: WARNING, no fused engine for this processor: training goes through "
                     "PyTorch layer by layer", True)]  # fmt: skip
        error = _engine_error()
    except Exception as failure:
        return [(f"engine: WRONG, {type(failure).__name__}: {failure}", False)]
    if not error <= ENGINES_AGREE:
        return [(f"engine: WRONG, {name} differs from the adjoint by {error:.1e}", False)]
    return [(f"engine: {name}, losses as the adjoint's to {error:.0e}", True)]


def _engine_error() -> float:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sde = DiffFlowSDE(FourierMLP(2, width=8, depth=1), FourierMLP(2, width=8, depth=1))
        x0 = torch.randn(9, 2)
    grid, key = TimeGrid.power(3, 1.0), NoiseKey(0)
    with torch.no_grad():
        fused, adjoint = (sde.loss(x0, grid, key, engine=name) for name in ("fused", "autograd"))
    return float(((fused - adjoint) / adjoint).abs().max())


def _check_noise() -> Finding:
    counters, keys, words = (torch.tensor(part) for part in zip(*KNOWN_ANSWERS, strict=True))
    good = int((philox_words(counters, keys) == words).all(dim=1).sum())
    total = len(KNOWN_ANSWERS)
    if good == total:
        return f"noise: {total} of {total} known answers of Philox4x32-10 hold", True
    return f"noise: WRONG, only {good} of {total} known answers of Philox4x32-10 hold", False
