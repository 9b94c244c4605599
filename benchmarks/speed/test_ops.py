"""Times of the fused ops and of their twins, by pytest-benchmark; not part of the tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.speed.ops import OPS, SIZES, WAYS, inputs, variant


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("op", list(OPS))
def test_op(benchmark: Any, op: str, size: str, way: str) -> None:
    torch.set_num_threads(1)
    call, given = variant(op, way), inputs(SIZES[size])
    with torch.no_grad():
        call(given)
        benchmark(call, given)
