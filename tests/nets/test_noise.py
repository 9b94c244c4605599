"""Functions of a network that predicts noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffflow_ext import DiffFlowSDE, NoiseKey, TimeGrid
from diffflow_ext.engines.network import embeds_time
from diffflow_ext.nets import FromNoise, UNet
from diffflow_ext.processes import NoisePath

F64 = torch.float64
PATH = NoisePath(2.0, t_end=0.5)


def unet() -> UNet:
    net = UNet(1, 8, base=8, mults=(1, 2), blocks=1, attention=(), time_scale=500.0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


def factors(t: Tensor) -> tuple[Tensor, Tensor]:
    return 2.0 + t, 3.0 * t


def test_it_is_linear_in_state_and_noise() -> None:
    part, x = FromNoise(unet(), factors).double(), torch.randn(3, 1, 8, 8, dtype=F64)
    for t in (torch.tensor(0.25, dtype=F64), torch.rand(3, dtype=F64)):
        p, q = (value.reshape(-1, 1, 1, 1) for value in (2.0 + t, 3.0 * t))
        torch.testing.assert_close(part(t, x), p * x + q * part.net(t, x), rtol=1e-12, atol=0)


def test_times_are_embedded_where_the_network_does() -> None:
    part, x = FromNoise(unet(), factors).double(), torch.randn(3, 1, 8, 8, dtype=F64)
    t = torch.rand(3, dtype=F64)
    assert embeds_time(part)
    torch.testing.assert_close(part.trunk(x, part.embed(t)), part(t, x), rtol=1e-12, atol=1e-12)
    plain: Any = FromNoise(nn.Identity(), factors)
    assert not embeds_time(plain)
    # Whatever excludes it for the network within excludes it here.
    hook = part.net.register_full_backward_hook(lambda *_: None)
    assert not embeds_time(part)
    hook.remove()
    assert embeds_time(part)
    part.net.compile(backend="eager")
    assert not embeds_time(part)


def test_gradients_of_the_path_loss_are_those_of_the_unrolled_loop() -> None:
    drift, score = FromNoise(unet(), PATH.drift), FromNoise(unet(), PATH.score)
    sde, x0 = DiffFlowSDE(drift, score, 2.0).double(), torch.rand(3, 1, 8, 8, dtype=F64)
    grid, grads = TimeGrid.power(4, 0.5), []
    for every in (0, 1):
        loss = sde.mean_loss(x0, grid, NoiseKey(1), checkpoint_every=every)
        grads.append(torch.autograd.grad(loss, list(sde.parameters())))
    for unrolled, adjoint in zip(*grads, strict=True):
        torch.testing.assert_close(adjoint, unrolled, rtol=1e-9, atol=1e-9)
