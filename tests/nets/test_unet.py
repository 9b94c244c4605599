"""The U-Net: published sizes, its formula, times and shapes, exact gradients in DiffFlowSDE."""

from __future__ import annotations

import doctest
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from diffflow_ext import DiffFlowSDE, NoiseKey, TimeGrid
from diffflow_ext.nets import UNet, unet
from diffflow_ext.nets.unet import _norm

TINY: dict[str, Any] = {"channels": 1, "size": 8, "base": 8, "mults": (1, 2), "blocks": 1}


def awake(net: UNet) -> UNet:
    """The net with all weights drawn: those that start at zero hide what comes before them."""
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


def test_doctests() -> None:
    result = doctest.testmod(unet, extraglobs={"torch": torch})
    assert result.failed == 0
    assert result.attempted == 2


def parameter_count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# --- size ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "count"),
    [
        # The network of DDPM for CIFAR-10, and the half-width score of DiffFlow's code.
        ({"base": 128}, 35_746_307),
        ({"base": 64}, 8_952_067),
        ({"base": 128, "channel_multiplier": 0.5}, 8_952_067),
        ({"base": 128, "channel_multiplier": 0.25}, 2_245_763),
        ({"base": 32, "dropout": 0.1}, 2_245_763),
    ],
)
def test_parameter_count(options: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        assert parameter_count(UNet(channels=3, size=32, **options)) == count


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
    norm = _norm(channels)
    assert channels % norm.num_groups == 0
    assert norm.num_groups <= 32
    assert channels // norm.num_groups >= 4
    assert _norm(128).num_groups == 32


# --- value ---------------------------------------------------------------------------------------


def by_hand(w: dict[str, Tensor], t: Tensor, x: Tensor, time_scale: float) -> Tensor:
    """Two levels, one block each, attention on the second: DDPM's figure, spelled out."""

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


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_one_time_and_one_time_per_sample_agree(batch: int) -> None:
    net = awake(UNet(**TINY, attention=(4,))).double()
    x, t = torch.randn(batch, 1, 8, 8, dtype=torch.float64), torch.tensor(0.3).double()
    torch.testing.assert_close(net(t, x), net(t.expand(batch), x), rtol=1e-12, atol=1e-12)


def test_times_per_sample_reach_their_own_sample() -> None:
    net = awake(UNet(**TINY, attention=(4,))).double()
    x, t = torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    rows = torch.cat([net(t[i], x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(net(t, x), rows, rtol=1e-11, atol=1e-11)
    assert (net(t.flip(0), x) - rows)[0].abs().max() > 1e-3


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


@pytest.mark.parametrize("scale_shift", [False, True])
@pytest.mark.parametrize("t", [torch.tensor(0.4), torch.linspace(0.0, 1.0, 2)])
def test_gradients_reach_every_parameter(t: Tensor, scale_shift: bool) -> None:
    net = awake(UNet(**TINY, attention=(8,), scale_shift=scale_shift))
    x = torch.randn(2, 1, 8, 8, requires_grad=True)
    (net(t, x) * torch.randn(2, 1, 8, 8)).sum().backward()
    for name, parameter in (*net.named_parameters(), ("x", x)):
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_gradcheck_in_float64() -> None:
    net = awake(UNet(1, 3, base=4, mults=(1, 1), blocks=1, attention=(2,))).double()
    t = torch.rand(2, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net, (t, x))
    assert torch.autograd.gradgradcheck(net, (t, x))


# --- modes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_x_whatever_the_dtype_of_t(dtype: torch.dtype) -> None:
    net = UNet(**TINY).to(dtype)
    for t in (torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.5), torch.tensor(1)):
        assert net(t, torch.randn(3, 1, 8, 8, dtype=dtype)).dtype is dtype


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


def test_state_dict_keys_are_stable_and_restore_the_net() -> None:
    net, other = awake(UNet(**TINY, attention=(4,))), UNet(**TINY, attention=(4,))
    names = {name.rsplit(".", 1)[0] for name in net.state_dict()}
    block = ["norm_in", "conv_in", "time", "norm_out", "conv_out"]
    attention = ["norm", "qkv", "output"]
    stages = {"down.0.stages.0": "", "down.1.stages.0": "sa", "middle.0": "a", "middle.1": ""}
    stages |= {
        f"up.{level}.stages.{i}": "s" + "a" * (1 - level) for level in (0, 1) for i in (0, 1)
    }
    expected = {"frequencies", "time_in", "time_out", "input", "norm", "output"}
    expected |= {"down.0.halve", "up.0.smooth"}
    for stage, kind in stages.items():
        expected |= {f"{stage}.block.{part}" for part in block}
        expected |= {f"{stage}.block.shortcut"} if "s" in kind else set()
        expected |= {f"{stage}.attention.{part}" for part in attention} if "a" in kind else set()
    assert names == expected
    other.load_state_dict(net.state_dict())
    t, x = torch.tensor(0.1), torch.randn(2, 1, 8, 8)
    assert torch.equal(other(t, x), net(t, x))


# --- in DiffFlowSDE ------------------------------------------------------------------------------

GRID = TimeGrid.power(4, t_end=0.05)


def image_sde(dropout: float = 0.0) -> DiffFlowSDE:
    nets = [
        awake(UNet(**TINY, attention=(4,), dropout=dropout, time_scale=1000 / 0.05))
        for _ in range(2)
    ]
    return DiffFlowSDE(*nets, diffusion=1.0)


def gradients(sde: DiffFlowSDE, x0: Tensor, every: int, *, mean: bool = True) -> list[Tensor]:
    """Value and gradients; the same seed gives the same dropout."""
    torch.manual_seed(3)
    loss = sde.mean_loss if mean else sde.loss
    value = loss(x0, GRID, NoiseKey(0), checkpoint_every=every).mean()
    return [value.detach(), *torch.autograd.grad(value, list(sde.parameters()))]


def assert_close(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * float(other.abs().max()))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_adjoint_is_autograds_gradient(dropout: float) -> None:
    sde = image_sde(dropout).double()
    x0 = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    truth = gradients(sde, x0, 0, mean=False)
    for every in (1, 3):
        assert_close(gradients(sde, x0, every, mean=False), truth, 1e-10)
    if not dropout:  # mean_loss draws its masks in another order.
        assert_close(gradients(sde, x0, 1), truth, 1e-10)
    assert math.isfinite(truth[0])


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": 0}, "channels >= 1, got 0"),
        ({"size": 0}, "size >= 1, got 0"),
        ({"base": 0}, "base >= 1, got 0"),
        ({"blocks": 0}, "blocks >= 1, got 0"),
        ({"mults": ()}, r"mult >= 1 for each level, got mults=\(\)"),
        ({"mults": (1, 0)}, r"got mults=\(1, 0\)"),
        ({"dropout": 1.0}, "dropout < 1, got 1.0"),
        ({"time_scale": 0.0}, "positive, finite time_scale, got 0.0"),
        ({"time_scale": math.nan}, "time_scale, got nan"),
        ({"channel_multiplier": 0.25}, r"even number >= 4, got 8 \* 0.25 = 2"),
        ({"base": 10, "channel_multiplier": 0.75}, r"got 10 \* 0.75 = 7.5"),
        ({"attention": (8, 2)}, r"one of the sides \(8, 4\), got 2"),
    ],
)
def test_arguments_out_of_range_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"UNet: expected .*{words}"):
        UNet(**{**TINY, **options})


@pytest.mark.parametrize(
    ("t_shape", "x_shape", "words"),
    [
        ((), (4, 8, 8), r"x of shape \(B, 1, 8, 8\), got \(4, 8, 8\)"),
        ((), (4, 3, 8, 8), r"x of shape \(B, 1, 8, 8\), got \(4, 3, 8, 8\)"),
        ((), (4, 1, 16, 16), r"x of shape \(B, 1, 8, 8\)"),
        ((3,), (4, 1, 8, 8), r"t of shape \(\) or \(4,\), .* got \(3,\)"),
        ((4, 1), (4, 1, 8, 8), r"t of shape .* got \(4, 1\)"),
        ((1,), (4, 1, 8, 8), r"t of shape .* got \(1,\)"),
    ],
)
def test_wrong_shapes_are_named(
    t_shape: tuple[int, ...], x_shape: tuple[int, ...], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        UNet(**TINY)(torch.zeros(t_shape), torch.zeros(x_shape))
