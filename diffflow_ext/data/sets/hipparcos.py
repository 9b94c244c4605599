r"""The Hipparcos stars: where they stand, how they move, how far, how bright and of what colour.

The catalogue is `stars.dat` of KStars, text with fixed columns, made from the Hipparcos and Tycho
catalogues. Its numbers are rounded to steps of 0.1 milliarcseconds and 0.01 magnitudes, and a
density of rounded numbers has no bound; so each gets uniform noise of its step's width, always the
same. A parallax of 0.0 stands for one that was not measured or came out negative: those 1,374 of
the 125,982 stars, most of them without any motion either, are left out, since so many equal values
have no density.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from ..formats.reading import Refused, read_file, sha256
from ..formats.tables import Table

__all__ = ["HIPPARCOS_COLUMNS", "read_hipparcos"]


# The names of the columns and their units.
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


# First and last character (from 0, the last not included) of what is read of a line.
FIELDS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "ra_hours": (0, 2),
        "ra_minutes": (2, 4),
        "ra_seconds": (4, 9),
        "dec_degrees": (11, 13),
        "dec_minutes": (13, 15),
        "dec_seconds": (15, 19),
        "pm_ra": (20, 29),
        "pm_dec": (29, 38),
        "plx": (38, 45),
        "mag": (45, 51),
        "b_v": (51, 56),
    }
)


WIDTH = 56


SIGN = 10  # of the declination


MAX_BYTES = 1 << 28


MAX_MAGNITUDE = 30.0


NOISE_KEY = 1997_1239  # of the noise that undoes the rounding


STEPS = (0.1, 0.1, 0.1, 0.01, 0.01)


Values = NDArray[np.float64]


def read_hipparcos(path: str | os.PathLike[str]) -> Table:
    r"""Reads the stars with a measured parallax from the catalogue of KStars.

    The columns are :math:`\alpha` in degrees, :math:`\sin \delta`,
    :math:`\operatorname{asinh}(\mu_\alpha / 10)`, :math:`\operatorname{asinh}(\mu_\delta / 10)`,
    :math:`\operatorname{asinh}(\varpi / 5)`, magnitude and colour index B - V; motions are in
    milliarcseconds a year and the parallax in milliarcseconds (`HIPPARCOS_COLUMNS`). Uniform
    noise, a pure function of the line's number, spreads the last five over the steps to which
    the catalogue rounds them.

    Arguments:
        path: The file `stars.dat`, fixed columns, `#` before comments.

    Returns:
        The table, seven columns; 124,608 rows from the catalogue of Debian's kstars-data 3.6.2.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line cannot be read, or holds what no star has.

    References:
        | The Hipparcos and Tycho Catalogues (ESA SP-1200, 1997)
        | https://cdsarc.cds.unistra.fr/viz-bin/cat/I/239
    """
    file = Path(path)
    data = read_file("read_hipparcos", file, MAX_BYTES)
    numbered = _lines(data, str(file))
    if not numbered:
        raise Refused(
            f"read_hipparcos: expected lines of stars, {str(file)!r} has none; get the file again"
        )
    values = _transform(_stars(numbered, str(file)))
    return Table(values, list(HIPPARCOS_COLUMNS), str(file), sha256(data))


def _lines(data: bytes, source: str) -> list[tuple[int, str]]:
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise Refused(
            f"read_hipparcos: expected ASCII text, {source!r} is none at place {error.start}; "
            "name the file stars.dat of KStars"
        ) from error
    numbered = enumerate(text.split("\n"), 1)
    return [(n, line) for n, line in numbered if line.strip() and not line.startswith("#")]


def _stars(numbered: list[tuple[int, str]], source: str) -> Values:
    """Right ascension and declination in degrees, and the last five fields; shape (n, 7)."""
    try:
        return _parse([line for _, line in numbered])
    except ValueError:
        number, line = next(pair for pair in numbered if not _is_star(pair[1]))
        raise Refused(
            f"read_hipparcos: expected the fixed columns RA, Dec, motions, parallax, magnitude "
            f"and B-V, line {number} of {source!r} is {line[:WIDTH]!r}; get the file again"
        ) from None


def _is_star(line: str) -> bool:
    try:
        _parse([line])
    except ValueError:
        return False
    return True


def _parse(lines: list[str]) -> Values:
    if min(map(len, lines)) < WIDTH:
        raise ValueError("a line is cut")
    letters = np.frombuffer("".join(line[:WIDTH] for line in lines).encode(), np.uint8)
    cells = letters.reshape(len(lines), WIDTH)
    if not np.isin(cells, np.frombuffer(b" +-.0123456789", np.uint8)).all():
        raise ValueError("a letter in place of a number")
    value = {name: _numbers(cells[:, first:last]) for name, (first, last) in FIELDS.items()}
    ra = 15.0 * _sexagesimal(value["ra_hours"], value["ra_minutes"], value["ra_seconds"])
    dec = _sexagesimal(value["dec_degrees"], value["dec_minutes"], value["dec_seconds"])
    south, signs = cells[:, SIGN] == ord("-"), np.isin(cells[:, SIGN], list(b"+-"))
    colours = np.abs([value["mag"], value["b_v"]])
    if not (signs.all() and (ra <= 360.0).all() and (dec <= 90.0).all()):
        raise ValueError("no place in the sky")
    if not ((value["plx"] >= 0.0).all() and (colours <= MAX_MAGNITUDE).all()):
        raise ValueError("out of range")
    last = (value[name] for name in ("pm_ra", "pm_dec", "plx", "mag", "b_v"))
    return np.column_stack([ra, np.where(south, -dec, dec), *last])


def _numbers(cells: NDArray[np.uint8]) -> Values:
    width = cells.shape[1]
    return np.ascontiguousarray(cells).view(f"S{width}").ravel().astype(np.float64)


def _sexagesimal(whole: Values, minutes: Values, seconds: Values) -> Values:
    # The catalogue itself rounds seconds up to 60.0 here and there.
    parts = ((whole, 1e9), (minutes, 59.0), (seconds, 60.0))
    if not all((part >= 0.0).all() and (part <= largest).all() for part, largest in parts):
        raise ValueError("out of range")
    return whole + minutes / 60.0 + seconds / 3600.0


def _transform(stars: Values) -> Values:
    words = np.random.Philox(key=np.array([NOISE_KEY, 0], np.uint64)).random_raw(5 * len(stars))
    centred = (words.reshape(-1, 5) >> np.uint64(11)).astype(np.float64) * 2.0**-53 - 0.5
    measured = stars[:, 4] > 0.0
    ra, dec = stars[measured, :2].T
    pm_ra, pm_dec, plx, mag, b_v = (stars[:, 2:] + centred * np.array(STEPS))[measured].T
    sin_dec = np.sin(np.radians(dec))
    motions = (np.arcsinh(pm_ra / 10.0), np.arcsinh(pm_dec / 10.0), np.arcsinh(plx / 5.0))
    return np.column_stack([ra, sin_dec, *motions, mag, b_v])
