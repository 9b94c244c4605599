"""Diffusion coefficients: values, parameters, and everything that g(t) may not be."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffflow_ext import ConstantDiffusion, GeometricDiffusion
from diffflow_ext.processes.diffusion import diffusion_values

TIMES = torch.tensor([0.0, 0.1, 0.5, 1.5], dtype=torch.float64)
# log g is held in float32, whose rounding the exponential hands on: |log g| 2^-24.
RTOL = 1e-6


def values(diffusion: Any, times: Tensor = TIMES) -> list[float]:
    return diffusion_values(diffusion, times).tolist()


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("g", [1e-4, 0.3, 1.0, 25.0])
def test_a_constant_is_the_same_at_all_times(g: float) -> None:
    assert values(g) == [g] * 4
    assert values(ConstantDiffusion(g)) == pytest.approx([g] * 4, rel=RTOL)
    assert values(lambda t: torch.tensor(g, dtype=t.dtype)) == [g] * 4
    assert values(lambda t: torch.full((1,), g, dtype=t.dtype)) == [g] * 4


def test_an_integer_is_a_constant() -> None:
    assert values(2) == [2.0] * 4


def test_a_geometric_coefficient_follows_its_formula() -> None:
    diffusion = GeometricDiffusion(0.1, 4.0, t_end=1.5)
    expected = [0.1 ** (1 - t / 1.5) * 4.0 ** (t / 1.5) for t in TIMES.tolist()]
    assert values(diffusion) == pytest.approx(expected, rel=RTOL)
    assert values(diffusion)[-1] == pytest.approx(4.0, rel=RTOL)
    # Even in the logarithm: equal factors over equal times.
    even = torch.linspace(0, 1.5, 7, dtype=torch.float64)
    factors = diffusion_values(diffusion, even).log().diff()
    assert factors.max() - factors.min() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "diffusion",
    [0.7, lambda t: 0.2 + t, ConstantDiffusion(0.7), GeometricDiffusion(0.1, 2.0)],
    ids=["float", "function", "constant", "geometric"],
)
def test_values_have_the_shape_and_dtype_of_the_times(diffusion: Any, dtype: torch.dtype) -> None:
    g = diffusion_values(diffusion, TIMES.to(dtype))
    assert (g.shape, g.dtype) == (TIMES.shape, dtype)
    one = diffusion_values(diffusion, TIMES[:1].to(dtype))
    assert one.tolist() == g[:1].tolist()


def test_values_of_another_dtype_are_converted() -> None:
    assert diffusion_values(lambda t: (t + 1).float(), TIMES).dtype == torch.float64


# --- parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [ConstantDiffusion, lambda g, **k: GeometricDiffusion(g, 3, **k)])
def test_what_is_learnable_is_a_parameter(make: Any) -> None:
    fixed, learned = make(0.5), make(0.5, learnable=True)
    assert [name for name, _ in fixed.named_parameters()] == []
    assert [name for name, _ in learned.named_parameters()] == ["log_g"]
    # Both are saved alike, so that a checkpoint of one loads into the other.
    assert list(fixed.state_dict()) == list(learned.state_dict()) == ["log_g"]
    fixed.load_state_dict(learned.state_dict())


def test_gradients_reach_the_parameters() -> None:
    constant = ConstantDiffusion(0.5, learnable=True).double()
    diffusion_values(constant, TIMES).sum().backward()
    # dg / d log g = g
    assert constant.log_g.grad.item() == pytest.approx(4 * 0.5, rel=RTOL)
    geometric = GeometricDiffusion(0.1, 4.0, t_end=1.5, learnable=True).double()
    g = diffusion_values(geometric, TIMES)
    g.sum().backward()
    late = TIMES / 1.5
    expected = [(g * (1 - late)).sum().item(), (g * late).sum().item()]
    assert geometric.log_g.grad.tolist() == pytest.approx(expected, rel=1e-12)


def test_a_module_of_ones_own_keeps_its_gradient() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.raw = nn.Parameter(torch.zeros(()))

        def forward(self, times: Tensor) -> Tensor:
            return nn.functional.softplus(self.raw)

    scale = Scale()
    g = diffusion_values(scale, TIMES)
    assert g.tolist() == pytest.approx([math.log(2)] * 4, rel=RTOL)
    g.sum().backward()
    assert scale.raw.grad.item() == pytest.approx(4 * 0.5)


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("diffusion", "error", "text"),
    [
        (0.0, ValueError, "diffusion: expected g > 0, got g=0.0"),
        (-1, ValueError, "diffusion: expected g > 0, got g=-1.0"),
        (math.nan, ValueError, "diffusion: expected g > 0, got g=nan"),
        (math.inf, ValueError, "diffusion: expected g > 0, got g=inf"),
        (True, TypeError, "diffusion: expected a number or a function of t, got True"),
        ("1", TypeError, "diffusion: expected a number or a function of t, got '1'"),
        (None, TypeError, "diffusion: expected a number or a function of t, got None"),
        (lambda t: 0.5, TypeError, "diffusion: expected a tensor from g(t), got float"),
        (lambda t: t, ValueError, "diffusion: expected g(t) > 0, got g(0.0) = 0.0"),
        (lambda t: 0.4 - t, ValueError, "expected g(t) > 0, got g(0.5) = -0.0999"),
        (lambda t: 1 / t, ValueError, "expected g(t) > 0, got g(0.0) = inf"),
        (lambda t: t.log(), ValueError, "expected g(t) > 0, got g(0.0) = -inf"),
        (lambda t: t[:2], ValueError, "to have the shape of t (4,), got (2,)"),
        (lambda t: t[:, None] + 1, ValueError, "to have the shape of t (4,), got (4, 1)"),
    ],
)
def test_what_is_no_diffusion_is_refused(diffusion: Any, error: type, text: str) -> None:
    with pytest.raises(error) as caught:
        diffusion_values(diffusion, TIMES)
    assert text in str(caught.value)


def test_on_a_gpu_values_are_read_until_they_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: each reading would wait for the GPU."""
    reads: list[int] = []
    real = Tensor.nonzero
    monkeypatch.setattr(Tensor, "nonzero", lambda x: (reads.append(1), real(x))[1])
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda x: True), raising=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    def wrong(t: Tensor) -> Tensor:
        return 0.4 - t

    for _ in range(2):
        with pytest.raises(ValueError, match=r"expected g\(t\) > 0"):
            diffusion_values(wrong, TIMES)
    right = GeometricDiffusion(0.3, 0.6)
    for _ in range(3):
        diffusion_values(right, TIMES)
    assert len(reads) == 3
    # While a graph is captured nothing can be read.
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    diffusion_values(wrong, TIMES)
    assert len(reads) == 3


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ConstantDiffusion(0.0), "ConstantDiffusion: expected g > 0, got g=0.0"),
        (lambda: ConstantDiffusion(math.nan), "ConstantDiffusion: expected g > 0, got g=nan"),
        (lambda: GeometricDiffusion(0.0, 1.0), "expected g_start > 0, got g_start=0.0"),
        (lambda: GeometricDiffusion(1.0, -2.0), "expected g_end > 0, got g_end=-2.0"),
        (lambda: GeometricDiffusion(1.0, 2.0, 0.0), "expected t_end > 0, got t_end=0.0"),
    ],
)
def test_bad_coefficients_are_refused(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match="Diffusion") as caught:
        make()
    assert text in str(caught.value)
