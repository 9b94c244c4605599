"""What each of several processes does, without starting any."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffflow_ext.training import configure, train
from diffflow_ext.training.loop import starting
from diffflow_ext.training.loop.batches import Batches
from diffflow_ext.training.parallel.distributed import World, is_first, joined
from diffflow_ext.training.recipes.build import RECIPES


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


@pytest.mark.parametrize(
    ("model", "fields", "reason"),
    [
        ("ffjord", {}, "model='ffjord' trains in one process"),
        ("diffflow", {"cuda_graph": "on"}, "cuda_graph='on' is for one process"),
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
    assert len(said) == count
    assert all("TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in str(one.message) for one in said)


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
