"""Goals of speed and memory, set before the code was fast, and what the reports say of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .tables import NONE, Results, at, number, table


@dataclass(frozen=True)
class Goal:
    """A number that is to be reached.

    Arguments:
        what: What is compared.
        wanted: The number.
        reached: What the reports say, None where they say nothing.
        most: Whether the number is an upper limit; else it is a lower one.
        unit: What follows the number.
    """

    what: str
    wanted: float
    reached: Callable[[Results], float | None]
    most: bool = False
    unit: str = "x"

    def row(self, results: Results) -> list[str]:
        """Cells: what, wanted, reached, whether that is enough."""
        value, word = self.reached(results), "at most" if self.most else "at least"
        wanted = f"{word} {self.wanted:g}{self.unit}"
        if value is None:
            return [self.what, wanted, "not measured yet", NONE]
        met = value <= self.wanted if self.most else value >= self.wanted
        return [self.what, wanted, f"{number(value)}{self.unit}", "yes" if met else "no"]


def faster(than: str, ours: str = "fused", threads: int = 1) -> Callable[[Results], float | None]:
    """How many times as long as ours another variant of the 2-D step takes."""

    def reached(results: Results) -> float | None:
        variants = at(results.get(f"steps_2d_{threads}"), "variants")
        slow, fast = (at(variants, name, "ratio", "median") for name in (than, ours))
        return None if slow is None or fast is None else slow / fast

    return reached


def faster_than_best_torch(results: Results) -> float | None:
    """The same against the fastest of the exact variants whose networks run in plain PyTorch."""
    variants = at(results.get("steps_2d_1"), "variants") or {}
    others = [one["ratio"]["median"] for one in variants.values() if one["exact_torch"]]
    fused = at(variants, "fused", "ratio", "median")
    return min(others) / fused if others and fused else None


def share_of_product(results: Results) -> float | None:
    """The rate of multiply-adds over a whole step, in per cent of torch's product of matrices."""
    share = at(results.get("steps_2d_1"), "product_share", "median")
    return None if share is None else 100 * share


def peak_of_large_batch(results: Results) -> float | None:
    """MiB of the fused engine's step with 20,000 trajectories."""
    return at(results.get("memory_1"), "cases", "2d, B = 20,000", "mebibytes", "fused")


def small_update(results: Results) -> float | None:
    """An update of 120 trajectories over one of DDPM in PyTorch of 2000 samples."""
    report: Mapping[str, Any] | None = results.get("steps_small_1")
    return at(report, "variants", "fused", "ratio", "median")


GOALS = (
    Goal("2-D step in float32 against the authors' adjoint, 1 thread", 4.0, faster("release")),
    Goal("the same, 2 threads", 5.0, faster("release", threads=2)),
    Goal("2-D step in bfloat16 against the same, 1 thread", 7.0, faster("release", "fused_bf16")),
    Goal("the same, 2 threads", 7.0, faster("release", "fused_bf16", 2)),
    Goal("2-D step against the best exact variant in PyTorch", 2.0, faster_than_best_torch),
    Goal("2-D step against `torch.compile` of each step", 2.2, faster("compiled")),
    Goal("2-D step against `torch.compile` of the whole loop", 2.2, faster("compiled_loop")),
    Goal("2-D step against `sdeint` of torchsde", 3.0, faster("torchsde")),
    Goal("multiply-adds over the step, of those of `torch.mm`", 90.0, share_of_product, unit=" %"),
    Goal("peak memory with 20,000 trajectories", 24.0, peak_of_large_batch, True, " MiB"),
    Goal("update of 120 trajectories against DDPM's of 2000 samples", 1.0, small_update, True),
)


def goals(results: Results) -> str:
    """The table of all goals."""
    head = ["goal", "wanted", "reached", "met"]
    return table(head, [goal.row(results) for goal in GOALS])
