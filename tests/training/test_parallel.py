"""Several processes on one run: the same numbers as one process, and errors that all hear of."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from process_runs import POINTS, SMALL, assert_like, finished, losses, run, start

from diffflow_ext.cli import main
from diffflow_ext.training.store.checkpoint import load_latest


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run by one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert main(["train", *POINTS, "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("size", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4))])
def test_training_does_not_depend_on_the_number_of_processes(
    alone: Path, tmp_path: Path, size: int
) -> None:
    """Ten samples among two processes and, unevenly, among three."""
    ends = run(size, "train", *POINTS, "--out", str(tmp_path / "run"))
    assert_like(tmp_path / "run", alone)
    # One process talks.
    assert [bool(out) for _, out, _ in ends] == [True] + [False] * (size - 1)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number(tmp_path: Path) -> None:
    # Whose learning rate and N don't depend on the last step.
    words = (*POINTS[:-4], "--threads", "1", "--schedule", "constant", "--progressive", "off")
    run(1, "train", *words, "--steps", "4", "--out", str(tmp_path / "whole"))
    out = ("--out", str(tmp_path / "run"))
    run(2, "train", *words, "--steps", "2", *out)
    run(1, "train", "--resume", "--steps", "4", *out)
    assert_like(tmp_path / "run", tmp_path / "whole")


OTHERS = {
    "dinof": ("dinof", "moons", *SMALL[:4]),
    "nfdm": ("nfdm", "moons", *SMALL[:4]),
    "ddpm": ("ddpm", "moons", *SMALL[:4], "--timesteps", "20"),
    "flow": ("flow", "moons"),
    "learned g": ("moons", *SMALL[:6], "--learn-diffusion"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_models(tmp_path: Path, name: str) -> None:
    words = (*OTHERS[name], "--batch-size", "9", "--steps", "2", "--log-every", "1")
    for size in (1, 2):
        run(size, "train", *words, "--out", str(tmp_path / str(size)))
    assert_like(tmp_path / "2", tmp_path / "1")


@pytest.mark.slow
# Adam turns the rounding of gradients near 0 into steps of the learning rate: small for Glow,
# whose loss is steep.
@pytest.mark.parametrize("more", [(), ("--glow-blocks", "1", "--learning-rate", "1e-4")])
@pytest.mark.parametrize("shard", [(), ("--shard",)], ids=["whole", "shares"])
def test_images(tmp_path: Path, more: tuple[str, ...], shard: tuple[str, ...]) -> None:
    """Mirrors and noise between the levels are those of the global index.

    Layers that take their scale from the first batch see all of it.
    """
    if more:
        pytest.importorskip("normflows")
    levels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=levels)
    unet = ("--num-steps", "2", "--unet-base", "8", "--unet-mults", "1,2")
    common = ("--batch-size", "5", "--steps", "2", "--log-every", "1", "--flip", "on")
    model = "flow" if more else "diffflow"
    words = (model, str(tmp_path / "images.npz"), *common, *(more or unet))
    run(1, "train", *words, "--out", str(tmp_path / "1"))
    run(2, "train", *words, *shard, "--out", str(tmp_path / "2"))
    assert_like(tmp_path / "2", tmp_path / "1")


@pytest.mark.slow
def test_samples_and_likelihoods_are_those_of_one_process(alone: Path, tmp_path: Path) -> None:
    found: dict[int, Any] = {}
    for size in (1, 2):
        file = tmp_path / f"{size}.npy"
        run(size, "sample", str(alone), "--n", "4500", "--out", str(file))
        run(size, "evaluate", str(alone), "--n", "4500", "--ode-n", "50", "--no-figures")
        found[size] = np.load(file), json.loads((alone / "evaluation.json").read_text())
    assert np.array_equal(found[1][0], found[2][0])
    assert found[1][1] == found[2][1]


#: The program, and the names of the threads that it leaves.
THREADS = """
import sys
from pathlib import Path
from diffflow_ext.cli import main
code = main(sys.argv[1:])
print(*(file.read_text() for file in Path("/proc/self/task").glob("*/comm")), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="names of threads: only on Linux")
def test_no_thread_of_the_group_is_left(alone: Path, tmp_path: Path) -> None:
    """A thread that outlives the interpreter can abort the process at its end."""
    for words in (
        ("train", *POINTS, "--out", str(tmp_path / "run")),
        ("sample", str(alone), "--n", "4500", "--out", str(tmp_path / "samples.npy")),
        ("evaluate", str(alone), "--n", "4500", "--ode-n", "50", "--no-figures"),
    ):
        for code, _, err in finished(start(2, *words, program=("-c", THREADS))):
            assert code == 0, err
            assert "python" in err
            assert "gloo" not in err, words


#: A program whose processes add up the number of their group.
SUM = """
import sys, torch
from torch import distributed
distributed.init_process_group("gloo")
total = torch.tensor(float(sys.argv[1]))
distributed.all_reduce(total)
print(float(total))
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_groups_that_start_at_once_do_not_meet() -> None:
    groups = [start(2, program=("-c", SUM, str(number))) for number in range(4)]
    ports = [group[0].store.port for group in groups]
    assert len({*ports}) == 4
    for port in ports:
        # No other test can open it, while the processes of the group are still on their way.
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
    for number, group in enumerate(groups):
        ends = finished(group)
        assert [(code, out.strip()) for code, out, _ in ends] == [(0, f"{2.0 * number}")] * 2, ends


@pytest.mark.slow
def test_what_one_refuses_all_refuse(alone: Path, tmp_path: Path) -> None:
    ends = finished(start(2, "train", *POINTS, "--out", str(alone)))
    assert [code for code, *_ in ends] == [2, 1]
    assert "holds a run already" in ends[0][2]
    assert "process 0 failed" in ends[1][2]
    assert all("Traceback" not in err for *_, err in ends)


@pytest.mark.slow
def test_a_signal_to_one_stops_all(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ("moons", *SMALL, "--batch-size", "10", "--steps", "1000000", "--threads", "1")
    processes = start(2, "train", *words, "--out", str(out))
    while len(losses(out)) < 3:
        assert all(process.poll() is None for process in processes), finished(processes)
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    ends = finished(processes)
    assert [code for code, *_ in ends] == [128 + signal.SIGTERM] * 2, ends
    assert load_latest(out / "checkpoints").step >= 3


#: A loop of one's own: two parts of a batch, of which the first is not exchanged yet.
OWN_LOOP = """
import sys, torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from diffflow_ext import DiffFlowSDE, NoiseKey, TimeGrid
from diffflow_ext.nets import FourierMLP

class Loss(nn.Module):
    def __init__(self, engine):
        super().__init__()
        torch.manual_seed(0)
        self.sde = DiffFlowSDE(FourierMLP(2, 16, 1), FourierMLP(2, 16, 1), 0.5)
        self.engine = engine
    def forward(self, x0, offset):
        grid = TimeGrid.power(5, 1.0)
        return self.sde.mean_loss(x0, grid, NoiseKey(7), sample_offset=offset, engine=self.engine)

distributed.init_process_group("gloo")
rank, engine = distributed.get_rank(), sys.argv[1]
x0 = torch.randn(16, 2, generator=torch.Generator().manual_seed(1))
whole = Loss(engine)
whole(x0, 0).backward()
own = DistributedDataParallel(Loss(engine))
first, second = 8 * rank, 8 * rank + 4
with own.no_sync():
    (own(x0[first:second], first) / 2).backward()
alone = [p.grad.clone() for p in own.parameters()]
(own(x0[second : second + 4], second) / 2).backward()
for p, q, before in zip(own.parameters(), whole.parameters(), alone, strict=True):
    assert not torch.allclose(before, q.grad, rtol=1e-3)
    torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["autograd", "fused"])
def test_gradients_accumulate_without_an_exchange(engine: str) -> None:
    """DistributedDataParallel.no_sync around the losses, in a loop of one's own."""
    ends = finished(start(2, program=("-c", OWN_LOOP, engine)))
    assert [code for code, *_ in ends] == [0, 0], ends


#: A program in which one process has an error that the others know nothing of.
FAILING = """
import os, sys
from diffflow_ext.cli import main
from diffflow_ext.training.loop import batches
from diffflow_ext.training.store import directory
if os.environ["RANK"] == "1" and sys.argv[1] == "step":
    plain = batches.Batches.__call__
    def fail(self, step):
        if step == 2:
            raise MemoryError("out of memory")
        return plain(self, step)
    batches.Batches.__call__ = fail
if os.environ["RANK"] == "0" and sys.argv[1] == "log":
    def fail(self, values):
        raise OSError(28, "No space left on device")
    directory.MetricsLog.write = fail
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["step", "log"])
def test_an_error_of_one_process_ends_all(tmp_path: Path, where: str) -> None:
    """Instead of leaving them to wait for one another."""
    words = (*POINTS[:-4], "--steps", "50", "--threads", "1", "--out", str(tmp_path / "run"))
    processes = start(2, "train", *words, program=("-c", FAILING, where))
    ends = finished(processes, seconds=60)
    # Less than 0 are those that had to be killed.
    assert all(code > 0 for code, *_ in ends), ends
    said = "out of memory" if where == "step" else "No space left"
    assert said in "".join(err for *_, err in ends)


@pytest.mark.slow
def test_folders_that_differ_are_refused(alone: Path, tmp_path: Path) -> None:
    """As a disk that only one machine sees: one goes on with a run, the other starts one."""
    shutil.copytree(alone, tmp_path / "0")
    words = ("train", *POINTS[:-4], "--threads", "1", "--steps", "8", "--resume", "--out", "RANK")
    ends = finished(start(2, *words, folder=tmp_path))
    assert [code for code, *_ in ends] == [1, 1], ends
    assert all("on a disk that all see" in err for *_, err in ends)


@pytest.mark.slow
def test_torchrun_names_the_process_that_refused(alone: Path) -> None:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    words = (sys.executable, *launch, "-m", "diffflow_ext", "train", *POINTS, "--out", str(alone))
    said = subprocess.run(words, check=False, capture_output=True, text=True, timeout=120).stderr
    cause = said.split("Root Cause")[1]
    assert re.search(r"rank +: 0 ", cause), said
    assert re.search(r"exitcode +: 2 ", cause), said


ELASTIC = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
           "--max-restarts", "2", "-m", "diffflow_ext")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--shard",)], ids=["whole", "shares"])
def test_a_killed_process_is_restarted_and_nothing_is_lost(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    """SIGKILL for one of two, as where a machine runs out of memory; torchrun starts both anew."""
    words = ("train", *POINTS[:-4], "--steps", "150", "--threads", "1", "--save-every", "5", *more)
    run(2, *words, "--out", str(tmp_path / "alone"))
    out = tmp_path / "run"
    torchrun = subprocess.Popen(
        [*ELASTIC, *words, "--resume", "--out", str(out)],
        env=os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while not (out / "checkpoints" / "latest").exists():
            assert torchrun.poll() is None, torchrun.communicate()
            time.sleep(0.02)
        children = psutil.Process(torchrun.pid).children()
        ranks = {child.environ().get("RANK"): child for child in children}
        assert "1" in ranks, "the run has ended before it could be killed"
        ranks["1"].kill()
        _, said = torchrun.communicate(timeout=240)
    finally:
        if torchrun.poll() is None:
            for worker in psutil.Process(torchrun.pid).children(recursive=True):
                worker.kill()
            torchrun.kill()
    assert torchrun.returncode == 0, said
    assert "exitcode: -9" in said
    assert_like(out, tmp_path / "alone")
