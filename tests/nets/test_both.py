"""What perceptrons and U-Nets have in common: sizes, times, dtypes, gradients, errors."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffflow_ext.nets import FourierMLP, UNet
from diffflow_ext.nets.mlp import ACTIVATIONS

TINY: dict[str, Any] = {"channels": 1, "size": 8, "base": 8, "mults": (1, 2), "blocks": 1}
EVENTS = {"mlp": (3,), "unet": (1, 8, 8)}
each_net = pytest.mark.parametrize("name", EVENTS)


def built(name: str, **options: Any) -> nn.Module:
    """The net with all weights drawn: those that start at zero hide what comes before them."""
    if name == "mlp":
        net = FourierMLP(3, width=16, **options)
    else:
        net = UNet(**TINY, **{"attention": (4,), **options})
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (partial(FourierMLP, 2), 99_714),
        (partial(FourierMLP, 2, depth=2), 83_202),
        (partial(FourierMLP, 1, width=1, depth=0), 10),
        # The network of DDPM for CIFAR-10, and the half-width score of DiffFlow's code.
        (partial(UNet, 3, 32, base=128), 35_746_307),
        (partial(UNet, 3, 32, base=64), 8_952_067),
        (partial(UNet, 3, 32, base=128, channel_multiplier=0.5), 8_952_067),
        (partial(UNet, 3, 32, base=128, channel_multiplier=0.25), 2_245_763),
        (partial(UNet, 3, 32, base=32, dropout=0.1), 2_245_763),
    ],
)
def test_parameter_count(make: Any, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in make().parameters()) == count


@each_net
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_times_per_sample_reach_their_own_sample(name: str, batch: int) -> None:
    net, x = built(name).double(), torch.randn(batch, *EVENTS[name], dtype=torch.float64)
    one, t = torch.tensor(0.3).double(), torch.rand(batch).double()
    torch.testing.assert_close(net(one, x), net(one.expand(batch), x), rtol=1e-12, atol=1e-12)
    for i, row in enumerate(net(t, x)):
        torch.testing.assert_close(net(t[i], x[i : i + 1])[0], row, rtol=1e-11, atol=1e-11)
    assert net(t, x).shape == x.shape
    assert batch < 2 or (net(t.flip(0), x) - net(t, x))[0].abs().max() > 1e-3


@each_net
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_x_whatever_the_dtype_of_t(name: str, dtype: torch.dtype) -> None:
    net, x = built(name).to(dtype), torch.randn(3, *EVENTS[name], dtype=dtype)
    for t in (torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.5), torch.tensor(1)):
        assert net(t, x).dtype is dtype


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("mlp", {"activation": name}) for name in ACTIVATIONS),
        *(("unet", {"attention": (8,), "scale_shift": shift}) for shift in (False, True)),
    ],
)
@pytest.mark.parametrize("t", [torch.tensor(0.4), torch.linspace(0.0, 1.0, 8)])
def test_gradients_reach_every_parameter(name: str, options: dict[str, Any], t: Tensor) -> None:
    net, x = built(name, **options), torch.randn(8, *EVENTS[name], requires_grad=True)
    (net(t, x) * torch.randn_like(x)).sum().backward()
    for part, parameter in (*net.named_parameters(), ("x", x)):
        assert parameter.grad is not None, part
        assert parameter.grad.isfinite().all(), part
        assert parameter.grad.abs().sum() > 0, part


@each_net
def test_output_scale_is_a_factor_of_the_value(name: str) -> None:
    one, other = built(name), built(name, output_scale=2.5)
    other.load_state_dict(one.state_dict())
    t, x = torch.rand(4), torch.randn(4, *EVENTS[name])
    assert torch.equal(other(t, x), 2.5 * one(t, x))
    assert torch.equal(other.trunk(x, other.embed(t)), 2.5 * one(t, x))  # pyright: ignore
    assert "output_scale=2.5" in other.extra_repr()


@pytest.mark.parametrize(
    ("make", "event"),
    [
        (lambda: FourierMLP(2, width=8, depth=1, output_scale=3.0), (2,)),
        (lambda: UNet(1, 3, base=4, mults=(1, 1), blocks=1, attention=(2,)), (1, 3, 3)),
    ],
)
def test_gradcheck_in_float64(make: Any, event: tuple[int, ...]) -> None:
    net = make().double()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    t = torch.rand(2, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, *event, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net, (t, x))
    assert torch.autograd.gradgradcheck(net, (t, x))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dim": 0}, "dim >= 1, got 0"),
        ({"dim": 2, "width": 0}, "width >= 1, got 0"),
        ({"dim": 2, "depth": -1}, "depth >= 0, got -1"),
        ({"dim": 2, "activation": "swish"}, "one of elu, gelu, .* got 'swish'"),
        ({"dim": 2, "time_scale": 0.0}, "positive, finite time_scale, got 0.0"),
        ({"dim": 2, "time_scale": float("nan")}, "time_scale, got nan"),
        ({"dim": 2, "output_scale": 0.0}, "positive, finite output_scale, got 0.0"),
        ({"dim": 2, "output_scale": math.inf}, "output_scale, got inf"),
        ({"channels": 0}, "channels >= 1, got 0"),
        ({"out_channels": 0}, "out_channels >= 1, got 0"),
        ({"output_scale": -1.0}, "positive, finite output_scale, got -1.0"),
        ({"output_scale": math.nan}, "output_scale, got nan"),
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
    name = "FourierMLP" if "dim" in options else "UNet"
    with pytest.raises(ValueError, match=f"{name}: expected .*{words}"):
        FourierMLP(**options) if "dim" in options else UNet(**{**TINY, **options})


@pytest.mark.parametrize(
    ("name", "t_shape", "x_shape", "words"),
    [
        ("mlp", (), (4, 2), r"x of shape \(B, 3\), got \(4, 2\)"),
        ("mlp", (), (3,), r"x of shape \(B, 3\), got \(3,\)"),
        ("mlp", (), (4, 1, 3), r"x of shape \(B, 3\)"),
        ("unet", (), (4, 8, 8), r"x of shape \(B, 1, 8, 8\), got \(4, 8, 8\)"),
        ("unet", (), (4, 3, 8, 8), r"x of shape \(B, 1, 8, 8\), got \(4, 3, 8, 8\)"),
        ("unet", (), (4, 1, 16, 16), r"x of shape \(B, 1, 8, 8\)"),
        *(
            (name, shape, (4, *event), rf"t of shape \(\) or \(4,\), .* got \({words}\)")
            for name, event in EVENTS.items()
            for shape, words in (((3,), "3,"), ((4, 1), "4, 1"), ((1,), "1,"))
        ),
    ],
)
def test_wrong_shapes_are_named(
    name: str, t_shape: tuple[int, ...], x_shape: tuple[int, ...], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        built(name)(torch.zeros(t_shape), torch.zeros(x_shape))
