"""The doctor's words for a healthy installation, a CPU build beside a GPU, and broken noise."""

from __future__ import annotations

import pytest
import torch

from diffflow_ext import build_info, doctor


def test_healthy() -> None:
    lines, healthy = doctor.examine()
    assert healthy
    text = "\n".join(lines)
    assert f"torch: {torch.__version__}" in text
    assert f"build compiler: {build_info()['compiler']}" in text
    assert "3 of 3 known answers" in text


def test_gpu_without_kernels_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    info = {**build_info(), "cuda": False, "cuda_note": "no nvcc then"}
    monkeypatch.setattr(doctor, "build_info", lambda: info)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    text = "\n".join(doctor.examine()[0])
    assert "WARNING: there is a GPU" in text
    assert "(no nvcc then); reinstall with DIFFFLOW_CUDA=ON" in text


def test_wrong_noise_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ((doctor.KNOWN_ANSWERS[0][0], doctor.KNOWN_ANSWERS[0][1], (1, 2, 3, 4)),)
    monkeypatch.setattr(doctor, "KNOWN_ANSWERS", wrong)
    lines, healthy = doctor.examine()
    assert not healthy
    assert "WRONG, only 0 of 1" in lines[-1]
