"""The steps that are measured on a GPU run on the CPU too."""

from __future__ import annotations

import pytest

from benchmarks.gpu import graphs

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_step_is_measured() -> None:
    found = graphs.measure("cpu")
    names = {"ddpm", "diffflow", "diffflow_batched"}
    names |= {f"{name}_graph" for name in names} | {"release"}
    for one in found.values():
        rows = {key: row for key, row in one.items() if isinstance(row, dict)}
        assert set(rows) == names
        assert all(row["milliseconds"] > 0 for row in rows.values())


def test_what_cannot_be_had_is_named() -> None:
    def build() -> None:
        raise RuntimeError("no such thing\nmore")

    assert graphs.measured("cpu", 2, build) == {"why": "no such thing"}  # pyright: ignore
