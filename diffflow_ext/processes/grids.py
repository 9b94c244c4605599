"""Time grids: the values t_0 < ... < t_N at which the two SDEs are discretised.

Index i counts from the data (t_0) to the noise (t_N). A grid is shared by all samples of a batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from diffflow_ext.functional.checks import (
    checked_count,
    checked_positive_number,
    checked_real,
    in_words,
)
from diffflow_ext.functional.core import copied_to
from diffflow_ext.functional.noise import MAX_STEP, NoiseKey, checked_key, uniforms
from diffflow_ext.functional.tensors import checked_tensor

#: Smaller steps have fewer digits than others, and their inverses overflow.
_MIN_STEP = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, eq=False)
class TimeGrid:
    """An immutable, increasing sequence of times.

    Build one with :meth:`power`, :meth:`stratified` or :meth:`from_times`.

    Arguments:
        times: The times t_0 < ... < t_N, float64, on the CPU.

    Raises:
        ValueError: If there are fewer than two times, they are not finite or do not increase, or a
            step is below 2.3e-308.
    """

    times: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.times, Tensor):
            raise TypeError(
                f"TimeGrid: expected times to be a tensor, got {type(self.times).__name__}; "
                "TimeGrid.from_times takes any sequence"
            )
        times = _real("TimeGrid", self.times).detach().to("cpu", torch.float64, copy=True)
        object.__setattr__(self, "times", times)
        if times.dim() != 1 or times.numel() < 2:
            raise ValueError(
                "TimeGrid: expected at least 2 times in one dimension, "
                f"got shape {tuple(times.shape)}"
            )
        bad = (~torch.isfinite(times)).nonzero()
        if bad.numel():
            raise ValueError(
                f"TimeGrid: expected finite times, got times[{int(bad[0])}]={float(times[bad[0]])}"
            )
        _check_steps(times)
        if self.num_steps > MAX_STEP:
            raise ValueError(f"TimeGrid: expected at most 2^24 steps, got {self.num_steps}")

    @property
    def num_steps(self) -> int:
        """The number of steps N."""
        return self.times.numel() - 1

    @property
    def t_start(self) -> float:
        """The time of the data, t_0."""
        return float(self.times[0])

    @property
    def t_end(self) -> float:
        """The time of the noise, t_N."""
        return float(self.times[-1])

    def steps(self) -> list[float]:
        """Returns the step lengths dt_i = t_{i+1} - t_i, i = 0 ... N-1."""
        return self.times.diff().tolist()

    def times_on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Returns the times as a new tensor on a device.

        Copies on a GPU are cached by value. A CUDA graph can only be captured with a cached grid.
        """
        if device.type == "cpu":
            return self.times.to(dtype, copy=True)
        return numbers_on(device, dtype, tuple(self.times.tolist())).clone()

    def steps_on(self, device: torch.device, dtype: torch.dtype) -> Sequence[float | Tensor]:
        """Returns the step lengths as arguments of kernels on a device."""
        return self.steps()

    def __len__(self) -> int:
        return self.num_steps

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TimeGrid) and torch.equal(self.times, other.times)

    def __hash__(self) -> int:
        return hash(tuple(self.times.tolist()))

    def __repr__(self) -> str:
        return f"TimeGrid(num_steps={self.num_steps}, t_start={self.t_start}, t_end={self.t_end})"

    @classmethod
    def from_times(cls, times: Iterable[float] | Tensor) -> TimeGrid:
        """Returns the grid of the given increasing times."""
        if isinstance(times, Tensor):
            return cls(times)
        op = "TimeGrid.from_times"
        if isinstance(times, (str, bytes)) or not isinstance(times, Iterable):
            raise TypeError(f"{op}: expected a sequence of times, got {in_words(times)}")
        numbers = [checked_real(op, f"times[{i}]", t) for i, t in enumerate(times)]
        return cls(torch.tensor(numbers, dtype=torch.float64))

    @classmethod
    def power(
        cls, num_steps: int, t_end: float, t_start: float = 0.0, power: float = 0.9
    ) -> TimeGrid:
        r"""Returns a grid with equal steps in t to a power.

        .. math:: t_i = \left[ t_0^p + \frac{i}{N} (t_N^p - t_0^p) \right]^{1/p}

        A power below 1 makes steps small near the data and large near the noise. It is that of the
        authors' code; the exponent printed in the paper is its inverse.

        Arguments:
            num_steps: The number of steps :math:`N \ge 1`.
            t_end: The time of the noise :math:`t_N`.
            t_start: The time of the data, :math:`0 \le t_0 < t_N`.
            power: The power :math:`p > 0`.

        Raises:
            ValueError: If an argument is out of its range.

        References:
            | Diffusion Normalizing Flow (Zhang & Chen, 2021), section 3.3
            | https://arxiv.org/abs/2110.07579
        """
        op = "TimeGrid.power"
        _check_power_grid(op, num_steps, t_end, t_start, power)
        fractions = torch.linspace(0.0, 1.0, num_steps + 1, dtype=torch.float64)
        return cls(_spread(op, fractions, t_end, t_start, power))

    @classmethod
    def stratified(
        cls,
        num_steps: int,
        t_end: float,
        t_start: float = 0.0,
        power: float = 0.9,
        *,
        key: NoiseKey | None = None,
    ) -> TimeGrid:
        r"""Returns a random grid, the paper's flexible grid; draw one for every batch.

        Each of N-1 strata of equal width in :math:`t^p` contains one of the N-1 inner times; both
        ends are fixed. Training on such grids makes the networks smooth in t.

        Arguments and errors are those of :meth:`power`, and `key` is the seed and stream of the
        draw, by default drawn from torch's generator.
        """
        op = "TimeGrid.stratified"
        _check_power_grid(op, num_steps, t_end, t_start, power)
        if key is not None:
            checked_key(op, key, torch.device("cpu"))
        inner = num_steps - 1
        draws = uniforms(inner, NoiseKey.from_torch() if key is None else key)
        fractions = torch.zeros(num_steps + 1, dtype=torch.float64)
        fractions[1:-1] = (torch.arange(inner, dtype=torch.float64) + draws) / max(inner, 1)
        fractions[-1] = 1.0
        return cls(_spread(op, fractions, t_end, t_start, power))


def _check_steps(times: Tensor) -> None:
    steps = times.diff()
    not_rising = (steps <= 0).nonzero()
    if not_rising.numel():
        i = int(not_rising[0])
        raise ValueError(
            "TimeGrid: expected increasing times (t_0 at the data), got "
            f"times[{i}]={float(times[i])} and times[{i + 1}]={float(times[i + 1])}; "
            "sort them and drop repetitions, or take fewer steps"
        )
    for step in (float(steps.min()), float(steps.max())):
        if not _MIN_STEP <= step < math.inf:
            raise ValueError(
                f"TimeGrid: expected finite steps of at least {_MIN_STEP:.3g}, got {step:.3g}; "
                "rescale the time"
            )


def _real(op: str, times: Tensor) -> Tensor:
    """Returns times of a real dtype."""
    times = checked_tensor(op, "times", times)
    if times.is_meta or times.is_complex() or times.is_quantized or times.dtype == torch.bool:
        raise TypeError(
            f"{op}: expected times to be real numbers, got {times.dtype} on {times.device}"
        )
    return times


def _is_capturing(device: torch.device) -> bool:
    return device.type != "cpu" and torch.cuda.is_current_stream_capturing()


#: Tensors that captured graphs read. A graph has their addresses alone, and does not keep them.
_captured: dict[int, Tensor] = {}


def numbers_on(device: torch.device, dtype: torch.dtype, numbers: tuple[float, ...]) -> Tensor:
    """Returns times or step lengths on a GPU, from a cache: a capture can't copy from the host."""
    values = _cached(device, dtype, numbers)
    if _is_capturing(device):
        _captured[id(values)] = values
    return values


@functools.lru_cache(maxsize=64)
def _cached(device: torch.device, dtype: torch.dtype, numbers: tuple[float, ...]) -> Tensor:
    if _is_capturing(device):
        raise RuntimeError(
            "TimeGrid: its times must be on the device before a CUDA graph is captured, because "
            "they come from the host; call the loss once with this grid before the capture, or "
            "use diffflow_ext.engines.GridBuffer"
        )
    return numbers_beside(device, dtype, numbers)


def numbers_beside(
    device: torch.device, dtype: torch.dtype, numbers: float | Sequence[float]
) -> Tensor:
    """Returns numbers as a new tensor on a device."""
    return copied_to(torch.tensor(numbers, dtype=torch.float64, device="cpu").to(dtype), device)


def _check_power_grid(op: str, num_steps: int, t_end: float, t_start: float, power: float) -> None:
    checked_count(op, "num_steps", num_steps, 1, MAX_STEP + 1)
    start, end = checked_real(op, "t_start", t_start), checked_real(op, "t_end", t_end)
    if not 0 <= start < end < math.inf:
        raise ValueError(
            f"{op}: expected 0 <= t_start < t_end, got t_start={t_start}, t_end={t_end}"
        )
    checked_positive_number(op, "power", power)


def _spread(op: str, fractions: Tensor, t_end: float, t_start: float, power: float) -> Tensor:
    """Returns the times that divide [t_start, t_end] in these fractions of t^power."""
    t_start, t_end, power = float(t_start), float(t_end), float(power)
    try:
        low, high = t_start**power, t_end**power
    except OverflowError as error:
        raise ValueError(
            f"{op}: expected t_end^power within the range of float64, got t_end={t_end}, "
            f"power={power}; rescale the time"
        ) from error
    times = (low + fractions * (high - low)) ** (1.0 / power)
    # Rounding of the powers must not change the given ends.
    times[0], times[-1] = t_start, t_end
    return times


@dataclass(frozen=True)
class ProgressiveGrid:
    """The number of steps at each training iteration: few at first, more later.

    Arguments:
        stages: Pairs (first iteration, number of steps). The first pair starts at iteration 0 and
            iterations increase.

    Raises:
        ValueError: If there is no stage, the first does not start at 0, iterations do not
            increase, or a number of steps is not positive.

    References:
        | Diffusion Normalizing Flow (Zhang & Chen, 2021), section 3.3
        | https://arxiv.org/abs/2110.07579
    """

    stages: Sequence[tuple[int, int]]

    def __post_init__(self) -> None:
        stages = _checked_stages(self.stages)
        if not stages or stages[0][0] != 0:
            raise ValueError(
                f"ProgressiveGrid: expected a first stage at iteration 0, got {list(stages)}"
            )
        for (before, _), (first, _) in pairwise(stages):
            if first <= before:
                raise ValueError(
                    f"ProgressiveGrid: expected increasing iterations, got {before} and {first}"
                )
        for first, steps in stages:
            if steps < 1:
                raise ValueError(
                    f"ProgressiveGrid: expected at least 1 step, got {steps} at iteration {first}"
                )
        object.__setattr__(self, "stages", stages)

    def __call__(self, iteration: int) -> int:
        """Returns the number of steps of a training iteration."""
        if checked_count("ProgressiveGrid", "iteration", iteration, -(2**63), 2**63) < 0:
            raise ValueError(f"ProgressiveGrid: expected iteration >= 0, got {iteration}")
        return [steps for first, steps in self.stages if first <= iteration][-1]


def _checked_stages(stages: object) -> tuple[tuple[int, int], ...]:
    op = "ProgressiveGrid"
    if isinstance(stages, (str, bytes, Tensor)) or not isinstance(stages, Iterable):
        raise TypeError(
            f"{op}: expected stages as pairs (first iteration, number of steps), got "
            f"{in_words(stages)}"
        )
    pairs = []
    for stage in stages:
        if not isinstance(stage, Sequence) or len(stage) != 2:
            raise TypeError(
                f"{op}: expected each stage to be a pair (first iteration, number of steps), got "
                f"{in_words(stage)}"
            )
        first = checked_count(op, "first iteration", stage[0], -(2**63), 2**63)
        steps = checked_count(op, "number of steps", stage[1], -(2**63), MAX_STEP + 1)
        pairs.append((first, steps))
    return tuple(pairs)


def check_grid(op: str, grid: object) -> None:
    """Refuses what is no TimeGrid."""
    if not isinstance(grid, TimeGrid):
        raise TypeError(
            f"{op}: expected grid to be a TimeGrid, got {type(grid).__name__}; "
            "TimeGrid.power(N, 1.0) makes one of N steps up to the time 1"
        )
