"""The files of the MAF archive, as raw values: NumPy arrays, CSV and HDF5."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import parse_npy
from .reading import Refused, check_file, check_size, read_file, unpacked_limit

__all__ = ["read_bsds300", "read_gas", "read_hepmass", "read_values"]

Values = NDArray[np.float64]

SENSORS = 16
NO_SENSORS = ("Time", "Meth", "Eth")  # The first three columns: time and what was let in.
CONVERT = (
    'import numpy, pandas; numpy.save("ethylene_CO.npy", '
    'pandas.read_pickle("ethylene_CO.pickle").to_numpy())'
)
PARTS = ("train", "validation", "test")
_EXTRA = "pip install 'diffflow_ext[data]'"


def read_values(file: Path, width: int | None = None) -> Values:
    """Reads an `.npy` file of real numbers with shape (n, width) as float64.

    Raises:
        TypeError: If it holds other things than real numbers.
        ValueError: If it cannot be read, or has another shape.
    """
    array = parse_npy("open_maf", read_file("open_maf", file), str(file))
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
    return np.array(array.values(), np.float64, order="C")


def read_gas(file: Path) -> Values:
    """Reads the sensors of the gas table from `.npy` or `.csv`; a pickle is refused.

    Tables of 19 columns begin with time and the two concentrations, which are left out.
    """
    if file.suffix.lower() in (".pickle", ".pkl"):
        raise Refused(
            f"open_maf: expected ethylene_CO.npy or .csv, got the pickle {str(file)!r}, which can "
            "run any program and is not opened; if you trust it, convert it with pandas, in its "
            f"folder: python -c '{CONVERT}'"
        )
    values = _read_csv(file) if file.suffix.lower() == ".csv" else read_values(file)
    if values.shape[1] == SENSORS + len(NO_SENSORS):
        values = np.ascontiguousarray(values[:, len(NO_SENSORS) :])
    if not 2 <= values.shape[1] <= SENSORS:
        raise Refused(
            f"open_maf: expected {SENSORS} sensors, or these after {', '.join(NO_SENSORS)}, "
            f"{str(file)!r} has {values.shape[1]} columns; convert the published file anew"
        )
    return values


def read_hepmass(file: Path) -> tuple[Values, Values]:
    """Reads the signal rows for training and test, labels left out.

    The published test file has one column more than its partner, at the end, which goes.
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
    """Values of a CSV file with a header, without its last `leave_out` columns.

    As when pandas reads with `index_col=False`, cells beyond the header don't count.
    """
    check_file("open_maf", file)
    try:
        with file.open(encoding="utf-8") as stream, warnings.catch_warnings():
            warnings.simplefilter("error")
            names = stream.readline(1 << 16).rstrip("\r\n").split(",")
            columns = range(max(len(names) - leave_out, 1))
            values = np.loadtxt(stream, delimiter=",", comments=None, usecols=columns, ndmin=2)
    # A short line is an IndexError or a ValueError, an empty file a UserWarning.
    except (ValueError, IndexError, OSError, UserWarning) as error:
        raise Refused(
            f"open_maf: expected a CSV file of numbers with a header, {str(file)!r} is none "
            f"({error}); get the file again"
        ) from error
    return values


def read_bsds300(file: Path) -> tuple[Values, Values, Values]:
    """Reads the three arrays `train`, `validation` and `test` of an HDF5 file.

    Raises:
        ImportError: If h5py is not installed.
        ValueError: If the file is damaged, lacks one, or leads to another file.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            "open_maf: expected the package h5py, which reads BSDS300, and it is not installed; "
            f"run: {_EXTRA}"
        ) from error
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
