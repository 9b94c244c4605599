"""Indices beyond 31 and 32 bits where nothing so large can be allocated: right or refused."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CPP_FLAGS, CSRC
from torch import Tensor

from diffflow_ext import DDPM, NFDM, DiffFlowSDE, DiNof, NoiseKey, TimeGrid, functional
from diffflow_ext.nets import FourierMLP

KEY, GRID = NoiseKey(3, 2**32 - 1), TimeGrid.power(2, 1.0)
LAST = 2**32 - 2


def linear(t: Tensor, x: Tensor) -> Tensor:
    return -x


def small() -> DiffFlowSDE:
    torch.manual_seed(0)
    return DiffFlowSDE(FourierMLP(3, width=8, depth=1), FourierMLP(3, width=8, depth=1))


X = torch.ones(2, 3)
CALLS: dict[str, Callable[[int], Any]] = {
    "normal": lambda at: functional.normal((2, 3), KEY, sample_offset=at),
    "em_step": lambda at: functional.em_step(X, X, dt=0.1, g=1, key=KEY, step=0, sample_offset=at),
    "loss": lambda at: small().loss(X, GRID, KEY, sample_offset=at, engine="autograd"),
    "fused": lambda at: small().loss(X, GRID, KEY, sample_offset=at, engine="fused"),
    "mean_loss": lambda at: small().mean_loss(X, GRID, KEY, sample_offset=at),
    "elbo": lambda at: small().elbo(X, GRID, KEY, sample_offset=at),
    "path": lambda at: small().path(X, GRID, KEY, sample_offset=at),
    "encode": lambda at: small().encode(X, GRID, KEY, sample_offset=at),
    "sample": lambda at: small().sample((2, 3), GRID, KEY, sample_offset=at),
    "log_prob": lambda at: small().log_prob(
        X, GRID, KEY, divergence="hutchinson", sample_offset=at
    ),
    "ddpm": lambda at: DDPM(linear, num_timesteps=4).loss(X, KEY, sample_offset=at),
    "ddpm_sample": lambda at: (
        DDPM(linear, num_timesteps=4).sample((2, 3), 2, KEY, sample_offset=at)
    ),
    "dinof": lambda at: DiNof(linear).score_loss(X, KEY, sample_offset=at),
    "dinof_sample": lambda at: DiNof(linear).sample((2, 3), 2, KEY, sample_offset=at),
    "nfdm": lambda at: NFDM(linear).loss(X, KEY, sample_offset=at),
    "nfdm_elbo": lambda at: NFDM(linear).elbo(X, KEY, timesteps=2, sample_offset=at),
    "nfdm_sample": lambda at: NFDM(linear).sample((2, 3), 2, KEY, sample_offset=at),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_the_last_samples_are_drawn_and_one_more_is_refused(name: str) -> None:
    assert CALLS[name](LAST).isfinite().all()
    for beyond in (LAST + 1, 2**32, 2**63, 2**64):
        with pytest.raises(ValueError, match=r"sample_offset"):
            CALLS[name](beyond)


def test_both_engines_draw_the_same_last_samples() -> None:
    fused, adjoint = CALLS["fused"](LAST), CALLS["loss"](LAST)
    torch.testing.assert_close(fused, adjoint, rtol=1e-5, atol=1e-5)
    assert (fused - CALLS["fused"](0)).abs().min() > 1e-3


LOSES = re.compile(r"conversion from .* to .(unsigned |u?int(8|16|32)_t|int\b|short|char)")


def narrowing(source: Path) -> list[str]:
    """Conversions of C++ that may lose bits of an integer in another one."""
    options = ("-Wconversion", "-Wno-sign-conversion", "-fsyntax-only", "-fopenmp", f"-I{CSRC}")
    flags = [flag for flag in CPP_FLAGS if flag != "-Werror"]
    done = subprocess.run(
        ["g++", *flags, *options, str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if LOSES.search(line)]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_indices_of_whole_paths_are_nowhere_narrowed(tmp_path: Path) -> None:
    """Places in (steps, samples, elements) stay in 64 bits through the engine for whole paths."""
    engine = CSRC / "fused" / "cpu" / "portable.cpp"
    assert narrowing(engine) == []
    planted = tmp_path / "planted.cpp"
    for lost in ("int", "uint32_t"):
        planted.write_text(
            f'#include "{engine}"\n'
            f"{lost} place(int64_t step, int64_t samples) {{ return step * samples; }}\n"
        )
        assert len(narrowing(planted)) == 1
