"""The state of a training run, and its conversion to and from checkpoints."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diffflow_ext.models.state import weights

from ..config.fields import Config
from ..parallel.sharding import in_full, like, shard
from ..recipes.base import Objective
from ..store.checkpoint import Checkpoint, CheckpointError


class TrainState:
    """The model, its averaged weights, the optimiser, the counters and the newest checkpoint.

    Each objective is a parameter group of Adam with its own learning rate.
    """

    def __init__(self, config: Config, module: nn.Module, objectives: Sequence[Objective]) -> None:
        self.config = config
        self.module = module
        self.objectives = objectives
        self.ema = AveragedModel(module)
        self.optimiser = _adam(objectives)
        self.step = 0
        self.skipped = self.skipped_in_a_row = 0
        self.elapsed = 0.0
        self.saved: Path | None = None

    @property
    def decay(self) -> float:
        """The decay of the averaged weights in the next step n, at first (1 + n) / (10 + n).

        A constant one would keep the initial weights in the average for 1 / (1 - decay) steps.
        """
        return min(self.config.optimiser.ema_decay, (1 + self.step) / (10 + self.step))

    def update(self, learning_rates: Sequence[float]) -> None:
        """Takes a step of Adam, with a learning rate for each objective; averages the weights."""
        for group, rate in zip(self.optimiser.param_groups, learning_rates, strict=True):
            group["lr"] = rate
        self.optimiser.step()
        self.ema.multi_avg_fn = get_ema_multi_avg_fn(self.decay)
        self.ema.update_parameters(self.module)
        self.step += 1
        self.skipped_in_a_row = 0

    def shard(self, split: Callable[[], Sequence[Objective]], device: torch.device) -> None:
        """Reduces weights, averages and moments to the share of this process.

        `split` does so for the module and returns its new objectives.
        """
        moments = self._optimiser_tensors()
        self.objectives = split()
        shard(self.ema.module, device)
        self.optimiser = _adam(self.objectives)
        self._restore_optimiser(moments)

    def skip(self) -> None:
        """Counts a skipped step."""
        self.step += 1
        self.skipped += 1
        self.skipped_in_a_row += 1

    def fingerprint(self) -> int:
        """Returns a hash of step and weights, below 2^62."""
        digest = hashlib.sha256(str(self.step).encode())
        for value in weights(self.module).values():
            data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(data.numpy().tobytes())
        return int.from_bytes(digest.digest()[:8], "big") >> 2

    def to_checkpoint(self, meta: Mapping[str, Any], *, keep: bool = True) -> Checkpoint:
        """Returns the state as tensors and plain data, with `meta` added.

        With shares, all processes must call this; those without `keep` get no tensors.
        """
        counters = {
            "elapsed": self.elapsed,
            "ema_updates": int(self.ema.n_averaged),
            "skipped": [self.skipped, self.skipped_in_a_row],
        }
        return Checkpoint(
            step=self.step,
            # The configuration has the models' constants.
            model=_in_full(weights(self.module), keep),
            ema=_in_full(weights(self.ema.module), keep),
            optim=_in_full(self._optimiser_tensors(), keep),
            meta={**meta, "counters": counters},
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Loads a checkpoint, or raises a CheckpointError if it belongs to another model."""
        if not checkpoint.model:
            raise CheckpointError(
                f"checkpoint of step {checkpoint.step}: expected the state of the training, got a"
                " copy that was made to be shared, without it; train another run"
            )
        try:
            self.module.load_state_dict(dict(checkpoint.model))
            self.ema.module.load_state_dict(dict(checkpoint.ema))
            self._restore_optimiser(checkpoint.optim)
            counters = checkpoint.meta["counters"]
            self.ema.n_averaged.fill_(counters["ema_updates"])
            self.elapsed = float(counters["elapsed"])
            # Checkpoints of earlier versions don't count them.
            self.skipped, self.skipped_in_a_row = counters.get("skipped", (0, 0))
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"checkpoint of step {checkpoint.step}: doesn't fit the configuration: {error}"
            ) from error
        self.step = checkpoint.step

    def _names(self) -> list[str]:
        """Returns the names of the parameters in the order in which Adam numbers them."""
        names = {id(value): name for name, value in self.module.named_parameters()}
        return [
            names[id(value)] for objective in self.objectives for value in objective.parameters
        ]

    def _optimiser_tensors(self) -> dict[str, Tensor]:
        """Returns the state of Adam by "PARAMETER.exp_avg", "PARAMETER.step" and so on."""
        names, state = self._names(), self.optimiser.state_dict()["state"]
        return {
            f"{names[index]}.{key}": torch.as_tensor(value)
            for index, values in state.items()
            for key, value in values.items()
        }

    def _restore_optimiser(self, tensors: Mapping[str, Tensor]) -> None:
        index = {name: position for position, name in enumerate(self._names())}
        values = [p for objective in self.objectives for p in objective.parameters]
        state: defaultdict[int, dict[str, Tensor]] = defaultdict(dict)
        for flat, tensor in tensors.items():
            name, key = flat.rsplit(".", 1)
            state[index[name]][key] = like(tensor, values[index[name]])
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": dict(state), "param_groups": groups})


def _adam(objectives: Sequence[Objective]) -> torch.optim.Adam:
    return torch.optim.Adam([{"params": list(objective.parameters)} for objective in objectives])


def _in_full(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Returns tensors gathered from shares; none without `keep`."""
    gathered = {}
    # All processes must gather in the same order.
    for name in sorted(tensors):
        full = in_full(tensors[name])
        if keep:
            gathered[name] = full if full is tensors[name] else full.cpu()
    return gathered
