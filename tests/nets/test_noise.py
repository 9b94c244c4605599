"""The score of a network that predicts noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffflow_ext import DiffFlowSDE, NoiseKey, TimeGrid
from diffflow_ext.engines.network import embeds_time
from diffflow_ext.nets import FourierMLP, NoiseScore, UNet

F64 = torch.float64


def unet() -> UNet:
    net = UNet(1, 8, base=8, mults=(1, 2), blocks=1, attention=(), time_scale=500.0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


class ExactNoise(nn.Module):
    """The expected noise of data N(0, s^2) with noise g sqrt(t)."""

    def __init__(self, s: float, g: float) -> None:
        super().__init__()
        self.s, self.g = s, g

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        variance = self.g**2 * t
        factor = variance.sqrt() / (self.s**2 + variance)
        return x * (factor if t.dim() == 0 else factor[:, None])


@pytest.mark.parametrize("t", [torch.tensor(0.3), torch.tensor([0.0, 0.01, 0.5, 2.0])])
def test_exact_noise_gives_the_score_of_noisy_data(t: Tensor) -> None:
    x, t = torch.randn(4, 3, dtype=F64), t.double()
    score = NoiseScore(ExactNoise(0.7, 1.5), 1.5, floor=1e-300)(t, x)
    spread = 0.49 + 2.25 * t.reshape(-1, 1)
    leaf = x.clone().requires_grad_()
    density = torch.distributions.Normal(0.0, spread.sqrt()).log_prob(leaf)
    (expected,) = torch.autograd.grad(density.sum(), leaf)
    far = (t > 0).expand(4)
    torch.testing.assert_close(score[far], expected[far], rtol=1e-12, atol=1e-12)


def test_the_floor_keeps_it_finite_at_the_data() -> None:
    score = NoiseScore(FourierMLP(2, 8), 2.0, t_start=0.5, floor=0.01)
    x = torch.randn(5, 2)
    assert torch.equal(score(torch.tensor(0.5), x), score.net(torch.tensor(0.5), x) * -5.0)
    with pytest.raises(ValueError, match=r"NoiseScore: expected a positive, finite floor, got 0"):
        NoiseScore(FourierMLP(2, 8), 2.0, floor=0.0)
    with pytest.raises(ValueError, match=r"NoiseScore: expected a positive, finite g, got -1"):
        NoiseScore(FourierMLP(2, 8), -1.0, floor=0.1)
    with pytest.raises(ValueError, match=r"NoiseScore: expected a finite t_start, got nan"):
        NoiseScore(FourierMLP(2, 8), 1.0, float("nan"), floor=0.1)
    for g in ("2", True, nn.Parameter(torch.tensor(2.0))):
        with pytest.raises(TypeError, match=r"NoiseScore: expected g as a number, got"):
            NoiseScore(FourierMLP(2, 8), g, floor=0.1)  # pyright: ignore
    with pytest.raises(TypeError, match=r"expected net to be callable as net\(t, x\), got 3"):
        NoiseScore(3, 1.0, floor=0.1)  # pyright: ignore


def test_times_are_embedded_where_the_network_does() -> None:
    score, x, t = NoiseScore(unet(), 2.0, floor=1e-3).double(), torch.randn(3, 1, 8, 8), None
    x, t = x.double(), torch.rand(3, dtype=F64)
    assert embeds_time(score)
    torch.testing.assert_close(score.trunk(x, score.embed(t)), score(t, x), rtol=1e-12, atol=0)
    plain: Any = NoiseScore(nn.Identity(), 2.0, floor=1e-3)
    assert not embeds_time(plain)
    # Whatever excludes it for the network within excludes it here.
    hook = score.net.register_full_backward_hook(lambda *_: None)
    assert not embeds_time(score)
    hook.remove()
    assert embeds_time(score)
    score.net.compile(backend="eager")
    assert not embeds_time(score)


def test_gradients_of_the_path_loss_are_those_of_the_unrolled_loop() -> None:
    score = NoiseScore(unet(), 2.0, floor=1e-3)
    sde, x0 = DiffFlowSDE(unet(), score, 2.0).double(), torch.rand(3, 1, 8, 8, dtype=F64)
    grid, grads = TimeGrid.power(4, 0.5), []
    for every in (0, 1):
        loss = sde.mean_loss(x0, grid, NoiseKey(1), checkpoint_every=every)
        grads.append(torch.autograd.grad(loss, list(sde.parameters())))
    for unrolled, adjoint in zip(*grads, strict=True):
        torch.testing.assert_close(adjoint, unrolled, rtol=1e-9, atol=1e-9)
