"""Names of sets, and where they lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

from diffflow_ext.data import TOY_SETS, Table, data_home, describe_sets, open_dataset, open_rows
from diffflow_ext.data.formats.columns import Selection
from diffflow_ext.data.formats.tables import select

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


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("mons", "got 'mons', which is neither; did you mean 'moons'?"),
        ("xyzzyq", "got 'xyzzyq', which is neither; check the spelling"),
        ("points.cvs", "found nothing at 'points.cvs'; did you mean 'points.csv'?"),
        ("POINTS.csv", "found nothing at 'POINTS.csv'; did you mean 'points.csv'?"),
        ("deep/points.npz", "did you mean 'deep/points.npy'?"),
        ("no/points.csv", "found nothing at 'no/points.csv'; check the spelling"),
        ("moons.csv", "found nothing at 'moons.csv'; check the spelling"),
        ("", "check the spelling"),
        ("a\0b.csv", "found nothing at 'a\\x00b.csv'; check the spelling"),
    ],
)
def test_a_name_or_file_that_is_not_there(
    source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    for name in ("points.csv", "deep/points.npy"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError) as caught:
        open_dataset(source)
    assert str(caught.value).startswith("open_dataset: ")
    assert str(caught.value).endswith(said)
    assert "swiss-roll" not in str(caught.value)


# --- rows that are not split ---------------------------------------------------------------------


def test_rows_of_images_are_all_of_them(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "one.npz", images=levels)
    np.savez(tmp_path / "two.npz", train_images=levels, test_images=levels[:2])
    found = open_rows(tmp_path / "one.npz").values
    assert torch.equal(found, torch.from_numpy(levels).movedim(-1, 1))
    assert open_rows(tmp_path / "one.npz", image_size=4).values.shape == (3, 1, 4, 4)
    with pytest.raises(ValueError, match=r"one set of images in .*, found train, test; .*--key"):
        open_rows(tmp_path / "two.npz")
    assert len(open_rows(tmp_path / "two.npz", key="test_images").values) == 2


def test_rows_of_a_table_have_known_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("b,c,a\n1,2,3\n")
    table = open_rows(tmp_path / "t.csv", ["a", "b"]).values
    assert isinstance(table, Table)
    assert (table.values.tolist(), table.columns) == ([[3.0, 1.0]], ["a", "b"])
    with pytest.raises(ValueError, match="one set of images in"):
        open_rows(tmp_path / "t.csv")
    with pytest.raises(FileNotFoundError, match="found nothing at"):
        open_rows(tmp_path / "other.csv", ["a"])


def test_spaces_at_the_ends_of_names_do_not_count(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame({" price ": rng.integers(1, 90, 60), "x\t": rng.normal(size=60)})
    frame["left out "] = 1.5
    frame.to_csv(tmp_path / "t.csv", index=False)
    for source in (frame, tmp_path / "t.csv"):
        for columns in ("price=positive", {"price  ": "positive"}):
            data = open_dataset(source, columns=columns, drop_columns=[" left out"])
            assert data.columns == ["price", "x"]
            assert data.encoding is not None
            assert data.encoding.columns[0].kind == "positive"
    wanted = Selection(wanted=("x", " price"))
    assert select(frame, wanted, "rows").columns == ["x", "price"]
    twice = frame.assign(price=2.0)
    with pytest.raises(ValueError, match="two or more called 'price', but for spaces; give each"):
        open_dataset(twice)
