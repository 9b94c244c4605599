"""What makes two evaluations of a network equal, and what notices that they are not.

The adjoint evaluates each network in both sweeps. Both must compute the same function, also with
dropout, so the second evaluation starts from the random state of the first. What no random state
of torch restores (Python's random numbers, buffers that a network changes) is found by comparing
the values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from ..autocast import Autocast
from ..problem import PathProblem


def random_states(device: torch.device) -> tuple[Tensor, ...]:
    """Returns the states of torch's generators; none while a CUDA graph is captured."""
    if device.type != "cuda":
        return (torch.get_rng_state(),)
    if torch.cuda.is_current_stream_capturing():
        return ()
    return torch.get_rng_state(), torch.cuda.get_rng_state(device)


def differ(a: Tensor, b: Tensor) -> bool:
    """Says whether two states differ."""
    return not torch.equal(a, b)


def set_states(device: torch.device, states: tuple[Tensor, ...]) -> None:
    """Sets the states of torch's generators."""
    if states:
        torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


def refuse_cached_weights(op: str) -> None:
    """Refuses torch's cache of parametrized weights before networks are evaluated twice.

    The first evaluation has no graph, and with the cache the second would take its weights.
    """
    if getattr(parametrize, "_cache_enabled", 0):
        raise RuntimeError(
            f"{op}: expected weights that are computed in each evaluation, got torch's "
            "parametrize.cached(), in which they would get no gradient; call it outside of it"
        )


class RandomTape:
    """Random states before each of a sequence of evaluations.

    For networks that draw no random numbers one state is stored, and none restored. While a CUDA
    graph is captured nothing is recorded: states cannot be read, and networks must not draw.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: dict[object, tuple[Tensor, ...]] = {}
        self._last: tuple[Tensor, ...] = ()
        self._drew = False
        self._outside: tuple[Tensor, ...] | None = None

    def record(self, label: object) -> None:
        """Stores the current state under a label, before an evaluation."""
        now = random_states(self.device)
        if not self._last:
            self._last = now
        elif any(map(differ, now, self._last)):
            self._last, self._drew = now, True
        self._marks[label] = self._last

    def close(self) -> None:
        """Ends the first sweep, so that draws of its last evaluation are noticed."""
        self.record(None)

    def replay(self, label: object) -> None:
        """Restores the state of a label; for an unknown label, the state outside of the tape."""
        if label in self._marks:
            if not self._drew:
                return
            if self._outside is None:
                self._outside = random_states(self.device)
            set_states(self.device, self._marks[label])
        elif self._outside is not None:
            set_states(self.device, self._outside)
            self._outside = None

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Restores the state outside of the tape at the end."""
        try:
            yield
        finally:
            if self._outside is not None:
                set_states(self.device, self._outside)
                self._outside = None


class Sketches:
    """A few numbers of each value of a network, by which its next evaluation is compared.

    A value at one state is read as m rows of c <= 64 elements, which are its samples if they are
    that short. Its sketch is the sum of the rows with fixed random signs, over sqrt(m): c numbers
    of the size of an element, and each element of the value changes one of them. Where c < 8,
    several sums with other signs give at least 8 numbers.

    Nothing is compared while a CUDA graph is captured, because the result cannot be read.
    """

    def __init__(self, p: PathProblem, x0: Tensor, *, active: bool) -> None:
        self.p, self._like = p, {"device": x0.device, "dtype": x0.dtype}
        self._shape, self._size = x0.shape, x0.numel()
        capturing = x0.is_cuda and torch.cuda.is_current_stream_capturing()
        self._active = active and self._size > 0 and not capturing
        #: By sweep and name, of all states: small tensors kept between large ones would leave
        #: holes in memory.
        self._memory: dict[tuple[str, str], Tensor] = {}
        self._rows: Counter[tuple[str, str]] = Counter()
        self._first: dict[tuple[str, int], slice] = {}
        self._again: list[tuple[str, int, slice]] = []

    def keep(self, name: str, k: int, value: Tensor) -> None:
        """Stores the sketch of a first evaluation at state k, or at several states from k on."""
        if self._active:
            self._first[name, k] = self._sketch("first", name, value)

    def restart(self) -> None:
        """Forgets repeated evaluations, at the start of each backward sweep."""
        self._again = []
        self._rows = Counter({key: n for key, n in self._rows.items() if key[0] == "first"})

    def compare(self, name: str, k: int, value: Tensor) -> None:
        """Stores the sketch of a repeated evaluation."""
        if (name, k) in self._first:
            self._again.append((name, k, self._sketch("again", name, value)))

    def _sketch(self, sweep: str, name: str, value: Tensor) -> slice:
        """Stores a sketch of each state in a value, and returns where they are."""
        signs, shape = self._signs
        if value.shape == self._shape[:1]:  # of a prior: one number for each sample
            value = value.repeat_interleave(self._size // len(value))
        if (sweep, name) not in self._memory:
            # The backward sweep evaluates a drift twice at states that were not stored.
            size = (2 * self.p.num_steps + 1, len(signs), shape[1])
            self._memory[sweep, name] = value.new_empty(size)
        memory = self._memory[sweep, name]
        signs, parts = signs.to(memory.dtype), value.to(memory.dtype).reshape(-1, *shape).unbind()
        start = self._rows[sweep, name]
        for i, part in enumerate(parts, start):
            torch.mm(signs, part, out=memory[i])
        self._rows[sweep, name] += len(parts)
        return slice(start, start + len(parts))

    @cached_property
    def _signs(self) -> tuple[Tensor, tuple[int, int]]:
        """Signs of m rows over sqrt(m), and (m, c)."""
        length = self._shape[1:].numel()
        columns = max(c for c in range(1, 65) if self._size % c == 0) if length > 64 else length
        rows = self._size // columns
        # Torch's global generator is the networks' own.
        generator = torch.Generator(self._like["device"]).manual_seed(0)
        bits = torch.randint(2, (max(1, 8 // columns), rows), generator=generator, **self._like)
        return (2 * bits - 1) / rows**0.5, (rows, columns)

    def check(self) -> None:
        """Raises an error if a value was not that of the first evaluation; waits for a GPU once.

        Values may differ by rounding: torch may choose other kernels where no gradient is asked
        for, and a network may be compiled once with gradients and once without. Such differences
        are some eps of the coarsest precision in use, a dropped row is 1/sqrt(B) of the norm of
        all rows, and sqrt(eps) lies between them (in bfloat16 for B < 100). Values that are not
        finite differ from nothing: others report them.
        """
        again = self._again
        if not again:
            return
        numbers = self._signs[0].shape[0] * self._signs[1][1]
        old = torch.cat(
            [self._memory["first", name][self._first[name, k]] for name, k, _ in again]
        )
        new = torch.cat([self._memory["again", name][rows] for name, _, rows in again])
        if torch.equal(old, new):
            return
        dtypes = {m.dtype for m in self._memory.values()} | {p.dtype for p in self.p.params}
        old, new = (sketches.to(**self._like).view(-1, numbers) for sketches in (old, new))
        change, size = (new - old).norm(dim=1), torch.maximum(old.norm(dim=1), new.norm(dim=1))
        wrong = change > coarsest_eps(dtypes, self.p.autocast, old.device) ** 0.5 * size
        if wrong.any():
            states = [(n, k + j) for n, k, rows in again for j in range(rows.stop - rows.start)]
            i = int(wrong.nonzero()[0])
            raise _not_repeated(*states[i], float(change[i] / size[i]))


def coarsest_eps(dtypes: set[torch.dtype], autocast: Autocast, device: torch.device) -> float:
    """Returns the eps of the coarsest precision in which networks are known to compute."""
    if autocast.enabled:
        dtypes = dtypes | {autocast.dtype}
    eps = max(torch.finfo(dtype).eps for dtype in dtypes)
    tf32 = device.type == "cuda" or torch.get_float32_matmul_precision() != "highest"
    if torch.float32 in dtypes and tf32:
        return max(eps, 2.0**-10)  # TF32, which a GPU's convolutions use by default
    return eps


def _not_repeated(name: str, k: int, difference: float) -> RuntimeError:
    call = "prior.log_prob(x)" if name == "prior" else f"{name}(t, x)"
    return RuntimeError(
        f"DiffFlowSDE: expected {call} to give the same values each time, because the gradient "
        f"needs a second evaluation; at state {k} of the path, the two differ by "
        f"{difference:.1g} of their norm. Draw random numbers from torch's global generator "
        "alone; call .eval() on a network that changes its buffers (spectral norm); change no "
        "weights before the backward pass; or pass checkpoint_every=0, which evaluates each "
        "network once"
    )
