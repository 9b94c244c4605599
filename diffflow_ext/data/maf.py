r"""POWER, GAS, HEPMASS, MINIBOONE and BSDS300, cleaned as the papers on density estimation do.

The steps are those of Masked Autoregressive Flow (Papamakarios et al., 2017), which later papers
keep, so that scores compare with published ones: 6, 8, 21, 43 and 63 columns, nats in standardised
units, splits by position and not by our own permutation. Each function takes the raw values and
returns the training, validation and test rows together with what was subtracted and divided by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from .dataset import Dataset, table_dataset
from .home import data_home
from .maf_files import read_bsds300, read_gas, read_hepmass, read_values
from .reading import Refused

__all__ = ["MAF_SETS", "find_maf", "maf_name", "open_maf"]

Values = NDArray[np.float64]

CORRELATED = 0.98
REPEATED = 5


@dataclass(frozen=True, eq=False)
class _Cleaned:
    """Three splits in original units, and their standardisation."""

    parts: tuple[Values, Values, Values]
    mean: Values
    std: Values


@dataclass(frozen=True)
class _MafSet:
    """A set of the archive: `files` are the names under which people have it, the best first."""

    description: str
    dim: int
    files: tuple[str, ...]
    clean: Callable[[Path], _Cleaned]
    columns: tuple[str, ...] = ()


def _last_tenths(values: Values) -> tuple[Values, Values, Values]:
    """The last tenth for the test, then the last tenth of the rest for validation."""
    rest, test = _last_tenth(values)
    return (*_last_tenth(rest), test)


def _last_tenth(values: Values) -> tuple[Values, Values]:
    count = int(0.1 * len(values))
    if count < 1:
        raise Refused(f"open_maf: expected at least 13 rows, got {len(values)}; the file is cut")
    return values[:-count], values[-count:]


def _standardised(parts: tuple[Values, Values, Values]) -> _Cleaned:
    """By mean and deviation of training and validation rows together."""
    known = np.concatenate(parts[:2])
    return _Cleaned(parts, known.mean(axis=0), known.std(axis=0))


def _clean_power(file: Path) -> _Cleaned:
    """Shuffles, drops reactive power and intensity, and adds noise below the meters' steps."""
    values = read_values(file, 8)
    # The legacy generator and the order of its draws are part of what was published.
    rng = np.random.RandomState(42)
    rng.shuffle(values)
    values = np.delete(values, [1, 3], axis=1)
    n = len(values)
    voltage, power, meters = 0.01 * rng.rand(n, 1), 0.001 * rng.rand(n, 1), rng.rand(n, 3)
    noise = np.hstack([power, voltage, meters, np.zeros((n, 1))])
    return _standardised(_last_tenths(values + noise))


def _clean_gas(file: Path) -> _Cleaned:
    """Drops columns until no two correlate above 0.98; all rows standardise, as published."""
    values = read_gas(file)
    while True:
        crowded = (np.corrcoef(values, rowvar=False) > CORRELATED).sum(axis=1) > 1
        if not crowded.any():
            break
        values = np.delete(values, int(np.argmax(crowded)), axis=1)
    return _Cleaned(_last_tenths(values), values.mean(axis=0), values.std(axis=0, ddof=1))


def _clean_hepmass(file: Path) -> _Cleaned:
    """Keeps the signal, and drops columns whose smallest value stands there more than five times.

    That is the published test for columns of few values; the 1,000 GeV sample loses six.
    """
    train, test = read_hepmass(file)
    kept = (train == train.min(axis=0)).sum(axis=0) <= REPEATED
    train, test = train[:, kept], test[:, kept]
    rest, valid = _last_tenth(train)
    return _Cleaned((rest, valid, test), train.mean(axis=0), train.std(axis=0, ddof=1))


def _clean_miniboone(file: Path) -> _Cleaned:
    return _standardised(_last_tenths(read_values(file, 43)))


def _clean_bsds300(file: Path) -> _Cleaned:
    """As it is: the patches come without their means, and nobody standardises them."""
    parts = read_bsds300(file)
    return _Cleaned(parts, np.zeros(parts[0].shape[1]), np.ones(parts[0].shape[1]))


_POWER = "global_active_power voltage sub_metering_1 sub_metering_2 sub_metering_3 time"
_SETS: dict[str, _MafSet] = {
    "power": _MafSet(
        "electric power of one household", 6, ("data.npy",), _clean_power, tuple(_POWER.split())
    ),
    "gas": _MafSet(
        "gas sensors in changing mixtures",
        8,
        ("ethylene_CO.npy", "ethylene_CO.csv", "ethylene_CO.pickle"),
        _clean_gas,
    ),
    "hepmass": _MafSet("particle collisions", 21, ("1000_train.csv",), _clean_hepmass),
    "miniboone": _MafSet("neutrino events", 43, ("data.npy",), _clean_miniboone),
    "bsds300": _MafSet(
        "patches of photographs", 63, ("BSDS300.hdf5", "bsds300.hdf5"), _clean_bsds300
    ),
}

MAF_SETS: Mapping[str, str] = MappingProxyType(
    {name: f"{entry.description}, {entry.dim} columns" for name, entry in _SETS.items()}
)


def maf_name(path: Path) -> str | None:
    """Returns the set that a folder or file of the archive holds, None where it holds none.

    Sets are known by the names of their folders, in any case: `maf/hepmass`, `BSDS300`; and a file
    by that of its folder.
    """
    name = path.name.lower() if path.is_dir() else path.parent.name.lower()
    if name not in _SETS:
        return None
    found = _file_in(name, path) if path.is_dir() else path.name in _SETS[name].files
    return name if found else None


def find_maf(name: str) -> Path | None:
    """Returns the folder of a set in `data_home`, None where its files are not there."""
    folders = (data_home() / spelling for spelling in (name, name.upper()))
    return next((folder for folder in folders if _file_in(name, folder) is not None), None)


def _file_in(name: str, folder: Path) -> Path | None:
    files = (folder / file for file in _SETS[name].files)
    return next((file for file in files if file.is_file()), None)


def open_maf(name: str, path: Path) -> Dataset:
    """Reads and cleans a set.

    Arguments:
        name: A key of `MAF_SETS`.
        path: Its folder, or the file itself.

    Returns:
        The dataset, standardised as published (BSDS300 is not).

    Raises:
        FileNotFoundError: If the file is not there.
        ImportError: If h5py, which BSDS300 needs, is not installed.
        TypeError: If an array holds no real numbers.
        ValueError: If the file cannot be read, or has another number of columns after cleaning
            than the published one.
    """
    entry = _SETS[name]
    file = path if path.is_file() else _file_in(name, path)
    if file is None:
        raise FileNotFoundError(
            f"open_maf: expected {' or '.join(entry.files)} in {str(path)!r}, found none; unpack "
            "the archive of the five sets there (https://zenodo.org/records/1161203)"
        )
    with np.errstate(all="ignore"):  # What overflows or can't be divided is named by checks.
        cleaned = entry.clean(file)
        _check(cleaned, entry.dim, str(file))
        parts = [(part - cleaned.mean) / cleaned.std for part in cleaned.parts]
    columns = list(entry.columns) or [f"x{i + 1}" for i in range(entry.dim)]
    return table_dataset(name, parts, cleaned.mean, cleaned.std, columns)


def _check(cleaned: _Cleaned, dim: int, source: str) -> None:
    widths = {part.shape[1] for part in cleaned.parts}
    if widths != {dim}:
        raise Refused(
            f"open_maf: expected {dim} columns after cleaning, {source!r} gives "
            f"{', '.join(map(str, sorted(widths)))}; it is not the published file"
        )
    for part in cleaned.parts:
        bad = np.argwhere(~np.isfinite(part))
        if len(bad) or not len(part):
            where = f"row {bad[0][0]}, column {bad[0][1]}" if len(bad) else "an empty split"
            raise Refused(
                f"open_maf: expected finite numbers, {source!r} has {where} (counted from 0, "
                "after cleaning) without; get the file again"
            )
    if not (np.isfinite(cleaned.std).all() and (cleaned.std > 0.0).all()):
        raise Refused(
            f"open_maf: expected columns that vary, {source!r} has constant ones; it is not the "
            "published file"
        )
