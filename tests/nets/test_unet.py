"""The U-Net: published sizes, its formula, times and shapes, exact gradients in DiffFlowSDE."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from diffflow_ext import DiffFlowSDE, NoiseKey, TimeGrid
from diffflow_ext.nets import UNet
from diffflow_ext.nets.unet_blocks import group_norm

TINY: dict[str, Any] = {"channels": 1, "size": 8, "base": 8, "mults": (1, 2), "blocks": 1}


def awake(net: UNet) -> UNet:
    """The net with all weights drawn: those that start at zero hide what comes before them."""
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


# --- size ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "sides", "attending"),
    [
        (32, [32, 16, 8, 4], [1]),
        (28, [28, 14, 7, 4], [1]),
        (16, [16, 8, 4, 2], [0]),
        (17, [17, 9, 5, 3], [1]),
    ],
)
def test_any_size_comes_back(size: int, sides: list[int], attending: list[int]) -> None:
    net = awake(UNet(2, size, base=4))
    assert net.sides == sides
    kept, at = [], []
    for level, block in enumerate(net.down):
        block.register_forward_hook(lambda _, __, out: kept.append(out[1][0].shape[-1]))
        if block.stages[0].attention is not None:
            at.append(level)
    x = torch.randn(2, 2, size, size)
    assert net(torch.tensor(0.5), x).shape == x.shape
    assert kept == sides
    assert at == attending


def test_without_attention_there_is_none_in_the_middle() -> None:
    names = UNet(**TINY, attention=()).state_dict()
    assert not [name for name in names if "attention" in name]
    assert [name for name in UNet(**TINY, attention=(4,)).state_dict() if "middle.0.att" in name]


@pytest.mark.parametrize("channels", [4, 6, 16, 40, 48, 64, 128, 384])
def test_no_group_has_one_channel_only(channels: int) -> None:
    norm = group_norm(channels)
    assert channels % norm.num_groups == 0
    assert norm.num_groups <= 32
    assert channels // norm.num_groups >= 4
    assert group_norm(128).num_groups == 32


# --- value ---------------------------------------------------------------------------------------


def by_hand(w: dict[str, Tensor], t: Tensor, x: Tensor, time_scale: float) -> Tensor:
    """Two levels, one block each, attention on the second: DDPM's figure, spelled out.

    By the names under which weights are stored, which must not change.
    """

    def norm(name: str, h: Tensor) -> Tensor:
        groups = max(1, h.shape[1] // 4)
        rows = h.reshape(h.shape[0], groups, -1)
        centred = rows - rows.mean(2, keepdim=True)
        rows = centred / (centred.square().mean(2, keepdim=True) + 1e-6).sqrt()
        scale, shift = w[f"{name}.weight"], w[f"{name}.bias"]
        return rows.reshape(h.shape) * scale[:, None, None] + shift[:, None, None]

    def conv(name: str, h: Tensor, stride: int = 1) -> Tensor:
        weight = w[f"{name}.weight"]
        return functional.conv2d(
            h, weight, w[f"{name}.bias"], stride=stride, padding=weight.shape[-1] // 2
        )

    def linear(name: str, h: Tensor) -> Tensor:
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def silu(h: Tensor) -> Tensor:
        return h * h.sigmoid()

    def block(name: str, h: Tensor) -> Tensor:
        inner = conv(f"{name}.conv_in", silu(norm(f"{name}.norm_in", h)))
        inner = inner + linear(f"{name}.time", silu(e))[:, :, None, None]
        inner = conv(f"{name}.conv_out", silu(norm(f"{name}.norm_out", inner)))
        short = conv(f"{name}.shortcut", h) if f"{name}.shortcut.weight" in w else h
        return short + inner

    def attend(name: str, h: Tensor) -> Tensor:
        parts = conv(f"{name}.qkv", norm(f"{name}.norm", h)).flatten(2).mT.chunk(3, dim=2)
        mixed = functional.scaled_dot_product_attention(*parts).mT.reshape(h.shape)
        return h + conv(f"{name}.output", mixed)

    half = w["time_in.weight"].shape[1] // 2
    rates = torch.tensor([10_000 ** (-i / (half - 1)) for i in range(half)], dtype=t.dtype)
    angle = time_scale * t.reshape(-1, 1) * rates
    e = linear("time_in", torch.cat([angle.sin(), angle.cos()], 1))
    e = linear("time_out", silu(e))

    a = conv("input", x)
    b = block("down.0.stages.0.block", a)
    c = conv("down.0.halve", b, stride=2)
    d = attend("down.1.stages.0.attention", block("down.1.stages.0.block", c))
    h = attend("middle.0.attention", block("middle.0.block", d))
    h = block("middle.1.block", h)
    for i, skip in enumerate((d, c)):
        h = block(f"up.0.stages.{i}.block", torch.cat([h, skip], 1))
        h = attend(f"up.0.stages.{i}.attention", h)
    h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., : b.shape[2], : b.shape[3]]
    h = conv("up.0.smooth", h)
    for i, skip in enumerate((b, a)):
        h = block(f"up.1.stages.{i}.block", torch.cat([h, skip], 1))
    return conv("output", silu(norm("norm", h)))


@pytest.mark.parametrize("size", [6, 7])
def test_value_is_the_formula(size: int) -> None:
    options = {**TINY, "channels": 3, "size": size, "attention": (4,), "time_scale": 20.0}
    net = awake(UNet(**options)).double()
    t, x = torch.rand(2).double(), torch.randn(2, 3, size, size, dtype=torch.float64)
    expected = by_hand(net.state_dict(), t, x, 20.0)
    # The frequencies are stored in float32.
    torch.testing.assert_close(net(t, x), expected, rtol=1e-4, atol=1e-4)
    net.frequencies = torch.tensor([1e4 ** (-i / 3) for i in range(4)], dtype=torch.float64)
    torch.testing.assert_close(net(t, x), expected, rtol=1e-10, atol=1e-10)


def test_scale_and_shift_act_on_the_second_norm() -> None:
    net = awake(UNet(**TINY, attention=(), scale_shift=True)).double()
    block = net.down[0].stages[0].block
    x, e = torch.randn(2, 8, 8, 8, dtype=torch.float64), torch.randn(2, 32, dtype=torch.float64)
    scale, shift = (e @ block.time.weight.T + block.time.bias)[:, :, None, None].split(8, 1)
    h = block.norm_out(block.conv_in(functional.silu(block.norm_in(x))))
    expected = x + block.conv_out(functional.silu(h * (1 + scale) + shift))
    torch.testing.assert_close(block(x, e), expected, rtol=1e-12, atol=1e-12)


def test_channels_of_the_value_are_those_asked_for() -> None:
    """The first of them by the same weights as without."""
    plain, more = awake(UNet(**TINY)), awake(UNet(**TINY, out_channels=3, output_scale=0.5))
    state, last = plain.state_dict(), more.state_dict()
    for name in ("output.weight", "output.bias"):
        last[name][:1] = state.pop(name)
    more.load_state_dict({**last, **state})
    t, x = torch.rand(2), torch.randn(2, 1, 8, 8)
    value = more(t, x)
    assert value.shape == (2, 3, 8, 8)
    torch.testing.assert_close(value[:, :1], 0.5 * plain(t, x))
    assert not UNet(**TINY, out_channels=2)(t, x).any()


def test_a_new_net_is_zero() -> None:
    assert not UNet(**TINY)(torch.tensor(0.3), torch.randn(2, 1, 8, 8)).any()


# --- time ----------------------------------------------------------------------------------------


def distance(net: UNet, first: float, last: float) -> float:
    a, b = net.sinusoids(torch.tensor([first, last], dtype=torch.float64))
    return float((a - b).norm())


def test_scaled_times_are_as_far_apart_as_ddpms_indices() -> None:
    options = {"channels": 3, "size": 32, "base": 128, "mults": (1,), "attention": ()}
    indices = distance(UNet(**options, time_scale=1.0), 1, 999)
    assert indices == pytest.approx(10.88, abs=0.01)
    raw = distance(UNet(**options, time_scale=1.0), 0.001, 0.05)
    assert raw == pytest.approx(0.097, abs=0.001)
    scaled = UNet(**options, time_scale=1000 / 0.05)
    assert distance(scaled, 0.05 * 1 / 1000, 0.05 * 999 / 1000) == pytest.approx(indices)
    assert distance(scaled, 0.001, 0.05) == pytest.approx(indices, rel=0.15)
    # The default is made for times in [0, 1].
    assert distance(UNet(**options), 0.001, 0.999) == pytest.approx(indices)


def test_a_single_time_is_embedded_once() -> None:
    net, rows = UNet(**TINY), []
    net.time_out.register_forward_hook(lambda _, __, out: rows.append(out.shape[0]))
    net(torch.tensor(0.3), torch.randn(5, 1, 8, 8))
    net(torch.rand(5), torch.randn(5, 1, 8, 8))
    assert rows == [1, 5]


def test_times_keep_full_precision_in_a_16_bit_net() -> None:
    net = UNet(**TINY, time_scale=1.0)
    half = UNet(**TINY, time_scale=1.0).bfloat16()
    half.load_state_dict(net.state_dict())
    net.frequencies = half.frequencies.float()
    t = torch.tensor([998.0, 999.0])
    torch.testing.assert_close(
        half.embed(t, torch.bfloat16).float(), net.embed(t), atol=0.1, rtol=0
    )
    seen = half.sinusoids(t)
    assert (seen[0] - seen[1]).norm() > 0.5


# --- gradients -----------------------------------------------------------------------------------


# --- modes ---------------------------------------------------------------------------------------


def test_channels_last_changes_nothing() -> None:
    net = awake(UNet(**TINY, attention=(4,))).double()
    t, x = torch.rand(3).double(), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    expected = net(t, x)
    net = net.to(memory_format=torch.channels_last)
    actual = net(t, x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def test_dropout_acts_in_training_alone() -> None:
    net = awake(UNet(**TINY, dropout=0.5))
    t, x = torch.tensor(0.3), torch.randn(2, 1, 8, 8)
    assert not torch.equal(net(t, x), net(t, x))
    net.eval()
    assert torch.equal(net(t, x), net(t, x))


# --- in DiffFlowSDE ------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_adjoint_is_autograds_gradient(dropout: float) -> None:
    net = {**TINY, "attention": (4,), "dropout": dropout, "time_scale": 1000 / 0.05}
    sde = DiffFlowSDE(awake(UNet(**net)), awake(UNet(**net)), diffusion=1.0).double()
    grid, x0 = TimeGrid.power(4, t_end=0.05), torch.randn(2, 1, 8, 8, dtype=torch.float64)
    found = []
    for every in (0, 1, 3):
        torch.manual_seed(3)  # The same dropout.
        loss = sde.loss(x0, grid, NoiseKey(0), checkpoint_every=every).mean()
        found.append([loss.detach(), *torch.autograd.grad(loss, list(sde.parameters()))])
    truth, *others = found
    for one in others:
        for value, exact in zip(one, truth, strict=True):
            tolerance = 1e-10 * float(exact.abs().max())
            torch.testing.assert_close(value, exact, rtol=0, atol=tolerance)
