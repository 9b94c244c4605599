"""The Hipparcos stars as a table: positions, motions, distances, magnitudes and colours.

    python -m benchmarks.quality.hipparcos stars.dat hipparcos.csv

The catalogue is `stars.dat` of KStars (Debian's package kstars-data; see fetch.py), text with
fixed columns, made from the Hipparcos and Tycho catalogues (ESA SP-1200, 1997). Its numbers are
rounded to steps of 0.1 milliarcseconds and 0.01 magnitudes, and a density of rounded numbers has
no bound; so each gets uniform noise of its step's width, a pure function of the line's number. A
parallax of 0.0 stands for one that was not measured or came out negative: those 1,374 of the
125,982 stars are left out, since so many equal values have no density.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diffflow_ext.data import Table

HIPPARCOS_COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "ra": "right ascension, degrees",
        "sin_dec": "sine of the declination",
        "asinh_pm_ra": "asinh of the proper motion in right ascension, 10 milliarcseconds / year",
        "asinh_pm_dec": "asinh of the proper motion in declination, 10 milliarcseconds / year",
        "asinh_plx": "asinh of the parallax, 5 milliarcseconds",
        "mag": "apparent magnitude",
        "b_v": "colour index B - V, magnitudes",
    }
)
# First and last character, counted from 0, the last not included.
FIELDS = {
    **{"ra_hours": (0, 2), "ra_minutes": (2, 4), "ra_seconds": (4, 9)},
    **{"sign": (10, 11), "dec_degrees": (11, 13), "dec_minutes": (13, 15)},
    **{"dec_seconds": (15, 19)},
    **{"pm_ra": (20, 29), "pm_dec": (29, 38), "plx": (38, 45), "mag": (45, 51), "b_v": (51, 56)},
}  # fmt: skip
MEASURED = ("pm_ra", "pm_dec", "plx", "mag", "b_v")
STEPS = (0.1, 0.1, 0.1, 0.01, 0.01)
NOISE_KEY = 1997_1239


def read_hipparcos(path: str | os.PathLike[str]) -> Table:
    """Reads the catalogue as a table of seven columns.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line holds other things than numbers in these places.
    """
    file = Path(path)
    fields = pd.read_fwf(file, colspecs=list(FIELDS.values()), names=list(FIELDS), comment="#",
                         dtype=str, encoding="ascii")  # fmt: skip
    value = fields.drop(columns="sign").astype(np.float64)
    if value.isna().any(axis=None) or not fields["sign"].isin(["+", "-"]).all():
        raise ValueError(
            f"read_hipparcos: expected the fixed columns {', '.join(FIELDS)}, {str(file)!r} has a "
            "line without; get stars.dat of KStars again"
        )
    ra = 15.0 * (value["ra_hours"] + value["ra_minutes"] / 60.0 + value["ra_seconds"] / 3600.0)
    dec = value["dec_degrees"] + value["dec_minutes"] / 60.0 + value["dec_seconds"] / 3600.0
    dec = dec.where(fields["sign"] == "+", -dec)
    measured = value[list(MEASURED)].to_numpy()
    values = _transformed(ra.to_numpy(), dec.to_numpy(), measured)
    return Table(values, list(HIPPARCOS_COLUMNS), str(file))


def _transformed(
    ra: NDArray[np.float64], dec: NDArray[np.float64], measured: NDArray[np.float64]
) -> NDArray[np.float64]:
    words = np.random.Philox(key=np.array([NOISE_KEY, 0], np.uint64)).random_raw(measured.size)
    uniform = (words.reshape(measured.shape) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    kept = measured[:, 2] > 0.0
    pm_ra, pm_dec, plx, mag, b_v = (measured + (uniform - 0.5) * np.array(STEPS))[kept].T
    motions = (np.arcsinh(pm_ra / 10.0), np.arcsinh(pm_dec / 10.0), np.arcsinh(plx / 5.0))
    return np.column_stack([ra[kept], np.sin(np.radians(dec[kept])), *motions, mag, b_v])


def write_hipparcos(stars: str, target: str) -> None:
    table = read_hipparcos(stars)
    pd.DataFrame(table.values, columns=table.columns).to_csv(target, index=False)
    print(f"{target}: {len(table.values):,} stars")


if __name__ == "__main__":
    write_hipparcos(*sys.argv[1:])
