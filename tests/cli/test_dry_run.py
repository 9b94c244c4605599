"""A dry run refuses what the run would refuse, in the same words, and writes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import refusal

from diffflow_ext.cli import main
from diffflow_ext.functional import memory
from diffflow_ext.training.recipes import build

#: Flags of configurations that fail before the first step, with a part of the message.
DOOMED = [
    ("moons --t-end=1e-37", "the shortest step"),
    ("moons --diffusion-start=1e-30", "take a larger g"),
    ("moons --power=1e30", "expected increasing times"),
    ("moons --threads=100000", "expected threads <="),
    ("moons --width=1000000000", "width=1000000000: expected a whole number from 1 to 65536"),
    ("moons --depth=1000000000", "expected a whole number from 0 to 4096"),
    ("moons --batch-size=1000000000000", "batch_size=1000000000000: expected a whole number"),
    ("moons --batch-size=2000", "got 32,000 bytes; take a smaller batch_size"),
    ("moons --net=unet", "net='unet': expected mlp for vectors"),
    ("moons --learning-rate=1e300", "learning_rate=1e+300: expected a number from"),
    ("moons --device=cuda:99", "device='cuda:99'"),
    ("dinof moons --flow=none --t-cutoff=1e-30", "DiNof: expected 0 < t_min"),
    ("dinof moons --flow=none --process=ve --sigma-max=1e38 --t-cutoff=1", ""),
    ("nfdm moons --log-snr-start=41", "log_snr_start=41.0: expected a number from -40 to 40"),
    ("mons", "did you mean 'moons'?"),
    ("mons --warmup=1900", "did you mean 'moons'?"),
]


@pytest.mark.parametrize(("words", "said"), DOOMED)
def test_a_dry_run_refuses_what_the_run_would(
    words: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "memory_of", lambda _: 31_999)
    monkeypatch.setattr(build, "memory_of", lambda _: None)
    command = ["train", *words.split(), "--out", tmp_path / "run"]
    if not said:
        assert main([*map(str, command), "--dry-run"]) == 0
        assert not list(tmp_path.iterdir())
        return
    line = refusal(capsys, *command, "--dry-run")
    assert said in line
    # The run itself says the same, and leaves no folder that would be in the way of the next.
    assert refusal(capsys, *command) == line
    assert not list(tmp_path.iterdir())
