"""Losses and models on a CUDA device, beside what the CPU computes.

`record_property` puts numbers into the report of benchmarks/gpu/check.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.gpu.steps import rounding
from diffflow_ext import DDPM, NFDM, DiffFlowSDE, DiNof, GeometricDiffusion, NoiseKey, TimeGrid
from diffflow_ext.flows import StandardNormal
from diffflow_ext.nets import FourierMLP

pytestmark = pytest.mark.gpu
Record = Callable[[str, object], None]
#: Errors of gradients by the kernels for whole paths, by the rounding of factors.
PATH_ERRORS = {"float32": 1e-5, "tf32": 2e-3, "bfloat16": 2e-2}
CUDA = torch.device("cuda", 0)
KEY = NoiseKey(2**63 + 12345, 7)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model(device: torch.device, dtype: torch.dtype, dim: int = 2) -> DiffFlowSDE:
    torch.manual_seed(0)
    nets = (FourierMLP(dim, width=64, depth=2), FourierMLP(dim, width=64, depth=2))
    return DiffFlowSDE(*nets, diffusion=0.5).to(device, dtype)


def loss_and_gradient(
    device: torch.device, dtype: torch.dtype, num_steps: int = 20, **options: object
) -> tuple[Tensor, Tensor]:
    sde = model(device, dtype)
    x0 = torch.randn(257, 2, generator=generator()).to(device, dtype)
    loss = sde.mean_loss(x0, TimeGrid.power(num_steps, t_end=1.0), KEY, **options)
    loss.backward()
    grads = [p.grad.flatten() for p in sde.parameters() if p.grad is not None]
    return loss.detach().cpu().double(), torch.cat(grads).cpu().double()


# Networks are torch's own matrix products, which sum in another order on the device.
@pytest.mark.parametrize(
    ("dtype", "of_value", "of_gradient"),
    [(torch.float64, 1e-10, 1e-10), (torch.float32, 1e-5, 1e-4)],
    ids=["float64", "float32"],
)
def test_mean_loss_is_that_of_the_cpu(
    dtype: torch.dtype, of_value: float, of_gradient: float, record_property: Record
) -> None:
    there, here = loss_and_gradient(CUDA, dtype), loss_and_gradient(torch.device("cpu"), dtype)
    value, gradient = (float((a - b).norm() / b.norm()) for a, b in zip(there, here, strict=True))
    record_property("value_error", value)
    record_property("gradient_error", gradient)
    assert value < of_value
    assert gradient < of_gradient


@pytest.mark.parametrize("name", PATH_ERRORS)
def test_the_kernels_for_whole_paths(name: str, record_property: Record) -> None:
    """Against float64 on the CPU; twice, and twice the same bits."""
    expected_loss, expected = loss_and_gradient(torch.device("cpu"), torch.float64)
    with rounding(name, "cuda"):  # pyright: ignore
        loss, grad = loss_and_gradient(CUDA, torch.float32, engine="fused")
        again = loss_and_gradient(CUDA, torch.float32, engine="fused")
    error = float((grad - expected).norm() / expected.norm())
    record_property("relative_error", error)
    assert error < PATH_ERRORS[name]
    assert float(loss) == pytest.approx(float(expected_loss), rel=PATH_ERRORS[name])
    assert torch.equal(loss, again[0])
    assert torch.equal(grad, again[1])


@pytest.mark.parametrize(("dim", "width", "depth"), [(1, 16, 0), (6, 128, 2), (21, 100, 1)])
def test_the_kernels_for_whole_paths_take_other_sizes(dim: int, width: int, depth: int) -> None:
    losses = []
    for device, engine in ((CUDA, "fused"), (torch.device("cpu"), "autograd")):
        torch.manual_seed(0)
        sde = DiffFlowSDE(FourierMLP(dim, width, depth), FourierMLP(dim, width, depth)).to(device)
        x0 = torch.randn(100, dim, generator=generator()).to(device)
        loss = sde.loss(x0, TimeGrid.power(5, t_end=1.0), KEY, engine=engine)  # pyright: ignore
        loss.sum().backward()
        grads = [p.grad.flatten().cpu() for p in sde.parameters() if p.grad is not None]
        losses.append((loss.detach().cpu(), torch.cat(grads)))
    torch.testing.assert_close(losses[0][0], losses[1][0], rtol=1e-4, atol=1e-4)
    assert float((losses[0][1] - losses[1][1]).norm() / losses[1][1].norm()) < 1e-4


def test_two_runs_agree_bit_for_bit() -> None:
    first, second = (loss_and_gradient(CUDA, torch.float32) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


# --- models ------------------------------------------------------------------------------------


class Affine(nn.Module):
    """A flow that needs no library: x = e^a z + b."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.25, -0.5]))
        self.b = nn.Parameter(torch.tensor([-0.75, 0.5]))

    def log_prob(self, x: Tensor) -> Tensor:
        return StandardNormal().log_prob((x - self.b) * (-self.a).exp()) - self.a.sum()

    def sample_from(self, z: Tensor) -> Tensor:
        return self.a.exp() * z + self.b

    def sample(self, n: int) -> Tensor:
        return self.sample_from(torch.randn(n, 2, dtype=self.a.dtype, device=self.a.device))


def every_model(device: torch.device) -> dict[str, nn.Module]:
    """All models, with a learned diffusion, a flow at the end and an exploding process."""
    torch.manual_seed(0)
    nets = [FourierMLP(2, width=32, depth=2) for _ in range(6)]
    end = Affine()
    models: dict[str, nn.Module] = {
        "diffflow": DiffFlowSDE(nets[0], nets[1], GeometricDiffusion(0.2, 1.0), prior=end),
        "ddpm": DDPM(nets[2], num_timesteps=50),
        "dinof": DiNof(nets[3], copy.deepcopy(end), "ve", 0.5),
        "linear": NFDM(nets[4]),
        "nfdm": NFDM(nets[5], nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 8))),
    }
    return {name: one.to(device, torch.float64) for name, one in models.items()}


CALLS: dict[str, Callable[[dict[str, Any], Tensor, TimeGrid], Tensor]] = {
    "log_prob": lambda m, x, grid: m["diffflow"].log_prob(x, grid),
    "hutchinson": lambda m, x, grid: m["diffflow"].log_prob(
        x, grid, KEY, divergence="hutchinson", num_probes=2
    ),
    "importance weights": lambda m, x, grid: m["diffflow"].elbo(x, grid, KEY, num_paths=3),
    "samples": lambda m, x, grid: m["diffflow"].sample(tuple(x.shape), grid, KEY),
    "heun": lambda m, x, grid: m["diffflow"].sample(
        tuple(x.shape), grid, KEY, 0.0, solver="heun", corrector_steps=1
    ),
    "ddpm loss": lambda m, x, grid: m["ddpm"].loss(x, KEY),
    "ddpm bound": lambda m, x, grid: m["ddpm"].elbo(x, KEY, timesteps=5),
    "ddpm density": lambda m, x, grid: m["ddpm"].log_prob(x, 5),
    "ddpm samples": lambda m, x, grid: m["ddpm"].sample(tuple(x.shape), 7, KEY),
    "dinof losses": lambda m, x, grid: (
        m["dinof"].score_loss(x, KEY) + m["dinof"].flow_loss(x, KEY)
    ),
    "dinof density": lambda m, x, grid: m["dinof"].log_prob(x, 5),
    "dinof samples": lambda m, x, grid: m["dinof"].sample(tuple(x.shape), 7, KEY),
    "nfdm losses": lambda m, x, grid: m["nfdm"].loss(x, KEY) + m["linear"].loss(x, KEY),
    "nfdm bound": lambda m, x, grid: m["nfdm"].elbo(x, KEY, timesteps=5),
    "nfdm densities": lambda m, x, grid: m["nfdm"].log_prob(x, 5) + m["linear"].log_prob(x, 5),
    "nfdm samples": lambda m, x, grid: (
        m["nfdm"].sample(tuple(x.shape), 7, KEY) + m["linear"].sample(tuple(x.shape), 7, KEY)
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_model_computes_what_it_does_on_the_cpu(
    call: Callable[[dict[str, Any], Tensor, TimeGrid], Tensor], record_property: Record
) -> None:
    x, grid = (
        torch.randn(65, 2, generator=generator(), dtype=torch.float64),
        TimeGrid.power(6, 1.0),
    )
    with torch.no_grad():
        here = call(every_model(torch.device("cpu")), x, grid)
        there = call(every_model(CUDA), x.to(CUDA), grid)
    assert there.is_cuda
    error = float((there.cpu() - here).abs().max() / here.abs().max())
    record_property("error", error)
    assert error < 1e-8
