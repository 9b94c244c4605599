"""Networks: size, shapes, errors, gradients, and the names under which weights are stored."""

import pytest
import torch

from diffflow_ext.nets import FourierMLP
from diffflow_ext.nets.mlp import ACTIVATIONS


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def parameter_count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"dim": 2}, 99_714),
        ({"dim": 2, "depth": 2}, 83_202),
        ({"dim": 1, "width": 1, "depth": 0}, 10),
    ],
)
def test_parameter_count(options: dict[str, int], count: int) -> None:
    assert parameter_count(FourierMLP(**options)) == count


@pytest.mark.parametrize(("batch", "dim"), [(0, 2), (1, 1), (33, 5)])
def test_one_time_and_one_time_per_sample_agree(batch: int, dim: int) -> None:
    net = FourierMLP(dim, width=16).double()
    x = torch.randn(batch, dim, dtype=torch.float64)
    t = torch.tensor(0.3, dtype=torch.float64)
    single, each = net(t, x), net(t.expand(batch), x)
    assert single.shape == x.shape
    torch.testing.assert_close(single, each, rtol=1e-12, atol=1e-12)


def test_times_per_sample_reach_their_own_sample() -> None:
    net = FourierMLP(2, width=16).double()
    x, t = torch.randn(5, 2, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    rows = torch.stack([net(t[i], x[i : i + 1])[0] for i in range(5)])
    torch.testing.assert_close(net(t, x), rows, rtol=1e-12, atol=1e-12)


def test_value_is_the_formula() -> None:
    net = FourierMLP(2, width=4, depth=1, activation="tanh", time_scale=3.0).double()
    w = net.state_dict()
    t, x = torch.tensor(0.2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    angle = torch.linspace(0.1, 100.0, 4).double() * 3.0 * t + w["phase"]
    features = torch.cat([angle.sin(), angle.cos()])
    e = (features @ w["time_in.weight"].T + w["time_in.bias"]).tanh()
    e = e @ w["time_out.weight"].T + w["time_out.bias"]
    h = (x @ w["input.weight"].T + w["input.bias"] + e).tanh()
    h = (h @ w["hidden.0.weight"].T + w["hidden.0.bias"]).tanh()
    expected = h @ w["output.weight"].T + w["output.bias"]
    torch.testing.assert_close(net(t, x), expected, rtol=1e-12, atol=1e-12)


def test_time_scale_only_rescales_time() -> None:
    one, twenty = FourierMLP(2, width=16), FourierMLP(2, width=16, time_scale=20.0)
    twenty.load_state_dict(one.state_dict())
    x = torch.randn(4, 2)
    torch.testing.assert_close(twenty(torch.tensor(0.05), x), one(torch.tensor(1.0), x))


def test_embed_and_trunk_make_forward() -> None:
    net = FourierMLP(2, width=16)
    times, x = torch.rand(7), torch.randn(4, 2)
    table = net.embed(times)
    assert table.shape == (7, 16)
    torch.testing.assert_close(net.trunk(x, table[3]), net(times[3], x))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("t", [torch.tensor(0.4), torch.linspace(0.0, 1.0, 8)])
def test_gradients_reach_every_parameter(activation: str, t: torch.Tensor) -> None:
    net = FourierMLP(3, width=32, activation=activation)
    x = torch.randn(8, 3, requires_grad=True)
    net(t, x).square().sum().backward()
    for name, parameter in (*net.named_parameters(), ("x", x)):
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_gradcheck_in_float64() -> None:
    net = FourierMLP(2, width=8, depth=1).double()
    t = torch.rand(3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net, (t, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_x_whatever_the_dtype_of_t(dtype: torch.dtype) -> None:
    net = FourierMLP(2, width=8).to(dtype)
    x = torch.randn(3, 2, dtype=dtype)
    for t in (torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.5), torch.tensor(1)):
        assert net(t, x).dtype is dtype


def test_state_dict_keys_are_stable_and_restore_the_net() -> None:
    net, other = FourierMLP(2, width=8, depth=2), FourierMLP(2, width=8, depth=2)
    layers = ["time_in", "time_out", "input", "hidden.0", "hidden.1", "output"]
    expected = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    assert set(net.state_dict()) == expected | {"phase", "frequencies"}
    other.load_state_dict(net.state_dict())
    t, x = torch.tensor(0.1), torch.randn(3, 2)
    torch.testing.assert_close(other(t, x), net(t, x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dim": 0}, "dim >= 1, got 0"),
        ({"dim": 2, "width": 0}, "width >= 1, got 0"),
        ({"dim": 2, "depth": -1}, "depth >= 0, got -1"),
        ({"dim": 2, "activation": "swish"}, "one of elu, gelu, .* got 'swish'"),
        ({"dim": 2, "time_scale": 0.0}, "positive, finite time_scale, got 0.0"),
        ({"dim": 2, "time_scale": float("nan")}, "time_scale, got nan"),
    ],
)
def test_arguments_out_of_range_are_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FourierMLP(**options)


@pytest.mark.parametrize(
    ("t_shape", "x_shape", "words"),
    [
        ((), (4, 3), r"x of shape \(B, 2\), got \(4, 3\)"),
        ((), (2,), r"x of shape \(B, 2\), got \(2,\)"),
        ((), (4, 1, 2), r"x of shape \(B, 2\)"),
        ((3,), (4, 2), r"t of shape \(\) or \(4,\), .* got \(3,\)"),
        ((4, 1), (4, 2), r"t of shape .* got \(4, 1\)"),
        ((1,), (4, 2), r"t of shape .* got \(1,\)"),
    ],
)
def test_wrong_shapes_are_named(
    t_shape: tuple[int, ...], x_shape: tuple[int, ...], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        FourierMLP(2, width=8)(torch.zeros(t_shape), torch.zeros(x_shape))
