"""The table of stars, against values worked out by hand and by other formulas."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from diffflow_ext.data import HIPPARCOS_COLUMNS, open_dataset, read_hipparcos
from diffflow_ext.data.fetching import fetched_path

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


def _file(tmp_path: Path, *lines: str) -> Path:
    (tmp_path / "stars.dat").write_text(HEADER + "".join(line + "\n" for line in lines))
    return tmp_path / "stars.dat"


def test_columns_and_units(tmp_path: Path) -> None:
    table = read_hipparcos(_file(tmp_path, *STARS))
    assert table.columns == list(HIPPARCOS_COLUMNS)
    assert table.values.shape == (3, 7)
    for row, (ra, dec, pm_ra, pm_dec, plx, mag, b_v) in zip(table.values, VALUES, strict=True):
        assert row[0] == pytest.approx(ra, abs=1e-6)
        assert row[1] == pytest.approx(math.sin(math.radians(dec)), abs=1e-7)
        # Back from asinh; half a step of noise either way.
        assert abs(10.0 * math.sinh(row[2]) - pm_ra) <= 0.05 + 1e-9
        assert abs(10.0 * math.sinh(row[3]) - pm_dec) <= 0.05 + 1e-9
        assert abs(5.0 * math.sinh(row[4]) - plx) <= 0.05 + 1e-9
        assert abs(row[5] - mag) <= 0.005 + 1e-9
        assert abs(row[6] - b_v) <= 0.005 + 1e-9


def test_noise_is_uniform_over_a_step_and_always_the_same(tmp_path: Path) -> None:
    path = _file(tmp_path, *STARS[:1] * 4_000)
    values = read_hipparcos(path).values
    assert np.array_equal(values, read_hipparcos(path).values)
    steps = [10 * np.sinh(values[:, 2]), 10 * np.sinh(values[:, 3]), 5 * np.sinh(values[:, 4])]
    widths = [0.1, 0.1, 0.1, 0.01, 0.01]
    for column, width, centre in zip(
        [*steps, *values[:, 5:].T], widths, VALUES[0][2:], strict=True
    ):
        u = np.sort((column - centre) / width + 0.5)
        assert 0.0 <= u[0] < u[-1] <= 1.0 + 1e-9
        # Kolmogorov-Smirnov: 1.95 / sqrt(n) is p = 1e-3.
        assert np.abs(u - np.arange(1, 4001) / 4000).max() < 1.95 / math.sqrt(4000)
    assert np.abs(np.corrcoef(values[:, 2:], rowvar=False) - np.eye(5)).max() < 0.06


def test_the_noise_of_a_star_does_not_depend_on_the_others(tmp_path: Path) -> None:
    whole = read_hipparcos(_file(tmp_path, *STARS)).values
    assert np.array_equal(read_hipparcos(_file(tmp_path, *STARS[:2])).values, whole[:2])
    other = [STARS[0], STARS[2], STARS[2], STARS[3]]
    assert np.array_equal(read_hipparcos(_file(tmp_path, *other)).values[1], whole[2])


def _changed(at: int, text: str) -> str:
    return STARS[0][:at] + text + STARS[0][at + len(text) :]


BAD = {
    "cut": STARS[0][:52],
    "letters": _changed(20, "-000x46.0"),
    "blank": _changed(38, "       "),
    "nan": _changed(45, "   nan"),
    "exponent": _changed(38, "00037e2"),
    "underscore": _changed(38, "00_37.2"),
    "sign": _changed(10, " "),
    "hours": _changed(0, "24"),
    "minutes": _changed(2, "60"),
    "seconds": _changed(4, "61.00"),
    "negative seconds": _changed(4, "-1.00"),
    "declination": _changed(10, "-90000.1"),
    "parallax": _changed(38, "-0379.2"),
    "magnitude": _changed(45, " 31.00"),
    "colour": _changed(51, "99.99"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_lines(tmp_path: Path, case: str) -> None:
    with pytest.raises(ValueError, match=r"^read_hipparcos: expected .* line 4 of .*; get the"):
        read_hipparcos(_file(tmp_path, STARS[1], BAD[case]))


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has none"):
        read_hipparcos(_file(tmp_path))
    (tmp_path / "stars.dat").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="expected ASCII text"):
        read_hipparcos(tmp_path / "stars.dat")
    with pytest.raises(FileNotFoundError):
        read_hipparcos(tmp_path / "none")


def test_the_real_catalogue() -> None:
    path = fetched_path("hipparcos")
    if path is None:
        pytest.skip("needs `diffflow data fetch hipparcos`")
    table = read_hipparcos(path)
    assert table.values.shape == (124_608, 7)
    ra, sin_dec, _, _, plx, mag, _ = table.values.T
    assert (ra.min() >= 0.0, ra.max() < 360.0, np.abs(sin_dec).max() <= 1.0) == (True,) * 3
    # The catalogue is complete to magnitude 9; most stars are fainter than 7 and beyond 50 pc.
    assert mag.max() < 9.0
    assert np.mean(mag > 7.0) > 0.8
    assert np.mean(5.0 * np.sinh(plx) < 20.0) > 0.8
    data = open_dataset("hipparcos")
    assert data.fingerprint == open_dataset(path).fingerprint
    assert [len(part) for part in (data.train, data.valid, data.test)] == [99_688, 12_460, 12_460]
