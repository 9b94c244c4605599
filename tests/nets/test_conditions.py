"""Networks with labels and vectors: which sum they add, which rows, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import same_bits
from torch import Tensor, nn

from diffflow_ext.nets import FourierMLP, NoiseScore, UNet

TINY: dict[str, Any] = {"channels": 1, "size": 8, "base": 8, "mults": (1, 2), "blocks": 1}
BOTH: dict[str, Any] = {"num_classes": 4, "context_dim": 2}
EVENTS = {"mlp": (3,), "unet": (1, 8, 8)}
each_net = pytest.mark.parametrize("name", EVENTS)
LABELS, VECTORS = torch.tensor([3, 0, 4, 1, 1]), torch.randn(5, 2, dtype=torch.float64)
T = torch.rand(5, dtype=torch.float64)


def built(name: str, *, drawn: bool = True, **options: Any) -> Any:
    """In float64; `drawn` hides nothing behind weights that start at zero."""
    torch.manual_seed(3)
    net = FourierMLP(3, 16, **options) if name == "mlp" else UNet(**TINY, **options)
    for parameter in net.parameters() if drawn else ():
        nn.init.normal_(parameter, std=0.3)
    return net.double()


def state(name: str) -> Tensor:
    return torch.randn(5, *EVENTS[name], dtype=torch.float64)


@each_net
def test_without_a_context_nothing_changed(name: str) -> None:
    """The names in the state dict, and all weights of a seed, with a context or without."""
    plain, told = built(name, drawn=False), built(name, drawn=False, **BOTH)
    extra = {"condition.labels.weight", "condition.vectors.weight"}
    assert set(told.state_dict()) - set(plain.state_dict()) == extra
    assert not any("condition" in key for key in plain.state_dict())
    for key, value in plain.state_dict().items():
        assert same_bits(told.state_dict()[key], value)


@each_net
def test_a_context_is_added_to_the_time_embedding(name: str) -> None:
    """The network without a context, given the sum by hand."""
    told, x = built(name, **BOTH), state(name)
    plain = built(name)
    plain.load_state_dict({k: v for k, v in told.state_dict().items() if k in plain.state_dict()})
    w = told.state_dict()
    added = w["condition.labels.weight"][LABELS] + VECTORS @ w["condition.vectors.weight"].T
    if name == "mlp":
        expected = plain.trunk(x, plain.embed(T) + added)
    else:
        features = nn.functional.silu(plain.time_in(plain.sinusoids(T)))
        expected = plain.trunk(x, nn.functional.silu(plain.time_out(features) + added))
    found = told(T, x, {"labels": LABELS, "vectors": VECTORS, "other": None})
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    in_parts = told.trunk(x, told.embed(T), {"labels": LABELS, "vectors": VECTORS})
    torch.testing.assert_close(in_parts, expected, rtol=1e-12, atol=1e-12)


@each_net
@pytest.mark.parametrize(
    ("options", "context"), [({"num_classes": 4}, LABELS), ({"context_dim": 2}, VECTORS)]
)
def test_rows_stay_with_their_context(name: str, options: Any, context: Tensor) -> None:
    net, x = built(name, **options), state(name)
    whole = net(T, x, context)
    for i in range(5):
        alone = net(T[i], x[i : i + 1], context[i : i + 1])
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-11, atol=1e-12)
    named = {"labels" if context is LABELS else "vectors": context}
    assert same_bits(net(T, x, named), whole)
    assert (whole - net(T, x, context.flip(0)))[0].abs().max() > 1e-3
    loss = net(T, x, context).square().sum()
    grads = torch.autograd.grad(loss, list(net.condition.parameters()))
    assert all(bool(g.any()) for g in grads)


@each_net
def test_no_context_is_a_class_of_its_own_and_a_vector_of_zeros(name: str) -> None:
    net = built(name, **BOTH)
    null = net.null_context(3)
    assert null["labels"].tolist() == [4, 4, 4]
    assert same_bits(null["vectors"], torch.zeros(3, 2, dtype=torch.float64))
    assert built(name, num_classes=4).null_context(2).tolist() == [4, 4]
    score = NoiseScore(built(name, context_dim=2), 0.7, floor=0.1)
    assert score.null_context(2).shape == (2, 2)
    x = state(name)
    expected = score.net(T, x, VECTORS) * score.factor(T).reshape(-1, *(1,) * (x.dim() - 1))
    assert torch.equal(score(T, x, VECTORS), expected)


@each_net
@pytest.mark.parametrize(
    ("options", "context", "text"),
    [
        (
            {},
            VECTORS,
            "expected no context, because the network was built without one, got Tensor",
        ),
        ({"num_classes": 4}, None, "expected a context, a tensor or a mapping with 'labels', got"),
        (BOTH, None, "a mapping with 'labels' and 'vectors', got NoneType; pass context="),
        (BOTH, LABELS, "a mapping with 'labels' and 'vectors', got Tensor"),
        (BOTH, {"labels": LABELS}, "with 'labels' and 'vectors', got 'labels'"),
        ({"num_classes": 4}, LABELS.double(), "labels of shape (B,), int64, got (5,), float64"),
        ({"num_classes": 4}, LABELS[:, None], "labels of shape (B,), int64, got (5, 1), int64"),
        (
            {"num_classes": 2},
            LABELS,
            "from 0 to 2, which stands for no class, got some from 0 to 4",
        ),
        ({"context_dim": 3}, VECTORS, "context vectors of shape (B, 3), got (5, 2)"),
    ],
)
def test_what_is_refused(name: str, options: Any, context: Any, text: str) -> None:
    net = built(name, **options)
    owner = "FourierMLP" if name == "mlp" else "UNet"
    with pytest.raises(ValueError) as caught:
        net(T, state(name), context)
    assert str(caught.value).startswith(f"{owner}: expected")
    assert text in str(caught.value)


@each_net
def test_arguments_and_missing_contexts(name: str) -> None:
    for option in BOTH:
        with pytest.raises(ValueError, match=f"expected {option} >= 0, got -1"):
            built(name, **{option: -1})
    with pytest.raises(ValueError, match="expected a network with a context"):
        built(name).null_context(3)
