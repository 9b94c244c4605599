"""How fast is each kernel, as a share of what the device's memory allows?

The yardstick is a device-to-device copy measured on the same device, counting bytes read and
written. A kernel's bytes are each input once and each output once. Launches are timed one by one
with CUDA events, over buffers that rotate and together exceed the cache; numbers are medians.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from .ops import CASES, DTYPES, Case, Inputs, bytes_moved, name_of
from .section import Record

#: A kernel that only moves memory should come near the copy; this much is demanded.
LEAST_SHARE = 0.6
#: Layouts (B, d) of a state, wide ones first. On a GPU 2^26 elements, which are 256 MiB a tensor
#: in float32, five times the cache of an H100; on the CPU few, to see that everything runs.
ROWS = {"cuda": ((2**14, 2**12), (2**25, 2)), "cpu": ((64, 256), (512, 2))}
#: Launches that are timed, and sets of inputs that rotate.
REPEATS, BUFFERS = {"cuda": 30, "cpu": 3}, 2


def milliseconds(run: Callable[[int], Any], device: str, repeats: int) -> list[float]:
    """Times single calls of `run(i)` after three that are not timed."""
    for i in range(3):
        run(i)
    if device == "cpu":
        return [_on_the_clock(run, i) for i in range(repeats)]
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(repeats)
    ]
    torch.cuda.synchronize()
    for i, (start, end) in enumerate(events):
        start.record()
        run(i)
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


def _on_the_clock(run: Callable[[int], Any], i: int) -> float:
    start = time.perf_counter()
    run(i)
    return 1e3 * (time.perf_counter() - start)


def copy_speed(device: str) -> float:
    """Returns the bytes a second of a copy, read plus written."""
    elements = 4 * math.prod(ROWS[device][0])
    source = [torch.randn(elements, device=device) for _ in range(2)]
    target = torch.empty_like(source[0])
    times = milliseconds(lambda i: target.copy_(source[i % 2]), device, REPEATS[device])
    return 2 * 4 * elements / statistics.median(times) * 1e3


def measure_case(
    case: Case, dtypes: tuple[torch.dtype, torch.dtype], rows: tuple[int, int], device: str,
    copy: float,
) -> dict[str, Any]:  # fmt: skip
    """Measures one kernel on one layout, and the eager operations that give the same."""
    generator = torch.Generator(device).manual_seed(0)
    sets: list[Inputs] = [case.inputs(rows, *dtypes, device, generator) for _ in range(BUFFERS)]
    moved = bytes_moved(case, sets[0], case.run(sets[0]))

    def times(run: Callable[[Inputs], object]) -> list[float]:
        return milliseconds(lambda i: run(sets[i % len(sets)]), device, REPEATS[device])

    first, second = times(case.run), times(case.run)
    median = statistics.median(first + second)
    eager = None if case.eager is None else statistics.median(times(case.eager))
    return {
        "kernel": f"{case.name}, {'/'.join(map(name_of, dtypes))}",
        "rows": list(rows),
        "milliseconds": median,
        "spread": abs(statistics.median(first) - statistics.median(second)) / median,
        "gigabytes_per_second": moved / median / 1e6,
        "share_of_copy": moved / median * 1e3 / copy,
        "eager_over_kernel": None if eager is None else eager / median,
    }


def kernels(device: str, record: Record) -> None:
    """Measures the copy, and all kernels in float32 and with networks in bfloat16."""
    wide, narrow = ROWS[device]
    copy = copy_speed(device)
    record(kernel="copy", rows=[4, *wide], gigabytes_per_second=copy / 1e9)
    for case in CASES:
        mixed = [(DTYPES[1], wide)] if case.nets else []
        for dtypes, rows in ((DTYPES[0], wide), *mixed, (DTYPES[0], narrow)):
            found = measure_case(case, dtypes, rows, device, copy)
            slow = case.memory_bound and rows == wide and found["share_of_copy"] < LEAST_SHARE
            if slow and device != "cpu":
                found |= {"status": "failed", "why": f"less than {LEAST_SHARE:.0%} of the copy"}
            record(**found)
        if device != "cpu":
            torch.cuda.empty_cache()
