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

from diffflow_ext.figures import Axis, Paths, film, save, trajectories
from diffflow_ext.figures.paths import FRAMES_PER_SECOND, LINES, STILL

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


def test_trajectories() -> None:
    figure = trajectories(Paths(WALK, WALK[:, :20], TIMES), "rows", columns=["a", "b"])
    panels = np.array(figure.axes).reshape(2, 6)
    picks = np.linspace(0, 8, 6).round().astype(int)
    for row, states in zip(panels, (WALK, WALK[:, :20]), strict=True):
        for panel, pick in zip(row, picks, strict=True):
            assert np.allclose(panel.collections[0].get_offsets(), states[pick])
    assert [panel.get_title() for panel in panels[0]] == [f"t = {TIMES[i]:.3g}" for i in picks]
    assert {panel.get_xlim() for panel in panels.flat} == {panels[0, 0].get_xlim()}
    assert {panel.get_ylim() for panel in panels.flat} == {panels[0, 0].get_ylim()}
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("a", "b")
    assert [panels[i, 0].get_ylabel().split()[-1] for i in range(2)] == [
        "\N{RIGHTWARDS ARROW}", "reverse"
    ]  # fmt: skip


def test_lines_are_the_past_of_a_process() -> None:
    """Forward from the data, reverse from the noise."""
    panels = np.array(trajectories(WALKS, "lines").axes).reshape(2, 6)
    picks = np.linspace(0, 8, 6).round().astype(int)
    for pick, forward, reverse in zip(picks, *panels, strict=True):
        for panel, past in ((forward, WALK[: pick + 1]), (reverse, WALK[pick:])):
            assert len(panel.lines) == LINES
            for line in panel.lines:
                path = np.column_stack(line.get_data())
                assert any(np.allclose(path, past[:, i]) for i in range(50))
            heads = np.asarray(panel.collections[1].get_offsets())
            end = 0 if panel is reverse else -1
            ends = [np.column_stack(line.get_data())[end] for line in panel.lines]
            assert np.allclose(heads, ends)


def test_states_lie_on_the_axes_of_their_columns() -> None:
    states = np.exp(WALK)
    axes = [Axis("a", "log"), Axis("b", "log")]
    figure = trajectories(Paths(states, states, TIMES), "log", columns=axes)
    assert np.allclose(figure.axes[0].collections[0].get_offsets(), WALK[0])
    assert figure.get_supxlabel() == "a\n(log scale)"
    with pytest.raises(ValueError, match=r"^trajectories: expected 2 column names, got 1"):
        trajectories(WALKS, "t", columns=["a"])


def test_few_states_stand_at_the_ends() -> None:
    short = Paths(WALK[:3], WALK[:3], TIMES[:3])
    figure = trajectories({"long": WALKS, "short": short}, "both")
    rows = np.array(figure.axes).reshape(4, 6)
    shown = [panel.get_visible() for panel in rows[2]]
    assert sum(shown) == 3
    assert shown[0]
    assert shown[-1]
    assert rows[2, -1].get_title() == f"t = {TIMES[2]:.3g}"


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
        assert file.info["loop"] == 0
        assert tuple(frames[0][0, 0]) == (255, 255, 255)
    # It stands still at its ends.
    assert milliseconds == (9 + 2 * STILL) * 1000 // FRAMES_PER_SECOND

    def place(frame: np.ndarray, side: int) -> float:
        # Only the left panel has numbers beside it.
        half = np.array_split(frame, [round(0.56 * frame.shape[1])], axis=1)[side]
        inked = half.max(axis=2) - half.min(axis=2) > 60
        return float(np.flatnonzero(inked.any(axis=0)).mean() / half.shape[1])

    assert place(frames[0], 0) < 0.4 < 0.6 < place(frames[-1], 0)
    assert place(frames[-1], 1) < 0.5 < place(frames[0], 1)


def test_a_film_that_is_not_finished_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = film(WALKS, tmp_path / "f.gif", "title")
    before = file.read_bytes()

    def stopped(self: Image.Image, path: str, **options: object) -> None:
        Path(path).write_bytes(b"the beginning")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        film(WALKS, file, "another")
    assert file.read_bytes() == before
    assert [*tmp_path.iterdir()] == [file]


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
