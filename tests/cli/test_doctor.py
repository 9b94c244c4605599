"""The doctor's words for a healthy installation and for each thing missing or broken."""

from __future__ import annotations

import importlib.metadata
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import replace_everywhere

from diffflow_ext.cli import doctor
from diffflow_ext.functional.core import build_info, core

VERSION = build_info()["version"]


def examined() -> tuple[str, bool]:
    lines, healthy = doctor.examine()
    return "\n".join(lines), healthy


def without(monkeypatch: pytest.MonkeyPatch, package: str, version: str | None = None) -> None:
    """As if a package were of another version, or not there."""
    real = importlib.metadata.version

    def answer(name: str) -> str:
        if name != package:
            return real(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", answer)


def test_optional_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "matplotlib")
    text, healthy = examined()
    assert healthy
    assert (
        "matplotlib: not installed, needed for figures; pip install 'diffflow_ext[plot]'" in text
    )


@pytest.mark.parametrize(
    ("package", "version", "words"),
    [
        ("safetensors", None, "safetensors: WRONG, not installed, needs"),
        ("torch", "2.3.1+cpu", "torch: WRONG, 2.3.1+cpu, needs 2.4 or newer"),
        ("numpy", "1.23.9", "numpy: WRONG, 1.23.9, needs 1.24 or newer; pip install"),
        ("diffflow_ext", "9.9.9", f"version {VERSION}, the package of 9.9.9; reinstall"),
    ],
)
def test_packages_that_are_missing_or_old(
    monkeypatch: pytest.MonkeyPatch, package: str, version: str | None, words: str
) -> None:
    needs = {"torch": "2.4", "numpy": "1.24", "safetensors": "0.4.3"}
    monkeypatch.setattr(doctor, "_requirements", lambda: needs)
    without(monkeypatch, package, version)
    text, healthy = examined()
    assert words in text
    assert not healthy


def test_requirements_are_those_of_the_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = ["torch>=2.4", "tomli>=2.0; python_version < '3.11'", "numpy>=1.24"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: listed)
    assert doctor._requirements() == {"torch": "2.4", "numpy": "1.24"}
    assert doctor._numbers("2.13.0+cpu") > doctor._numbers("2.4")


def test_a_package_that_is_only_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert "WARNING: diffflow_ext itself is not installed, only found" in examined()[0]


def test_a_compiled_module_older_than_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def __getattr__(self, name: str) -> Any:
            if name == "noise_dot":
                raise AttributeError(name)
            return getattr(real, name)

    real = core
    replace_everywhere(monkeypatch, core, Old())
    text, healthy = examined()
    assert "core: WRONG, the compiled module lacks noise_dot: it is older than the" in text
    assert not healthy


@pytest.mark.parametrize(
    ("error", "words"),
    [(0.5, "differs from the adjoint by 5.0e-01"), (math.nan, "differs from the adjoint by nan")],
)
def test_an_engine_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch, error: float, words: str
) -> None:
    monkeypatch.setattr(doctor, "_engine_error", lambda: error)
    text, healthy = examined()
    assert words in text
    assert not healthy


def test_an_engine_that_fails_or_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> float:
        raise RuntimeError("illegal instruction set")

    monkeypatch.setattr(doctor, "_engine_error", fail)
    text, healthy = examined()
    assert "engine: WRONG, RuntimeError: illegal instruction set" in text
    assert not healthy
    monkeypatch.setattr(doctor, "instructions_name", lambda: None)
    text, healthy = examined()
    assert "engine: WARNING, no fused engine for this processor" in text
    assert healthy


def test_an_engine_that_is_not_in_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    left_out = {"avx512bf16": "PLEASE submit a bug report"}
    info = {
        **build_info(),
        "instructions": ["avx2", "portable"],
        "instructions_left_out": left_out,
    }
    replace_everywhere(monkeypatch, build_info, lambda: info)
    text, healthy = examined()
    assert "build instructions: avx2 portable" in text
    assert "build instructions_left_out: avx512bf16" in text
    assert (
        "WARNING: code for avx512bf16 is not in this build, because the compiler failed on it "
        "(PLEASE submit a bug report); set CXX to another compiler and reinstall" in text
    )
    assert healthy


def test_no_way_to_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_gloo_available", lambda: False)
    monkeypatch.setenv("PATH", "")
    text, healthy = examined()
    assert "need gloo, which this torch lacks" in text
    assert "torchrun is not on the PATH; take python -m torch.distributed.run" in text
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    assert "this torch has no torch.distributed" in examined()[0]
    assert healthy


def test_a_data_folder_that_cannot_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DIFFFLOW_DATA", str(tmp_path / "file" / "sets"))
    assert f"{tmp_path / 'file'} is not a folder; set DIFFFLOW_DATA" in examined()[0]
    monkeypatch.setenv("DIFFFLOW_DATA", str(tmp_path / "sets"))
    assert f"data: {tmp_path / 'sets'}" in examined()[0]
    monkeypatch.setattr(doctor.os, "access", lambda *arguments: False)
    assert f"{tmp_path} may not be written; set DIFFFLOW_DATA" in examined()[0]


@pytest.mark.parametrize(
    ("kernels", "words"),
    [
        (True, "this build has CUDA kernels, but torch"),
        (False, "WARNING: there is a GPU"),
        (False, "(no nvcc then); reinstall with DIFFFLOW_CUDA=ON"),
    ],
)
def test_what_the_machine_has_and_the_build_lacks(
    monkeypatch: pytest.MonkeyPatch, kernels: bool, words: str
) -> None:
    """Kernels without a GPU or the reverse, and threads without processors."""
    info = {**build_info(), "cuda": kernels, "cuda_note": "no nvcc then", "openmp": False}
    replace_everywhere(monkeypatch, build_info, lambda: info)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not kernels)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    text, healthy = examined()
    assert words in text
    assert "built without OpenMP" in text
    assert "WARNING: 10000 threads on" in text
    assert healthy
