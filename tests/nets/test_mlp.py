"""Perceptrons: their formula, by the names under which weights are stored."""

import torch
from torch import nn

from diffflow_ext import DiffFlowSDE, NoiseKey, TimeGrid
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


def test_a_scaled_layer_may_have_no_bias() -> None:
    net = FourierMLP(2, width=8, output_scale=5.0)
    net.output = nn.Linear(8, 2, bias=False)
    perceptron = net.perceptron_at(torch.tensor([0.3]))
    assert perceptron.output_bias is None
    sde = DiffFlowSDE(net, FourierMLP(2, width=8), 0.5)
    x0, grid = torch.randn(6, 2), TimeGrid.power(3, 1.0)
    fused = sde.loss(x0, grid, NoiseKey(1), engine="auto")
    torch.testing.assert_close(fused, sde.loss(x0, grid, NoiseKey(1), engine="autograd"))
