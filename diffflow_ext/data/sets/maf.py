r"""POWER, GAS, HEPMASS, MINIBOONE and BSDS300, cleaned as in papers on density estimation.

The steps are those of Masked Autoregressive Flow (Papamakarios et al., 2017) and of later papers,
so scores are comparable with published ones: 6, 8, 21, 43 and 63 columns, nats in standardised
units, splits by position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..dataset import Dataset, table_dataset
from ..encoding import Encoding
from ..formats.arrays import load_npy
from ..formats.reading import Refused, check_file, check_size, optional_package, unpacked_limit
from ..formats.text import exact_numbers
from .home import data_home

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
    """A set of the archive: `files` are its possible names, in order of preference."""

    description: str
    dim: int
    files: tuple[str, ...]
    clean: Callable[[Path], _Cleaned]
    columns: tuple[str, ...] = ()


def _last_tenths(values: Values) -> tuple[Values, Values, Values]:
    """Splits off the last tenth for the test, then the last tenth of the rest for validation."""
    rest, test = _last_tenth(values)
    return (*_last_tenth(rest), test)


def _last_tenth(values: Values) -> tuple[Values, Values]:
    count = int(0.1 * len(values))
    if count < 1:
        raise Refused(f"open_maf: expected at least 13 rows, got {len(values)}; the file is cut")
    return values[:-count], values[-count:]


def _standardised(parts: tuple[Values, Values, Values]) -> _Cleaned:
    """Standardises by mean and deviation of training and validation rows together."""
    rows = np.concatenate(parts[:2])
    return _Cleaned(parts, rows.mean(axis=0), rows.std(axis=0))


def _clean_power(file: Path) -> _Cleaned:
    """Shuffles, drops reactive power and intensity, and adds noise below the meters' steps."""
    values = _read_values(file, 8)
    # The legacy generator and the order of its draws are part of what was published.
    rng = np.random.RandomState(42)
    rng.shuffle(values)
    values = np.delete(values, [1, 3], axis=1)
    n = len(values)
    voltage, power, meters = 0.01 * rng.rand(n, 1), 0.001 * rng.rand(n, 1), rng.rand(n, 3)
    noise = np.hstack([power, voltage, meters, np.zeros((n, 1))])
    return _standardised(_last_tenths(values + noise))


def _clean_gas(file: Path) -> _Cleaned:
    """Drops columns until no two correlate above 0.98; standardises by all rows, as published."""
    values = _read_gas(file)
    while True:
        crowded = (np.corrcoef(values, rowvar=False) > CORRELATED).sum(axis=1) > 1
        if not crowded.any():
            break
        values = np.delete(values, int(np.argmax(crowded)), axis=1)
    return _Cleaned(_last_tenths(values), values.mean(axis=0), values.std(axis=0, ddof=1))


def _clean_hepmass(file: Path) -> _Cleaned:
    """Keeps the signal, and drops columns whose smallest value occurs more than five times.

    That is the published test for columns of few values; the 1,000 GeV sample loses six.
    """
    train, test = _read_hepmass(file)
    columns = (train == train.min(axis=0)).sum(axis=0) <= REPEATED
    train, test = train[:, columns], test[:, columns]
    rest, valid = _last_tenth(train)
    return _Cleaned((rest, valid, test), train.mean(axis=0), train.std(axis=0, ddof=1))


def _clean_miniboone(file: Path) -> _Cleaned:
    return _standardised(_last_tenths(_read_values(file, 43)))


def _clean_bsds300(file: Path) -> _Cleaned:
    """Returns the published patches, whose means are removed; papers do not standardise them."""
    parts = _read_bsds300(file)
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
    """Returns the set of a folder or file of the archive, None if it is no set.

    Sets are recognised by the names of their folders, in upper or lower case: `maf/hepmass`,
    `BSDS300`.
    """
    name = path.name.lower() if path.is_dir() else path.parent.name.lower()
    if name not in _SETS:
        return None
    is_set = _file_in(name, path) if path.is_dir() else path.name in _SETS[name].files
    return name if is_set else None


def find_maf(name: str) -> Path | None:
    """Returns the folder of a set in `data_home`, None if it has no file of the set."""
    folders = (data_home() / spelling for spelling in (name, name.upper()))
    return next((folder for folder in folders if _file_in(name, folder) is not None), None)


def _file_in(name: str, folder: Path) -> Path | None:
    files = (folder / file for file in _SETS[name].files)
    return next((file for file in files if file.is_file()), None)


def open_maf(name: str, path: Path) -> Dataset:
    """Reads and cleans a set, a key of `MAF_SETS`, from its folder or file.

    It is standardised as published (BSDS300 is not). Files that have another number of columns
    after cleaning than the published one are refused.
    """
    entry = _SETS[name]
    file = path if path.is_file() else _file_in(name, path)
    if file is None:
        raise FileNotFoundError(
            f"open_maf: expected {' or '.join(entry.files)} in {str(path)!r}, found none; unpack "
            "the archive of the five sets there (https://zenodo.org/records/1161203)"
        )
    with np.errstate(all="ignore"):  # Values that are not finite are refused by checks.
        cleaned = entry.clean(file)
        _check(cleaned, entry.dim, str(file))
        parts = [(part - cleaned.mean) / cleaned.std for part in cleaned.parts]
    columns = list(entry.columns) or [f"x{i + 1}" for i in range(entry.dim)]
    tensors = [torch.from_numpy(part.astype(np.float32)) for part in parts]
    return table_dataset(name, tensors, Encoding.linear(columns, cleaned.mean, cleaned.std))


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
            fault = f"row {bad[0][0]}, column {bad[0][1]}" if len(bad) else "an empty split"
            raise Refused(
                f"open_maf: expected finite numbers, {source!r} has {fault} (counted from 0, "
                "after cleaning) without; get the file again"
            )
    if not (np.isfinite(cleaned.std).all() and (cleaned.std > 0.0).all()):
        raise Refused(
            f"open_maf: expected columns that vary, {source!r} has constant ones; it is not the "
            "published file"
        )


SENSORS = 16
NO_SENSORS = ("Time", "Meth", "Eth")  # The first three columns: time and two concentrations.
CONVERT = (
    'import numpy, pandas; numpy.save("ethylene_CO.npy", '
    'pandas.read_pickle("ethylene_CO.pickle").to_numpy())'
)
PARTS = ("train", "validation", "test")


def _read_values(file: Path, width: int | None = None) -> Values:
    """Reads a `.npy` file of real numbers with shape (n, width) as float64."""
    array = load_npy("open_maf", file)
    if array.dtype.kind not in "fiu":
        raise TypeError(
            f"open_maf: expected an array of real numbers, {str(file)!r} holds {array.dtype}; it "
            "is not the published file"
        )
    fits = len(array.shape) == 2 and array.shape[1] == (width or array.shape[1])
    if not fits or not array.shape[0]:
        raise Refused(
            f"open_maf: expected shape (n, {width or 'd'}), {str(file)!r} has shape "
            f"{array.shape}; it is not the published file (a table of your own needs a folder of "
            "another name)"
        )
    return np.array(array, np.float64, order="C")


def _read_gas(file: Path) -> Values:
    """Reads the sensors of the gas table from `.npy` or `.csv`; a pickle is refused.

    In tables of 19 columns the first three, time and two concentrations, are left out.
    """
    if file.suffix.lower() in (".pickle", ".pkl"):
        raise Refused(
            f"open_maf: expected ethylene_CO.npy or .csv, got the pickle {str(file)!r}, which can "
            "run any program and is not opened; if you trust it, convert it with pandas, in its "
            f"folder: python -c '{CONVERT}'"
        )
    values = _read_csv(file) if file.suffix.lower() == ".csv" else _read_values(file)
    if values.shape[1] == SENSORS + len(NO_SENSORS):
        values = np.ascontiguousarray(values[:, len(NO_SENSORS) :])
    if not 2 <= values.shape[1] <= SENSORS:
        raise Refused(
            f"open_maf: expected {SENSORS} sensors, or these after {', '.join(NO_SENSORS)}, "
            f"{str(file)!r} has {values.shape[1]} columns; convert the published file anew"
        )
    return values


def _read_hepmass(file: Path) -> tuple[Values, Values]:
    """Reads the signal rows for training and test, without labels.

    The published test file has one more column, at the end, which is left out.
    """
    train = _signal(file, 0)
    test = _signal(file.with_name("1000_test.csv"), 1)
    if train.shape[1] != test.shape[1]:
        raise Refused(
            f"open_maf: expected one column more in 1000_test.csv than in {file.name}, "
            f"{str(file.parent)!r} has {test.shape[1] + 2} and {train.shape[1] + 1}; they are not "
            "the published files"
        )
    return train, test


def _signal(file: Path, leave_out: int) -> Values:
    values = _read_csv(file, leave_out)
    if values.shape[1] < 3 or not set(np.unique(values[:, 0])) <= {0.0, 1.0}:
        raise Refused(
            f"open_maf: expected labels 0 and 1 in the first of at least 3 columns, {str(file)!r} "
            "has others; it is not the published file"
        )
    signal = values[values[:, 0] == 1.0, 1:]
    if not len(signal):
        raise Refused(
            f"open_maf: expected rows with label 1, {str(file)!r} has none; get the file again"
        )
    return signal


def _read_csv(file: Path, leave_out: int = 0) -> Values:
    """Returns the values of a CSV file with a header, without its last `leave_out` columns.

    Gaps are NaN, and cells beyond the header are ignored.
    """
    import pandas

    check_file("open_maf", file)
    options: Any = {"dtype": np.float64, "index_col": False, **exact_numbers()}
    try:
        values = pandas.read_csv(file, engine="c", **options).to_numpy()
    except (ValueError, OSError) as error:
        raise Refused(
            f"open_maf: expected a CSV file of numbers with a header, {str(file)!r} is none "
            f"({error}); get the file again"
        ) from error
    return np.ascontiguousarray(values[:, : values.shape[1] - leave_out])


def _read_bsds300(file: Path) -> tuple[Values, Values, Values]:
    """Reads the arrays `train`, `validation` and `test` of an HDF5 file, without links."""
    h5py = optional_package("open_maf", "h5py", "reads BSDS300")
    check_file("open_maf", file)
    try:
        with h5py.File(file, "r") as archive:
            train, valid, test = (_hdf5_array(h5py, archive, part, file) for part in PARTS)
    except Refused:
        raise
    # The HDF5 library reports damage in many ways.
    except Exception as error:
        raise Refused(
            f"open_maf: expected an HDF5 file with {', '.join(PARTS)}, {str(file)!r} cannot be "
            f"read ({type(error).__name__}: {error}); get the file again"
        ) from error
    return train, valid, test


def _hdf5_array(h5py: Any, archive: Any, part: str, file: Path) -> Values:
    link = archive.get(part, getlink=True)
    array: Any = archive[part] if isinstance(link, h5py.HardLink) else None
    inside = isinstance(array, h5py.Dataset) and not array.external and not array.is_virtual
    if array is None or not inside or array.ndim != 2 or array.dtype.kind not in "fiu":
        raise Refused(
            f"open_maf: expected {part!r} to be an array of numbers with two axes, within "
            f"{str(file)!r} itself; it is not the published file"
        )
    check_size("open_maf", f"{file}[{part}]", array.size * 8, unpacked_limit(file.stat().st_size))
    return array[()].astype(np.float64)
