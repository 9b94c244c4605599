"""Perceptrons: their formula, by the names under which weights are stored."""

import torch

from diffflow_ext.nets import FourierMLP


def test_value_is_the_formula() -> None:
    net = FourierMLP(
        2, width=4, depth=1, activation="tanh", time_scale=3.0, output_scale=0.3
    ).double()
    w = net.state_dict()
    t, x = torch.tensor(0.2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    angle = torch.linspace(0.1, 100.0, 4).double() * 3.0 * t + w["phase"]
    features = torch.cat([angle.sin(), angle.cos()])
    e = (features @ w["time_in.weight"].T + w["time_in.bias"]).tanh()
    e = e @ w["time_out.weight"].T + w["time_out.bias"]
    h = (x @ w["input.weight"].T + w["input.bias"] + e).tanh()
    h = (h @ w["hidden.0.weight"].T + w["hidden.0.bias"]).tanh()
    expected = 0.3 * (h @ w["output.weight"].T + w["output.bias"])
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
