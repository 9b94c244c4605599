"""Names of sets, and where they lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffflow_ext.data import TOY_SETS, data_home, describe_sets

NAMED = {
    *("magic", "mnist", "fashion-mnist", "cifar10"),
    *("power", "gas", "hepmass", "miniboone", "bsds300"),
}


def test_all_sets_are_described() -> None:
    described = describe_sets()
    assert set(described) == set(TOY_SETS) | NAMED
    assert all(described.values())
    assert not any("{home}" in text for text in described.values())


def test_the_home_of_the_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFFLOW_DATA", str(tmp_path))
    assert data_home() == tmp_path
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("DIFFFLOW_DATA")
        else:
            monkeypatch.setenv("DIFFFLOW_DATA", unset)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert data_home() == tmp_path / ".cache" / "diffflow_ext"
