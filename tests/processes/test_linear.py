"""Linear processes: their four functions against each other, quadrature and published values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from diffflow_ext.processes import (
    VE,
    VP,
    DiscreteVP,
    LinearProcess,
    LogSNR,
    SubVP,
    process_by_name,
)

CHAIN = DiscreteVP.linear(50, 0.002, 0.3)
PROCESSES: dict[str, LinearProcess] = {
    "vp": VP(),
    "vp-other": VP(0.0, 3.0),
    "subvp": SubVP(),
    "ve": VE(),
    "ve-other": VE(0.1, 348.0),
    "logsnr": LogSNR(),
    "logsnr-other": LogSNR(5.0, -40.0),
    "chain": CHAIN,
    "cosine": DiscreteVP.cosine(20),
}
each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
#: Inside of the steps of both chains, where their rates are smooth.
TIMES = torch.tensor([0.0013, 0.0211, 0.133, 0.377, 0.6012, 0.9991], dtype=torch.float64)


def derivative(fn: Any, t: Tensor) -> Tensor:
    leaf = t.clone().requires_grad_()
    # A function that is constant has no graph of its own.
    (slope,) = torch.autograd.grad((fn(leaf) + 0 * leaf).sum(), leaf)
    return slope


# --- the four functions belong together ----------------------------------------------------------


@each_process
def test_the_mean_follows_the_drift(process: LinearProcess) -> None:
    slope = derivative(process.alpha, TIMES)
    expected = process.drift_rate(TIMES) * process.alpha(TIMES)
    # Autograd's slope of a sigmoid is s (1 - s), where 1 - s has lost digits near the data.
    rounding = 1e-10 if isinstance(process, LogSNR) else 1e-12
    assert torch.allclose(slope, expected, rtol=rounding, atol=0)


@each_process
def test_the_variance_follows_drift_and_diffusion(process: LinearProcess) -> None:
    slope = derivative(lambda t: process.sigma(t).square(), TIMES)
    sigma, g = process.sigma(TIMES), process.diffusion(TIMES)
    expected = 2 * process.drift_rate(TIMES) * sigma**2 + g**2
    # The two terms cancel near t_end, where sigma is nearly constant.
    assert torch.allclose(slope, expected, rtol=1e-10, atol=1e-13 * float((g**2).max()))


@pytest.mark.parametrize(
    ("process", "start"), [(VP(), 0.0), (SubVP(), 0.0), (VE(), 0.01), (CHAIN, 0.0)]
)
def test_the_ends_are_data_and_prior(process: LinearProcess, start: float) -> None:
    ends = torch.tensor([0.0, process.t_end], dtype=torch.float64)
    alpha, sigma = process.alpha(ends).tolist(), process.sigma(ends).tolist()
    assert alpha[0] == 1
    assert sigma[0] == pytest.approx(start, abs=1e-16)
    # What is left of unit data beside the noise: e^-5 for the published VP schedule.
    assert alpha[1] / sigma[1] < 0.021
    assert sigma[1] == pytest.approx(process.prior_scale, abs=3e-4)


@pytest.mark.parametrize(
    ("process", "alpha", "sigma"),
    [(VE(), "1.000", "1.66"), (VE(0.01, 348.0), "1.000", "5.31"),
     (VP(), "0.162", "0.987"), (SubVP(), "0.162", "0.974")],
)  # fmt: skip
def test_published_values_at_the_cutoff(process: LinearProcess, alpha: str, sigma: str) -> None:
    at = torch.tensor(0.6, dtype=torch.float64)
    assert f"{float(process.alpha(at)):.3f}" == alpha
    assert f"{float(process.sigma(at)):.{len(sigma) - 2}f}" == sigma


# --- what all of them do -------------------------------------------------------------------------


@each_process
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_dtypes_and_float32_precision(process: LinearProcess, dtype: torch.dtype) -> None:
    for fn in (process.alpha, process.sigma, process.drift_rate, process.diffusion):
        for shape in ((), (6,), (2, 3), (0,)):
            t = TIMES[: math.prod(shape)].reshape(shape).to(dtype)
            value, exact = fn(t), fn(t.double())
            assert (value.shape, value.dtype) == (t.shape, dtype)
            # 1 - alpha^2 is not formed by subtraction: small sigma keep all their digits. The
            # exponent of the schedule, up to 10, hands its rounding on.
            assert torch.allclose(value.double(), exact, rtol=2e-6, atol=0)


@each_process
def test_flow_coefficients_keep_the_marginals(process: LinearProcess) -> None:
    """For Gaussian data the ODE is linear, and the true standard deviation must solve it."""
    variance = 0.49
    for t in TIMES.tolist():
        at = torch.tensor(t, dtype=torch.float64)

        def spread(s: Tensor) -> Tensor:
            return (variance * process.alpha(s) ** 2 + process.sigma(s) ** 2).sqrt()

        c_x, c_eps = process.flow_coefficients(t)
        slope = c_x + c_eps * float(process.sigma(at)) / float(spread(at)) ** 2
        assert float(derivative(spread, at)) == pytest.approx(slope * float(spread(at)), abs=1e-9)


@each_process
def test_transitions_compose(process: LinearProcess) -> None:
    (a, v), (b, w) = process.transition(0.1, 0.3), process.transition(0.3, 0.72)
    whole = process.transition(0.1, 0.72)
    assert whole == pytest.approx((a * b, b * b * v + w), rel=1e-10)
    assert v > 0 < w


def test_log_snr_falls_evenly_between_its_ends() -> None:
    process = LogSNR(9.0, -3.0)
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    ratio = (process.alpha(t) / process.sigma(t)).square().log()
    assert torch.allclose(ratio, torch.tensor([9.0, 6.0, -3.0], dtype=torch.float64), atol=1e-12)
    assert torch.equal(process.log_snr(t), 9.0 - 12.0 * t)
    assert torch.allclose(
        process.alpha(t).square() + process.sigma(t).square(), torch.ones(1).double()
    )
    assert process.rate == 12.0


def test_names_and_values() -> None:
    assert process_by_name("vp") == VP()
    assert process_by_name("subvp", beta_max=10.0) == SubVP(0.1, 10.0)
    assert process_by_name("ve", sigma_max=348.0) == VE(0.01, 348.0)
    assert VP() != SubVP()
    assert [p.t_min for p in (VP(), SubVP(), VE(), CHAIN)] == [1e-3, 1e-3, 1e-5, 1e-3]
    assert [p.prior_scale for p in (VP(), SubVP(), VE(), CHAIN)] == [1.0, 1.0, 50.0, 1.0]
    assert LogSNR() == LogSNR(12.0, -5.0) != LogSNR(12.0, -6.0)
    assert (LogSNR().t_min, LogSNR().t_end, LogSNR().prior_scale) == (1e-3, 1.0, 1.0)
    assert repr(VP()) == "VP(beta_min=0.1, beta_max=20.0)"
    assert repr(CHAIN) == "DiscreteVP(T=50)"


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: VP(2.0, 1.0), ValueError, "VP: expected 0 <= beta_min <= beta_max"),
        (lambda: SubVP(0.0, 0.0), ValueError, "SubVP: expected .* beta_max > 0"),
        (lambda: VP(math.nan), ValueError, "VP: expected beta_min to be finite"),
        (lambda: VP("1"), TypeError, "VP: expected beta_min to be a number, got '1'"),
        (lambda: VE(0.0), ValueError, "VE: expected 0 < sigma_min < sigma_max"),
        (lambda: VE(0.1, math.inf), ValueError, "VE: expected sigma_max to be finite"),
        (lambda: LogSNR(1.0, 1.0), ValueError, "LogSNR: expected -40 <= end < start <= 40, got"),
        (lambda: LogSNR(-6.0), ValueError, r"end < start .* start=-6\.0, end=-5\.0"),
        (lambda: LogSNR(41.0), ValueError, "start <= 40, got start=41"),
        (lambda: LogSNR(0.0, -41.0), ValueError, "-40 <= end"),
        (lambda: LogSNR(math.nan), ValueError, "LogSNR: expected start to be finite"),
        (lambda: LogSNR(end="1"), TypeError, "LogSNR: expected end to be a number, got '1'"),
        (lambda: process_by_name("edm"), ValueError, r"expected one of \['vp', 'subvp', 've'\]"),
        (lambda: process_by_name(3), ValueError, "got 3"),
        (lambda: process_by_name("vp", sigma_max=1.0), TypeError, "sigma_max"),
        (LinearProcess, TypeError, "abstract"),
    ],
)
def test_bad_arguments(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()
