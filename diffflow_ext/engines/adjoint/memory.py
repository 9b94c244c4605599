"""Graphs that a forward sweep keeps for the backward sweep, as many as fit a memory budget.

The backward sweep begins at the last state and lets go of each graph once it has used it, so the
last states are kept. What is not kept is evaluated again; both ways give the same bits where a
network computes the same with and without autograd.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from ..problem import PathProblem

__all__ = ["AUTO_SHARE", "GraphKeeper", "KeptGraphs", "SavedBytes"]


#: What "auto" takes of the free memory; the sweeps' own work and the optimiser need the rest.
AUTO_SHARE = 0.5


_MEMORY_INFO = Path("/proc/meminfo")


_CONTROL_GROUP = Path("/sys/fs/cgroup")


#: By device: what was free before a CUDA graph was captured, where it cannot be asked.
_last_seen: dict[torch.device, int] = {}


def _sharers(device: torch.device) -> int:
    """Returns how many processes take from the same memory, as far as torchrun says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1


def free_memory(device: torch.device) -> int:
    """Returns the bytes that can be had on a device now.

    CUDA: what the device has free, and what torch's allocator holds without using it. CPU: what
    the kernel calls available, or what the limit of the process's group leaves if that is less.

    Raises:
        ValueError: If the system does not say.
    """
    if device.type != "cuda":
        return _free_host_memory()
    if not torch.cuda.is_current_stream_capturing():
        free, _ = torch.cuda.mem_get_info(device)
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        _last_seen[device] = free + idle
    elif device not in _last_seen:
        raise ValueError(
            "DiffFlowSDE: activation_memory='auto' was first met while a CUDA graph is captured, "
            "where free memory cannot be asked for; take a step before, or give a number of bytes"
        )
    return _last_seen[device]


def _free_host_memory() -> int:
    try:
        lines = dict(line.split(":", 1) for line in _MEMORY_INFO.read_text().splitlines())
        available = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, LookupError, ValueError) as error:
        raise ValueError(
            "DiffFlowSDE: activation_memory='auto' reads the available memory from /proc/meminfo, "
            f"which does not tell it here ({error}); give a number of bytes"
        ) from error
    # A group without a limit says "max", and the root has no such files.
    with contextlib.suppress(OSError, ValueError):
        limit, used = (
            int((_CONTROL_GROUP / name).read_text()) for name in ("memory.max", "memory.current")
        )
        available = min(available, max(limit - used, 0))
    return available


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts what a forward evaluation saves for its backward.

    Attributes:
        each: Bytes of all saved tensors, one by one.
        new: Bytes of memory that the evaluation alone keeps alive: each storage once and whole,
            without those of `lasting`.

    Arguments:
        lasting: Tensors that live on anyway: parameters, buffers, the state, the times.
    """

    def __init__(self, *lasting: Tensor) -> None:
        self.each = self.new = 0
        self._known = {_storage(x) for x in lasting}
        super().__init__(self._count, lambda x: x)

    def _count(self, x: Tensor) -> Tensor:
        size = x.numel() * x.element_size()
        self.each += size
        if x.layout is not torch.strided:
            self.new += size
        elif _storage(x) not in self._known:
            self._known.add(_storage(x))
            self.new += x.untyped_storage().nbytes()
        # A node that held its own output would hold itself, beyond the reach of any collector.
        return x.detach()


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata if x.layout is torch.strided else id(x)


def _lasting(p: PathProblem, x: Tensor) -> list[Tensor]:
    """Returns the tensors that outlive every evaluation of a network at state x."""
    nets = (getattr(net, "__self__", net) for net in (p.drift, p.score))
    modules = [net for net in nets if isinstance(net, nn.Module)]
    own = [t for net in modules for t in (*net.parameters(), *net.buffers())]
    return [x, p.times, *p.params, *own]


Label = tuple[str, int | range]


class KeptGraphs:
    """Evaluations with their graphs: the state as a leaf, and the network's value there."""

    def __init__(self) -> None:
        self.found: dict[Label, tuple[Tensor, Tensor]] = {}

    def take(self, name: str, k: int | range) -> tuple[Tensor, Tensor] | None:
        """Hands out an evaluation once; a second backward pass evaluates again."""
        return self.found.pop((name, k), None)

    def leaf(self, k: int | range, x: Tensor) -> Tensor:
        """Returns the leaf of a state, which drift and score share."""
        at = k if isinstance(k, int) else k[0]
        known = self.found.get(("drift", at)) if isinstance(k, int) or len(k) == 1 else None
        return x.detach().requires_grad_() if known is None else known[0]

    def drop_before(self, first: int) -> None:
        """Lets go of what belongs to earlier states."""
        for label in list(self.found):
            if _first_of(label[1]) < first:
                del self.found[label]


def _first_of(k: int | range) -> int:
    return k if isinstance(k, int) else k[0]


class GraphKeeper:
    """Evaluates networks in a forward sweep and keeps the graphs of the last states that fit.

    The first evaluation of each network tells how much one takes; what is kept of the first
    states before that is known is dropped if it turns out not to fit.

    Arguments:
        p: The problem.
        graphs: Where to keep.
        device: Where the states are.
        scores: Whether this sweep evaluates scores.
        last_drift: The last state at which it evaluates the drift.
    """

    def __init__(
        self, p: PathProblem, graphs: KeptGraphs, device: torch.device, *, scores: bool,
        last_drift: int,
    ) -> None:  # fmt: skip
        self.p, self.graphs, self.scores, self.last_drift = p, graphs, scores, last_drift
        self.sizes: dict[str, int] = {}
        wanted = p.activation_memory if p.keep else None
        if wanted == "auto":
            wanted = int(AUTO_SHARE * free_memory(device) / _sharers(device))
        self.budget = wanted or 0
        #: The first state that is kept; everything until that is known.
        self.first = 0 if self.budget else p.num_steps + 1

    def keeps(self, k: int | range) -> bool:
        """Whether graphs at these states are kept, as far as is known."""
        return _first_of(k) >= self.first

    def meter(self, x: Tensor) -> SavedBytes:
        """Returns a counter for an evaluation at x."""
        return SavedBytes(*_lasting(self.p, x))

    def evaluate(
        self, name: str, k: int | range, x: Tensor, saved: SavedBytes | None = None
    ) -> Tensor:
        """Returns the value of drift or score without its graph, which may be kept.

        Arguments:
            name: "drift" or "score".
            k: The state, or several.
            x: Their values.
            saved: Counts what the evaluation saves; without it counting is for the budget alone.
        """
        keep = self.keeps(k)
        if not keep and saved is None:
            return self.p.network(name, k, x)
        if keep and name not in self.sizes and saved is None:
            saved = self.meter(x)
        leaf = self.graphs.leaf(k, x)
        with torch.enable_grad(), saved or contextlib.nullcontext():
            value = self.p.network(name, k, leaf)
        if keep:
            self.graphs.found[name, k] = leaf, value
        if keep and saved is not None and name not in self.sizes:
            self.sizes[name] = saved.new
            self._plan()
        return value.detach()

    def _plan(self) -> None:
        """Finds the first state that fits, once both networks' sizes are known."""
        drift, score = self.sizes.get("drift", 0), self.sizes.get("score", 0)
        if self.scores and "score" not in self.sizes:
            return
        self._require(drift + score)
        left, n = self.budget, self.p.num_steps
        self.first = n + 1
        for k in range(n, -1, -1):
            left -= drift * (k <= self.last_drift) + score * (k > 0)
            if left < 0:
                break
            self.first = k
        self.graphs.drop_before(self.first)

    def _require(self, one: int) -> None:
        if self.p.activation_memory != "auto" and self.budget < one:
            raise ValueError(
                f"DiffFlowSDE: expected activation_memory of at least {one} bytes, which the "
                f"activations of one state take, got {self.budget}; give more, or None to "
                "evaluate networks again"
            )
