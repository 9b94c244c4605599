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
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from diffflow_ext.cli import main
from diffflow_ext.training import configure, load_config, train
from diffflow_ext.training.loop import starting
from diffflow_ext.training.loop.batches import Batches
from diffflow_ext.training.parallel.distributed import World, is_first, joined
from diffflow_ext.training.recipes.build import RECIPES
from diffflow_ext.training.store.checkpoint import load_latest
from diffflow_ext.training.store.directory import read_metrics

SMALL = ("--width", "16", "--depth", "1", "--num-steps", "4", "--log-every", "1")
POINTS = ("moons", *SMALL, "--batch-size", "10", "--steps", "4", "--threads", "1")


def start(
    size: int,
    *arguments: str,
    program: Sequence[str] = ("-m", "diffflow_ext"),
    folder: Path | None = None,
) -> list[subprocess.Popen[str]]:
    """Starts the program in several processes, with the environment that torchrun gives them.

    The word RANK becomes a folder of each process's own.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    return [
        subprocess.Popen(
            [
                *(sys.executable, *program),
                *(str((folder or Path()) / str(rank)) if w == "RANK" else w for w in arguments),
            ],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip


def finished(
    processes: Sequence[subprocess.Popen[str]], seconds: float = 240
) -> list[tuple[int, str, str]]:
    """Returns exit code, stdout and stderr of each."""
    ends = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=seconds)
            ends.append((process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return ends


def run(size: int, *arguments: str) -> list[tuple[int, str, str]]:
    ends = finished(start(size, *arguments))
    assert [end[0] for end in ends] == [0] * size, ends
    return ends


def weights(folder: Path) -> dict[str, Tensor]:
    checkpoint = load_latest(folder / "checkpoints")
    named = {f"{group}.{k}": v for group in ("model", "ema", "optim")
             for k, v in getattr(checkpoint, group).items()}  # fmt: skip
    return {name: value.double() for name, value in named.items()}


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl")]


def assert_like(folder: Path, other: Path) -> None:
    """The same run but for the order of sums."""
    assert losses(folder) == pytest.approx(losses(other), rel=1e-6)
    expected = weights(other)
    assert weights(folder).keys() == expected.keys()
    for name, value in weights(folder).items():
        # Adam divides by the root of the second moment: where a gradient is near 0, so is that.
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=2e-5, msg=name)


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


SHARDED = {
    "uneven": ("moons", *SMALL, "--batch-size", "7", "--steps", "3", "--threads", "1"),
    "two parts": ("dinof", "moons", *SMALL[:4], "--batch-size", "8", "--steps", "3",
                  "--log-every", "1"),
    "flow prior": ("moons", *SMALL, "--prior", "flow", "--batch-size", "8", "--steps", "3"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDED)
def test_weights_in_shares_train_like_whole_ones(tmp_path: Path, name: str) -> None:
    run(1, "train", *SHARDED[name], "--out", str(tmp_path / "1"))
    run(2, "train", *SHARDED[name], "--shard", "--out", str(tmp_path / "2"))
    assert_like(tmp_path / "2", tmp_path / "1")


@pytest.mark.slow
def test_a_run_in_shares_goes_on_whole_and_back(tmp_path: Path) -> None:
    """Checkpoints hold whole tensors, whoever wrote them; 3 processes share 16 rows unevenly."""
    same = ("--schedule", "constant", "--progressive", "0:4")
    words = ("train", "moons", *SMALL, *same, "--batch-size", "10", "--threads", "1", "--steps")
    run(1, *words, "4", "--out", str(tmp_path / "alone"))
    for steps, size, shard in ((1, 2, True), (2, 1, True), (3, 3, True), (4, 2, False)):
        more = ("--resume", "--shard" if shard else "--no-shard", "--out", str(tmp_path / "run"))
        run(size, *words, str(steps), *more)
        assert load_config(tmp_path / "run" / "config.toml").run.shard is shard
    assert_like(tmp_path / "run", tmp_path / "alone")


@pytest.mark.slow
def test_a_run_goes_on_with_another_number(alone: Path, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "run"))
    few = ("2" if word == "4" and before == "--steps" else word
           for before, word in zip(("", *POINTS), POINTS, strict=False))  # fmt: skip
    run(2, "train", *few, *out)
    run(1, "train", "--resume", "--steps", "4", *out)
    assert_like(tmp_path / "run", alone)


OTHERS = {
    "dinof": ("dinof", "moons", *SMALL[:4]),
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
@pytest.mark.parametrize("more", [(), ("--glow-blocks", "1")])
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
    assert all(code != 0 for code, *_ in ends), ends
    said = "out of memory" if where == "step" else "No space left"
    assert said in "".join(err for *_, err in ends)


@pytest.mark.slow
def test_folders_that_differ_are_refused(alone: Path, tmp_path: Path) -> None:
    """As a disk that only one machine sees: one goes on with a run, the other starts one."""
    shutil.copytree(alone, tmp_path / "0")
    steps = ["8" if before == "--steps" else word
             for before, word in zip(("", *POINTS), POINTS, strict=False)]  # fmt: skip
    words = ("train", *steps, "--resume", "--out", "RANK")
    ends = finished(start(2, *words, folder=tmp_path))
    assert [code for code, *_ in ends] == [1, 1], ends
    assert all("on a disk that all see" in err for *_, err in ends)


@pytest.mark.slow
def test_torchrun(alone: Path, tmp_path: Path) -> None:
    """The command of the README."""
    words = ("-m", "diffflow_ext", "train", *POINTS, "--out", str(tmp_path / "run"))
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    subprocess.run([sys.executable, *launch, *words], check=True, capture_output=True, timeout=120)
    assert_like(tmp_path / "run", alone)


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


def test_a_command_that_may_be_restarted_must_be_able_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the restart would be refused, or remove what was trained."""
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    config = configure(data="moons", steps=1, batch_size=4, width=4, depth=1)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"start this command again 3 times; give --resume"):
            train(config, tmp_path / "run", overwrite=overwrite)
    assert train(config, tmp_path / "run", resume=True).step == 1


def test_shares_of_one_process_are_warned_of(tmp_path: Path) -> None:
    config = configure(data="moons", steps=1, batch_size=4, width=4, depth=1, shard=True)
    with pytest.warns(UserWarning, match="shard=True has no effect in one process"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("model", "fields", "reason"),
    [
        ("ffjord", {}, "model='ffjord' trains in one process"),
        ("diffflow", {"cuda_graph": True}, "cuda_graph=True is for one process"),
        ("diffflow", {"batch_size": 1}, "at least one sample for each of the 2 processes"),
        ("diffflow", {"shard": True}, r"expected torch 2\.6 or newer, got"),
    ],
)
def test_what_several_processes_cannot_share(
    monkeypatch: pytest.MonkeyPatch, model: str, fields: dict[str, Any], reason: str
) -> None:
    monkeypatch.setattr(starting, "can_shard", lambda: False)
    config = configure(model, **{"data": "moons", "batch_size": 4, **fields})
    recipe: Any = SimpleNamespace(separable=model != "ffjord")
    with pytest.raises(ValueError, match=reason):
        starting.check_world(World(0, 2), config, recipe)
    starting.check_world(World(0, 1), config, recipe)


def test_solvers_that_look_at_the_batch_say_so() -> None:
    assert [name for name, recipe in RECIPES.items() if not recipe.separable] == ["ffjord"]


def test_one_number_for_all_devices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="use auto or cuda"), joined("cuda:0"):
        pass


@pytest.mark.parametrize(("shared", "count"), [("True", 1), ("False", 0)])
def test_a_store_that_restarts_share_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: str, count: int
) -> None:
    """A restarted process found addresses of one that had ended in one of two trials."""
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", shared)
    config = configure(data="moons", steps=1, batch_size=4, width=4, depth=1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        train(config, tmp_path / "run", resume=True)
    assert ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in str(w.message) for w in said] == [
        True
    ] * count


#: A program that says how many bytes of its state a process has, and spoils a loss if asked to.
SHARES = """
import math, os, sys
from diffflow_ext.cli import main
from diffflow_ext.training.recipes.diffflow import DiffFlowRecipe
from diffflow_ext.training.loop.state import TrainState
loss, save = DiffFlowRecipe._loss, TrainState.to_checkpoint
def spoiled(self, x0, step, offset):
    found = loss(self, x0, step, offset)
    return found * math.nan if step == 2 and "spoiled" in sys.argv[1] else found
def told(self, meta, keep):
    moments = [t for s in self.optimiser.state.values() for t in s.values() if t.ndim]
    tensors = [*self.module.parameters(), *self.ema.module.parameters(), *moments]
    kept = [getattr(t, "_local_tensor", t).untyped_storage() for t in tensors]
    kept = {s.data_ptr(): s.nbytes() for s in kept}
    print("bytes", sum(kept.values()), 4 * sum(t.numel() for t in tensors), file=sys.stderr)
    found = save(self, meta, keep=keep)
    assert keep or not (found.model or found.ema or found.optim)
    return found
DiffFlowRecipe._loss, TrainState.to_checkpoint = spoiled, told
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_each_process_keeps_its_share_alone(tmp_path: Path) -> None:
    for steps in ("4", "5"):  # Moments that Adam makes, and those that it has read.
        words = ("train", *POINTS[:-4], "--steps", steps, "--shard", "--resume", "--threads", "1")
        words += ("--out", str(tmp_path / "run"))
        for code, _, err in finished(start(2, *words, program=("-c", SHARES, "plain"))):
            assert code == 0, err
            mine, all_bytes = (int(n) for n in err.split("bytes ")[1].split()[:2])
            # FSDP2 keeps those of a group in one storage, padded to equal shares.
            assert mine < 0.53 * all_bytes


@pytest.mark.slow
@pytest.mark.parametrize("what", ["stop", "skip"])
def test_a_step_in_shares_that_is_not_finite(tmp_path: Path, what: str) -> None:
    """The weights are gathered to find out where, and not changed."""
    words = ("train", *POINTS, "--shard", "--on-nonfinite", what, "--out", str(tmp_path / "run"))
    ends = finished(start(2, *words, program=("-c", SHARES, "spoiled")))
    if what == "skip":
        assert [code for code, *_ in ends] == [0, 0], ends
        assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["skipped"] == 1
        assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())
        return
    assert [code for code, *_ in ends] == [1, 1], ends
    assert all("the loss is nan at step 3" in err for *_, err in ends)
    assert all("not finite are the gradients" in err for *_, err in ends), ends


# --- without processes ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_shares_cover_everything_once(size: int) -> None:
    for total in (1, 5, 12, 100):
        shares = [World(rank, size).share(total) for rank in range(size)]
        assert [i for share in shares for i in share] == list(range(total))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("size", [2, 3])
def test_batches_in_parts_have_the_bits_of_the_whole(size: int) -> None:
    config = configure(data="moons", batch_size=11, flip="on")
    images = torch.randint(256, (50, 1, 4, 4), dtype=torch.uint8)
    whole = Batches(config, images, torch.device("cpu"))(5)
    parts = [
        Batches(config, images, torch.device("cpu"), World(rank, size).share(11))(5)
        for rank in range(size)
    ]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(
    ("variables", "first"),
    [({}, True), ({"RANK": "3"}, True), ({"RANK": "0", "WORLD_SIZE": "2"}, True),
     ({"RANK": "1", "WORLD_SIZE": "2"}, False), ({"WORLD_SIZE": "2"}, True)],
)  # fmt: skip
def test_only_processes_of_one_run_are_silent(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], first: bool
) -> None:
    """Schedulers may set one of the variables for reasons of their own."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first() is first
