"""What a network's call says when the network is written for other arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffflow_ext import DDPM, NFDM, DiffFlowSDE, DiNof, NoiseKey, TimeGrid
from diffflow_ext.engines.network import call_network

X, KEY, GRID = torch.ones(8, 2), NoiseKey(0), TimeGrid.power(3, 1.0)


class Net(nn.Module):
    """A network from a function of its layer, t and x."""

    def __init__(self, fn: Callable[[nn.Linear, Tensor, Tensor], Any], inputs: int = 2) -> None:
        super().__init__()
        self.layer, self.fn = nn.Linear(inputs, 2), fn

    def forward(self, t: Tensor, x: Tensor) -> Any:
        return self.fn(self.layer, t, x)


def good() -> Net:
    return Net(lambda layer, t, x: layer(x))


class Three(nn.Module):
    def forward(self, t: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return x


#: Networks, the class of the error and how it goes on after "expected drift(t, x) ".
WRITTEN: dict[str, tuple[nn.Module, type[Exception], str]] = {
    "x.shape[0] of a time": (
        Net(lambda layer, x, t: layer(t) * x.shape[0]), IndexError, "to take t of shape () or (B,)"
    ),
    "f(x, t)": (Net(lambda layer, x, t: layer(x)), RuntimeError, "to take t of shape () or (B,)"),
    "t[:, None]": (
        Net(lambda layer, t, x: layer(torch.cat([x, t[:, None]], 1)), 3),
        IndexError, "to take t of shape () or (B,) and x of shape (B, *event), in this order; "
        "with t of shape () and x of shape (8, 2) it raised IndexError: too many indices",
    ),
    "cat": (Net(lambda layer, t, x: layer(torch.cat([x, t], 1)), 3), RuntimeError, "to take t of"),
    "len(t)": (Net(lambda layer, t, x: x * len(t)), TypeError, "to take t of shape () or (B,)"),
    "unpacked": (Net(lambda layer, t, x: x.reshape(_four(x))), ValueError, "to take t of shape"),
    "other width": (Net(lambda layer, t, x: layer(x), 5), RuntimeError, "to take t of shape ()"),
    "f(t, x, y)": (Three(), TypeError, "to take two arguments, t and x, got TypeError: "),
    "Sequential": (nn.Sequential(nn.Linear(2, 2)), TypeError, "to take two arguments, t and x"),
    "Linear": (nn.Linear(2, 2), TypeError, "to take two arguments, t and x, got TypeError: "),
    "tuple": (Net(lambda layer, t, x: (x, None)), TypeError, "to return a tensor of the shape of"),
    "None": (Net(lambda layer, t, x: None), TypeError, "to return a tensor of the shape of x, (8"),
    "number": (Net(lambda layer, t, x: 1.0), TypeError, "to return a tensor of the shape of x"),
    "sum": (Net(lambda layer, t, x: x.sum(1)), ValueError, "to have the shape of x, got (8,)"),
    "long": (Net(lambda layer, t, x: x.long()), TypeError, "to be float32, float64, bfloat16 or"),
    "float64": (good().double(), TypeError, "to compute in the dtype of its data, got float64 "
                "parameters and float32 data (RuntimeError: mat1 and mat2 must have the same"),
    "bfloat16": (good().bfloat16(), TypeError, "to compute in the dtype of its data, got bfloat16"
                 " parameters and float32 data"),
    "another device": (good().to("meta"), RuntimeError, "and its data on one device, got "
                       "parameters on meta and x on cpu ("),
}  # fmt: skip


def _four(x: Tensor) -> tuple[int, int, int, int]:
    b, c, h, w = x.shape
    return b, c, h, w


@pytest.mark.parametrize(("net", "kind", "text"), WRITTEN.values(), ids=WRITTEN)
def test_a_network_for_other_arguments_is_told_how_it_is_called(
    net: nn.Module, kind: type[Exception], text: str
) -> None:
    sde = DiffFlowSDE(net, good(), 0.5)
    for call in (sde.mean_loss, sde.path, sde.log_prob):
        with pytest.raises(kind) as caught:
            call(X, GRID, KEY)
        assert f": expected drift(t, x) {text}" in str(caught.value)
        assert str(caught.value).split(":")[0] in ("DiffFlowSDE", "probability_flow")
        if caught.value.__cause__ is not None:  # The network's own error is quoted.
            assert str(caught.value.__cause__) in str(caught.value)


@pytest.mark.parametrize("make", [DDPM, DiNof, NFDM])
def test_networks_that_predict_are_told_too(make: Any) -> None:
    for name in ("f(x, t)", "f(t, x, y)", "tuple", "float64", "other width"):
        net, kind, _ = WRITTEN[name]
        with pytest.raises(kind, match=rf"{make.__name__}\.\w+: expected (eps_)?net\(t, x\) to "):
            make(net).mean_loss(X, KEY)


@pytest.mark.parametrize(
    ("own", "data", "advice"),
    [
        ("float64", "float32", "convert the network with .float(), or the data with .double()"),
        ("float32", "float64", "convert the data with .float(), or the network with .double()"),
        ("float16", "float64", "convert the network with .double(); torch.autocast makes"),
        ("bfloat16", "float32", "convert the network with .float(); torch.autocast makes"),
    ],
)
def test_two_dtypes_are_named_with_what_to_convert(own: str, data: str, advice: str) -> None:
    dtype = getattr(torch, data)
    with pytest.raises(TypeError) as caught:
        call_network("op", "net(t, x)", good().to(getattr(torch, own)), X[0, 0], X.to(dtype))
    assert f"got {own} parameters and {data} data (" in str(caught.value)
    assert advice in str(caught.value)
    # What the message advises works.
    converted = good().to(dtype)
    assert (
        call_network("op", "net(t, x)", converted, X[0, 0].to(dtype), X.to(dtype)).dtype == dtype
    )


class Own(RuntimeError):
    pass


@pytest.mark.parametrize(
    "error",
    [
        Own("shape"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate a size of 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA error: device-side assert triggered"),
        ValueError("the schedule is empty"),
        TypeError("unsupported operand type(s) for +: 'NoneType' and 'int'"),
        KeyError("shape"),
        KeyboardInterrupt(),
        NotImplementedError("dtype"),
    ],
)
def test_other_errors_of_a_network_pass(error: BaseException) -> None:
    def net(t: Tensor, x: Tensor) -> Tensor:
        raise error

    with pytest.raises(type(error)) as caught:
        call_network("op", "net(t, x)", net, X[0, 0], X)
    assert caught.value is error


def test_a_network_may_return_its_input() -> None:
    """Not a copy: values and gradients are those of a copy."""
    grads = []
    for drift in (lambda t, x: x, lambda t, x: x.clone(), lambda t, x: x.view(x.shape)):
        score, x0 = good(), X.clone().requires_grad_()
        with torch.no_grad():
            score.layer.weight.copy_(torch.eye(2))
            score.layer.bias.zero_()
        sde = DiffFlowSDE(drift, score, 0.5)
        value = sde.mean_loss(x0, GRID, KEY) + sde.path(x0, GRID, KEY).sum()
        (value + sde.log_prob(x0, GRID).sum()).backward()
        grads.append((value, x0.grad, score.layer.weight.grad))
    for other in grads[1:]:
        for a, b in zip(other, grads[0], strict=True):
            assert torch.equal(a, b)  # pyright: ignore
