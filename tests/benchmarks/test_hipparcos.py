"""The table of stars, against values worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality.hipparcos import HIPPARCOS_COLUMNS, read_hipparcos, write_hipparcos
from diffflow_ext.data import read_table

HEADER = "#  RA        DEC      pmRA     pmDEC  plx      mag  BV SpT b?\n#\n"
STARS = [
    "064508.92 -164258.0 -000546.0-001223.100379.2 -1.4400.01A0 1            , alp CMa, Sirius",
    "183656.34 +384701.3 +000201.0+000287.500128.9 00.03-0.00A0 0            , alp Lyr, Vega",
    "111811.24 +313150.8 +000000.0+000000.000000.0 03.7900.61G0 0            , xi  UMa",
    "000000.00 -001536.0 +000000.1-000000.100000.1 08.99-0.40M? 0",
]
# RA, Dec in degrees, motions, parallax, magnitude, B-V of the first, second and last.
VALUES = [
    (101.2871667, -16.7161111, -546.0, -1223.1, 379.2, -1.44, 0.01),
    (279.2347500, 38.7836944, 201.0, 287.5, 128.9, 0.03, 0.0),
    (0.0, -0.26, 0.1, -0.1, 0.1, 8.99, -0.4),
]


def catalogue(tmp_path: Path, *lines: str) -> Path:
    (tmp_path / "stars.dat").write_text(HEADER + "".join(line + "\n" for line in lines))
    return tmp_path / "stars.dat"


def in_catalogue_units(values: np.ndarray) -> np.ndarray:
    motions = 10.0 * np.sinh(values[:, 2:4]), 5.0 * np.sinh(values[:, 4:5])
    return np.hstack([*motions, values[:, 5:]])


def test_columns_and_units(tmp_path: Path) -> None:
    table = read_hipparcos(catalogue(tmp_path, *STARS))
    assert table.columns == list(HIPPARCOS_COLUMNS)
    for row, (ra, dec, *_) in zip(table.values, VALUES, strict=True):
        assert row[0] == pytest.approx(ra, abs=1e-6)
        assert row[1] == pytest.approx(math.sin(math.radians(dec)), abs=1e-7)
    expected = np.array(VALUES)[:, 2:]
    off = np.abs(in_catalogue_units(table.values) - expected)
    assert (off <= np.array([0.05, 0.05, 0.05, 0.005, 0.005]) + 1e-9).all()


def test_noise_is_uniform_over_a_step_and_depends_on_the_line_alone(tmp_path: Path) -> None:
    values = read_hipparcos(catalogue(tmp_path, *STARS[:1] * 4_000)).values
    columns = in_catalogue_units(values).T
    for column, width, centre in zip(
        columns, (0.1, 0.1, 0.1, 0.01, 0.01), VALUES[0][2:], strict=True
    ):
        u = np.sort((column - centre) / width + 0.5)
        assert 0.0 <= u[0] < u[-1] <= 1.0 + 1e-9
        # Kolmogorov-Smirnov: 1.95 / sqrt(n) is p = 1e-3.
        assert np.abs(u - np.arange(1, 4001) / 4000).max() < 1.95 / math.sqrt(4000)
    assert np.array_equal(read_hipparcos(catalogue(tmp_path, STARS[0])).values, values[:1])
    skipped = read_hipparcos(catalogue(tmp_path, STARS[2], STARS[0])).values
    assert np.array_equal(skipped, values[1:2])


def test_the_table_as_csv_has_the_same_numbers(tmp_path: Path) -> None:
    stars = catalogue(tmp_path, *STARS * 7)
    write_hipparcos(str(stars), str(tmp_path / "stars.csv"))
    written = read_table(tmp_path / "stars.csv")
    assert written.columns == list(HIPPARCOS_COLUMNS)
    assert np.array_equal(written.values, read_hipparcos(stars).values)


@pytest.mark.parametrize("line", [STARS[0][:45], STARS[0].replace("-0005", "-00x5"), "1 2 3"])
def test_bad_lines(tmp_path: Path, line: str) -> None:
    with pytest.raises(ValueError, match=r"expected the fixed columns|could not convert"):
        read_hipparcos(catalogue(tmp_path, STARS[1], line))
