"""Pictures and films of paths show the states that they were given, and refuse bad ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="needs the plot extra")

from matplotlib import image
from PIL import Image

from diffflow_ext.figures import Paths, film, save, trajectories
from diffflow_ext.figures.paths import FRAMES_PER_SECOND, STILL

RNG = np.random.default_rng(0)
TIMES = np.linspace(0.001, 0.05, 9)
WALK = np.cumsum(RNG.normal(size=(9, 50, 2)), axis=0)
WALKS = Paths(WALK, WALK, TIMES)


def _rgb(path: Path) -> np.ndarray:
    return np.asarray(image.imread(path))[:, :, :3]


def test_states_with_a_graph_make_the_picture_of_their_values(tmp_path: Path) -> None:
    """As those of DiffFlowSDE.path, whose parameters require gradients."""
    states = torch.tensor(WALK, requires_grad=True)
    graph, plain = tmp_path / "graph.png", tmp_path / "plain.png"
    save(trajectories(Paths(states, states, TIMES), "t"), graph)
    save(trajectories(WALKS, "t"), plain)
    assert np.array_equal(_rgb(graph), _rgb(plain))


def test_trajectories(tmp_path: Path) -> None:
    path = save(trajectories(Paths(WALK, WALK[:, :20], TIMES), "rows"), tmp_path / "t.png")
    picture = _rgb(path)
    assert picture.shape[:2] == (int(150 * 4.25), int(150 * 11.0))
    inked = (picture.max(axis=2) - picture.min(axis=2)) > 0.3
    height, width = inked.shape
    for row in range(2):
        for column in range(6):
            part = inked[
                height * row // 2 : height * (row + 1) // 2,
                width * column // 6 : width * (column + 1) // 6,
            ]
            assert part.sum() > 30, (row, column)


def test_several_models_have_their_own_rows_and_times(tmp_path: Path) -> None:
    long = Paths(np.repeat(WALK, 2, axis=0)[:17], WALK[[0, 1, 2] * 5 + [0, 1]], np.arange(17.0))
    figure = trajectories({"one": WALKS, "two": long}, "both")
    assert len(figure.axes) == 4 * 6
    labels = [panel.get_ylabel().split("\n")[0] for panel in figure.axes[::6]]
    assert labels == ["one", "one", "two", "two"]
    assert [panel.get_title() for panel in figure.axes[12:18]][-1] == "t = 16"
    drawn = figure.axes[0].collections[0].get_offsets()
    assert np.allclose(drawn, WALK[0])
    assert save(figure, tmp_path / "both.png").exists()


def test_a_film_goes_from_data_to_noise_and_back(tmp_path: Path) -> None:
    """Data are a dot on the left, noise one on the right: halves of the frames show which."""
    states = np.zeros((9, 30, 2)) + 0.01 * RNG.normal(size=(9, 30, 2))
    states[:, :, 0] += np.linspace(-1.0, 1.0, 9)[:, None]
    with Image.open(film(Paths(states, states, TIMES), tmp_path / "f.gif", "title")) as file:
        frames, milliseconds = [], 0
        for i in range(file.n_frames):  # pyright: ignore[reportAttributeAccessIssue]
            file.seek(i)
            frames.append(np.asarray(file.convert("RGB"), np.int64))
            milliseconds += file.info["duration"]
    # It stands still at its ends.
    assert milliseconds == (9 + 2 * STILL) * 1000 // FRAMES_PER_SECOND

    def place(frame: np.ndarray, side: int) -> float:
        half = np.array_split(frame, 2, axis=1)[side]
        inked = half.max(axis=2) - half.min(axis=2) > 60
        return float(np.flatnonzero(inked.any(axis=0)).mean() / half.shape[1])

    assert place(frames[0], 0) < 0.4 < 0.6 < place(frames[-1], 0)
    assert place(frames[-1], 1) < 0.5 < place(frames[0], 1)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_a_film_as_mp4(tmp_path: Path) -> None:
    file = film(WALKS, tmp_path / "f.mp4", "title")
    assert b"ftyp" in file.read_bytes()[:16]


def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"got 8 times for \[9, 9\] states"):
        trajectories(Paths(WALK, WALK, TIMES[:8]), "t")
    with pytest.raises(ValueError, match="increasing times"):
        trajectories(Paths(WALK, WALK, TIMES[::-1]), "t")
    with pytest.raises(ValueError, match=r"\(N \+ 1, B, 2\) with N >= 1, got \(1, 50, 2\)"):
        trajectories(Paths(WALK[:1], WALK, TIMES), "t")
    with pytest.raises(ValueError, match=r"^trajectories: expected paths of at least one model"):
        trajectories({}, "t")
    with pytest.raises(ValueError, match=r"^film: expected a path ending in \.gif, \.mp4, got"):
        film(WALKS, tmp_path / "f.avi", "t")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="expected the program ffmpeg"):
        film(WALKS, tmp_path / "f.mp4", "t")
