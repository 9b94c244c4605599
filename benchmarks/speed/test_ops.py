"""Times of the fused ops and of their twins, by pytest-benchmark; not part of the tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.speed.ops import OPS, SIZES, WAYS, inputs, is_measured, variant

CASES = [(op, s, w) for op in OPS for s in SIZES for w in WAYS if is_measured(op, s, w)]


@pytest.mark.parametrize(("op", "size", "way"), CASES, ids=map("-".join, CASES))
def test_op(benchmark: Any, op: str, size: str, way: str) -> None:
    torch.set_num_threads(1)
    with torch.set_grad_enabled(way.endswith("gradient")):
        call = variant(op, way, inputs(SIZES[size]))
        call()
        benchmark(call)
