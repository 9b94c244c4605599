"""The five tables of the MAF archive, against a plain recomputation with pandas.

The files are made here, in the published formats; the published numbers of columns must come out.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from diffflow_ext.data import describe_sets, open_dataset

Splits = tuple[np.ndarray, np.ndarray, np.ndarray]


# --- files in the published formats --------------------------------------------------------------


def write_power(folder: Path, n: int = 500) -> None:
    rng = np.random.default_rng(1)
    np.save(folder / "data.npy", np.round(rng.gamma(2.0, 1.0, (n, 8)), 3))


def gas_frame(n: int = 600) -> pd.DataFrame:
    """Sixteen sensors in eight pairs; the partners of each correlate above 0.98."""
    rng = np.random.default_rng(2)
    base = rng.normal(size=(n, 8)) @ rng.normal(size=(8, 8))
    sensors = np.c_[base + 0.01 * rng.normal(size=(n, 8)), 3.0 * base + 7.0]
    let_in = np.c_[np.arange(n) / 100.0, rng.integers(0, 5, (n, 2))]
    names = ["Time", "Meth", "Eth", *(f"R{i}" for i in range(16))]
    return pd.DataFrame(np.c_[let_in, sensors[:, rng.permutation(16)]], columns=names)


def write_gas(folder: Path) -> None:
    np.save(folder / "ethylene_CO.npy", gas_frame().to_numpy())


def write_hepmass(folder: Path, n: int = 400) -> None:
    """27 features, six of which take few values; the test file has one column more."""
    rng = np.random.default_rng(3)
    names = ["# label", *(f"f{i}" for i in range(27))]
    for file, extra in (("1000_train.csv", []), ("1000_test.csv", ["mass"])):
        values = rng.normal(2.0, 3.0, (n, 27))
        values[:, [3, 7, 11, 15, 19, 25]] = rng.integers(0, 3, (n, 6))
        frame = pd.DataFrame(np.c_[rng.integers(0, 2, n), values], columns=names)
        for name in extra:
            frame[name] = 1000.0
        frame.to_csv(folder / file, index=False)


def write_miniboone(folder: Path, n: int = 300) -> None:
    rng = np.random.default_rng(4)
    np.save(folder / "data.npy", rng.normal(5.0, 2.0, (n, 43)))


def write_bsds300(folder: Path) -> None:
    rng = np.random.default_rng(5)
    with h5py.File(folder / "BSDS300.hdf5", "w") as file:
        for name, n in (("train", 90), ("validation", 20), ("test", 30)):
            file[name] = rng.normal(0.0, 0.1, (n, 63)).astype(np.float32)


# --- the published steps, recomputed -------------------------------------------------------------


def tenths(values: np.ndarray) -> Splits:
    n_test = int(0.1 * len(values))
    rest, test = values[:-n_test], values[-n_test:]
    n_valid = int(0.1 * len(rest))
    return rest[:-n_valid], rest[-n_valid:], test


def by_train_and_valid(splits: Splits) -> Splits:
    known = np.vstack(splits[:2])
    return tuple((part - known.mean(0)) / known.std(0) for part in splits)  # type: ignore[return-value]


def expected_power(folder: Path) -> Splits:
    rng = np.random.RandomState(42)
    rows = list(np.load(folder / "data.npy"))
    for i in range(len(rows) - 1, 0, -1):  # Fisher-Yates, as the legacy shuffle draws it
        j = _interval(rng, i)
        rows[i], rows[j] = rows[j], rows[i]
    frame = pd.DataFrame(rows).drop(columns=[3, 1])
    frame[2] += 0.01 * rng.rand(len(frame))
    frame[0] += 0.001 * rng.rand(len(frame))
    frame[[4, 5, 6]] += rng.rand(len(frame), 3)
    return by_train_and_valid(tenths(frame.to_numpy()))


def _interval(rng: np.random.RandomState, largest: int) -> int:
    """A uniform whole number up to `largest`: masked words, thrown away while too large."""
    mask = (1 << largest.bit_length()) - 1
    while (word := int(rng.randint(0, 1 << 32, dtype=np.uint32)) & mask) > largest:
        pass
    return word


def expected_gas(folder: Path) -> Splits:
    frame = pd.DataFrame(np.load(folder / "ethylene_CO.npy")).drop(columns=[0, 1, 2])
    while True:
        crowded = (frame.corr() > 0.98).sum() > 1
        if not crowded.any():
            break
        frame = frame.drop(columns=crowded.idxmax())
    return tenths(((frame - frame.mean()) / frame.std()).to_numpy())


def expected_hepmass(folder: Path) -> Splits:
    train, test = (
        pd.read_csv(folder / f"1000_{x}.csv", index_col=False) for x in ("train", "test")
    )
    train, test = (x[x["# label"] == 1].drop(columns="# label") for x in (train, test))
    test = test.drop(columns=test.columns[-1])
    mean, std = train.mean(), train.std()
    train, test = (train - mean) / std, (test - mean) / std
    kept = [c for c in train if sorted(Counter(train[c]).items())[0][1] <= 5]
    rows = train[kept].to_numpy()
    n_valid = int(0.1 * len(rows))
    return rows[:-n_valid], rows[-n_valid:], test[kept].to_numpy()


def expected_miniboone(folder: Path) -> Splits:
    return by_train_and_valid(tenths(np.load(folder / "data.npy")))


def expected_bsds300(folder: Path) -> Splits:
    with h5py.File(folder / "BSDS300.hdf5") as file:
        return tuple(np.asarray(file[x]) for x in ("train", "validation", "test"))  # type: ignore[return-value]


#: The number of columns, what writes the files, and what they become.
SETS = {
    "power": (6, write_power, expected_power),
    "gas": (8, write_gas, expected_gas),
    "hepmass": (21, write_hepmass, expected_hepmass),
    "miniboone": (43, write_miniboone, expected_miniboone),
    "bsds300": (63, write_bsds300, expected_bsds300),
}


def made(tmp_path: Path, name: str, spelling: str | None = None) -> Path:
    folder = tmp_path / (spelling or name)
    folder.mkdir(exist_ok=True)
    SETS[name][1](folder)
    return folder


@pytest.mark.parametrize("name", SETS)
def test_the_published_steps(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(tmp_path, name)
    monkeypatch.setenv("DIFFFLOW_DATA", str(tmp_path))
    data = open_dataset(name)
    dim, _, expected = SETS[name]
    assert (data.name, data.dim, len(data.columns)) == (name, dim, dim)
    for part, want in zip((data.train, data.valid, data.test), expected(folder), strict=True):
        got = part.numpy()
        assert got.dtype == np.float32
        assert got.shape == want.shape
        # float32 rounds relative to 1, the standardised scale; pandas sums in another order.
        assert np.allclose(got, want, rtol=1e-6, atol=1e-6)
    again = open_dataset(folder)
    assert again.fingerprint == data.fingerprint
    assert str(folder) in describe_sets()[name]


@pytest.mark.parametrize("name", SETS)
def test_units(tmp_path: Path, name: str) -> None:
    data = open_dataset(made(tmp_path, name))
    assert data.encoding is not None
    std = torch.tensor([column.std for column in data.encoding.columns], dtype=torch.float64)
    known = data.encoding.decoded(torch.cat([data.train, data.valid, data.test]))
    if name == "bsds300":
        assert torch.equal(std, torch.ones(63).double())
    else:
        assert 0.5 < float((known.std(0) / std).min()) < 2.0
    if name == "miniboone":
        raw = np.load(tmp_path / name / "data.npy")
        assert np.allclose(known.numpy(), raw, rtol=1e-6, atol=1e-5)
    assert data.columns[0] == ("global_active_power" if name == "power" else "x1")


def test_folders_go_by_their_name_in_any_case(tmp_path: Path) -> None:
    assert open_dataset(made(tmp_path, "bsds300", "BSDS300")).dim == 63
    assert open_dataset(tmp_path / "BSDS300" / "BSDS300.hdf5").dim == 63
    assert open_dataset(made(tmp_path, "power", "Power") / "data.npy").dim == 6
    # Elsewhere the same file is a table like any other.
    np.save(tmp_path / "data.npy", np.load(tmp_path / "Power" / "data.npy"))
    assert open_dataset(tmp_path / "data.npy").dim == 8


def test_gas_from_other_files(tmp_path: Path) -> None:
    first = open_dataset(made(tmp_path, "gas"))
    file = tmp_path / "gas" / "ethylene_CO.npy"
    np.save(file, gas_frame().iloc[:, 3:].to_numpy())
    assert open_dataset(file).fingerprint == first.fingerprint
    file.unlink()
    gas_frame().to_csv(tmp_path / "gas" / "ethylene_CO.csv", index=False)
    assert open_dataset(tmp_path / "gas").fingerprint == first.fingerprint


def test_the_gas_pickle_is_refused_with_a_way_out(tmp_path: Path) -> None:
    folder = tmp_path / "gas"
    folder.mkdir()
    gas_frame().to_pickle(folder / "ethylene_CO.pickle")
    with pytest.raises(ValueError, match=r"can run any program and is not opened") as info:
        open_dataset(folder)
    command = str(info.value).split("python -c '")[1][:-1]
    here = {"__name__": "user"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(command, here)  # What the user is told to do.
    assert open_dataset(folder).dim == 8


def test_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFFLOW_DATA", str(tmp_path))
    for name in SETS:
        with pytest.raises(FileNotFoundError, match=rf"expected {name} in .*zenodo.org"):
            open_dataset(name)
        assert "not here, unpack the archive" in describe_sets()[name]
    folder = made(tmp_path, "hepmass")
    (folder / "1000_test.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"1000_test.csv"):
        open_dataset("hepmass")


def test_another_number_of_columns_names_the_file(tmp_path: Path) -> None:
    folder = made(tmp_path, "power")
    np.save(folder / "data.npy", np.ones((100, 7)))
    with pytest.raises(
        ValueError, match=r"shape \(n, 8\), .*power/data.npy' has shape \(100, 7\)"
    ):
        open_dataset(folder)
    folder = made(tmp_path, "gas")
    rng = np.random.default_rng(0)
    np.save(folder / "ethylene_CO.npy", rng.normal(size=(100, 16)))
    with pytest.raises(ValueError, match=r"8 columns after cleaning, .*CO.npy' gives 16"):
        open_dataset(folder)
    folder = made(tmp_path, "hepmass")
    frame = pd.read_csv(folder / "1000_train.csv")
    frame["f3"] = rng.normal(size=len(frame))
    frame.to_csv(folder / "1000_train.csv", index=False)
    with pytest.raises(ValueError, match=r"21 columns after cleaning, .*train.csv' gives 22"):
        open_dataset(folder)
    frame.drop(columns="f9").to_csv(folder / "1000_train.csv", index=False)
    with pytest.raises(ValueError, match=r"one column more in 1000_test.csv .* 29 and 27"):
        open_dataset(folder)
    folder = made(tmp_path, "bsds300")
    with h5py.File(folder / "BSDS300.hdf5", "w") as file:
        for name in ("train", "validation", "test"):
            file[name] = rng.normal(size=(20, 64))
    with pytest.raises(ValueError, match=r"63 columns after cleaning, .*hdf5' gives 64"):
        open_dataset(folder)


BAD_CSV = {
    "empty": ("", "is empty"),
    "header alone": ("# label,f0,f1\n", "rows with label 1"),
    "text": ("# label,f0,f1\n1,2,x\n", "is none .*'x'"),
    "short": ("# label,f0,f1\n" + "1,2,3\n" * 20 + "1,2\n", "columns after cleaning|finite"),
    "labels": ("# label,f0,f1\n2,2,3\n", "labels 0 and 1"),
    "no signal": ("# label,f0,f1\n0,2,3\n", "rows with label 1"),
    "narrow": ("# label,f0\n1,2\n", "at least 3 columns"),
    "nan": ("# label,f0,f1\n" + "1,2,nan\n" * 20, "columns after cleaning|finite"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_bad_csv(tmp_path: Path, case: str) -> None:
    text, message = BAD_CSV[case]
    folder = made(tmp_path, "hepmass")
    (folder / "1000_train.csv").write_text(text)
    (folder / "1000_test.csv").write_text(
        text.replace("f1\n", "f1,mass\n").replace("nan\n", "nan,1\n")
    )
    with pytest.raises(ValueError, match=message) as info:
        open_dataset(folder)
    assert str(info.value).startswith("open_maf: expected ")


def test_bad_arrays(tmp_path: Path) -> None:
    folder = made(tmp_path, "miniboone")
    values = np.load(folder / "data.npy")
    values[150, 7] = np.nan
    np.save(folder / "data.npy", values)
    with pytest.raises(ValueError, match="row 150, column 7"):
        open_dataset(folder)
    np.save(folder / "data.npy", np.ones((100, 43)))
    with pytest.raises(ValueError, match="constant ones"):
        open_dataset(folder)
    np.save(folder / "data.npy", np.ones((8, 43)))
    with pytest.raises(ValueError, match="at least 13 rows, got 8"):
        open_dataset(folder)
    np.save(folder / "data.npy", np.full((100, 43), None))
    with pytest.raises(ValueError, match="holds Python objects"):
        open_dataset(folder)


def test_bad_hdf5(tmp_path: Path) -> None:
    folder = made(tmp_path, "bsds300")
    file, good = folder / "BSDS300.hdf5", (folder / "BSDS300.hdf5").read_bytes()
    file.write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match=r"expected an HDF5 file .*cannot be read \(OSError"):
        open_dataset(folder)
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(8 * 63 * 20))
    other = tmp_path / "other.hdf5"
    other.write_bytes(good)
    for link in (h5py.ExternalLink(str(other), "train"), h5py.SoftLink("/validation")):
        file.write_bytes(good)
        with h5py.File(file, "a") as archive:
            del archive["train"]
            archive["train"] = link
        with pytest.raises(ValueError, match="'train' to be an array of numbers with two axes"):
            open_dataset(folder)
    with h5py.File(file, "w") as archive:
        place = [(str(secret), 0, h5py.h5f.UNLIMITED)]
        archive.create_dataset("train", (20, 63), "f8", external=place)
    with pytest.raises(ValueError, match="within"):
        open_dataset(folder)
    with h5py.File(file, "w") as archive:
        archive.create_dataset("train", (10**9, 63), "f8", chunks=(10, 63))
    with pytest.raises(
        ValueError, match=r"at most 67,108,864 bytes, .*\[train\]' has 504,000,000"
    ):
        open_dataset(folder)


def test_missing_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(tmp_path, "bsds300")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"pip install 'diffflow_ext\[data\]'"):
        open_dataset(folder)
