"""Contexts in paths and ODEs: values and gradients against plain loops and finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adjoint_cases import GRID, KEY, MODES, assert_same, gradients, parameters, unrolled
from context_cases import F64, Told, bound_to
from helpers import same_bits
from torch import Tensor, nn

from diffflow_ext import DiffFlowSDE, TimeGrid, diffflow_loss, diffflow_mean_loss
from diffflow_ext.engines.conditions import Conditioned
from diffflow_ext.engines.network import embeds_time
from diffflow_ext.likelihood import bounds
from diffflow_ext.nets import FourierMLP, NoiseScore, UNet

X0, Y = torch.randn(5, 3, dtype=F64), torch.randn(5, 4, dtype=F64)
LABEL = torch.tensor([0, 2, 1, 1, 3])
WEIGHT = torch.tensor([0.3, -1.0, 0.7, 0.2, 1.5], dtype=F64)


class Shifted(nn.Module):
    """A conditional prior of our own: N(c_0, e^a I), with a learned a."""

    conditional = True

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.3, dtype=F64))

    def log_prob(self, x: Tensor, context: Any) -> Tensor:
        centred = x - context["c"][:, :1]
        return (-0.5 * centred.square() * (-self.a).exp() - 0.5 * self.a).sum(1)

    def sample(self, shape: tuple[int, ...], key: Any, *, context: Any, **options: Any) -> Tensor:
        raise NotImplementedError


class Pair:
    """A model of two networks, a prior and an encoder, and all that is trained."""

    def __init__(self, *, shared: bool = False, scores: int = 1) -> None:
        self.drift, self.score, self.prior = Told(), Told(), Shifted()
        self.encoder = nn.Linear(4, 2).double()
        if shared:
            self.drift.encoder = self.encoder
        self.g = nn.Parameter(torch.tensor(0.8, dtype=F64))
        self.sde = DiffFlowSDE(
            self.drift, self.score, lambda t: self.g * (1 + 0.5 * t),
            params=[self.g], prior=self.prior, scores_per_call=scores,
        )  # fmt: skip

    def context(self) -> dict[str, Tensor]:
        """Computed from trained parameters, with labels beside it."""
        return {"c": self.encoder(Y).tanh(), "label": LABEL}

    def trained(self, x0: Tensor) -> list[Tensor]:
        layers = [layer for net in (self.drift, self.score) for layer in (net.one, net.two)]
        return [x0, self.g, *parameters(*layers, self.prior, self.encoder)]

    def expected(self, x0: Tensor) -> Tensor:
        c, prior = self.context(), self.prior

        class Given:
            @staticmethod
            def log_prob(x: Tensor) -> Tensor:
                return prior.log_prob(x, c)

        g = self.g * (1 + 0.5 * GRID.times)
        return unrolled(bound_to(self.drift, c), bound_to(self.score, c), x0, GRID, g, Given())


@pytest.mark.parametrize("shared", [False, True], ids=["its own encoder", "one of the drift"])
@pytest.mark.parametrize(("every", "scores"), MODES)
def test_gradients_are_those_of_the_unrolled_loop(every: int, scores: int, shared: bool) -> None:
    """All of them: of networks, prior, coefficient, data, and of what the context came from."""
    pair, x0 = Pair(shared=shared, scores=scores), X0.clone().requires_grad_()
    inputs = pair.trained(x0)
    expected = pair.expected(x0)
    truth = gradients(expected @ WEIGHT, inputs)
    options: Any = {"context": pair.context(), "checkpoint_every": every}
    loss = pair.sde.loss(x0, GRID, KEY, **options)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    assert_same(gradients(loss @ WEIGHT, inputs), truth)
    options["context"] = pair.context()
    mean = pair.sde.mean_loss(x0, GRID, KEY, weight=WEIGHT, **options)
    torch.testing.assert_close(mean, expected @ WEIGHT, rtol=1e-12, atol=1e-12)
    assert_same(gradients(mean, inputs), truth)


def test_the_losses_as_functions_take_a_context() -> None:
    pair, c = Pair(), torch.randn(5, 2, dtype=F64, requires_grad=True)
    context = {"c": c, "label": LABEL}
    options: dict[str, Any] = {
        "diffusion": 0.8, "params": parameters(pair.drift, pair.score), "key": KEY,
        "context": context,
    }  # fmt: skip
    g = torch.full((GRID.num_steps + 1,), 0.8, dtype=F64)
    nets = (bound_to(pair.drift, context), bound_to(pair.score, context))
    truth = unrolled(*nets, X0, GRID, g)
    loss = diffflow_loss(pair.drift, pair.score, X0, GRID, **options)
    torch.testing.assert_close(loss, truth, rtol=1e-12, atol=1e-12)
    mean = diffflow_mean_loss(pair.drift, pair.score, X0, GRID, **options)
    assert_same(gradients(mean, [c]), gradients(truth.mean(), [c]))


def test_a_leaf_of_the_context_gets_its_gradient_once() -> None:
    pair, c = Pair(), torch.randn(5, 2, dtype=F64, requires_grad=True)
    calls: list[Tensor] = []
    c.register_hook(calls.append)
    pair.sde.mean_loss(X0, GRID, KEY, context={"c": c, "label": LABEL}).backward()
    assert len(calls) == 1
    pair.context = lambda: {"c": c, "label": LABEL}  # pyright: ignore
    (truth,) = torch.autograd.grad(pair.expected(X0).mean(), c)
    torch.testing.assert_close(c.grad, truth, rtol=1e-11, atol=1e-12)


def test_losses_without_gradients_are_the_same() -> None:
    pair = Pair()
    expected = pair.expected(X0)
    with torch.no_grad():
        loss = pair.sde.loss(X0, GRID, KEY, context=pair.context())
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-12)
    pair.sde.requires_grad_(False)
    pair.g.requires_grad_(False)
    pair.encoder.requires_grad_(False)
    assert same_bits(pair.sde.loss(X0, GRID, KEY, context=pair.context()), loss)


@pytest.mark.parametrize("shared", [False, True], ids=["its own encoder", "one of the drift"])
def test_paths_and_densities_have_gradients_of_the_context(shared: bool) -> None:
    """Against finite differences in the weights of the encoder."""
    pair, grid = Pair(shared=shared), TimeGrid.power(4, 0.7)
    weight = pair.encoder.weight

    def end(w: Tensor) -> Tensor:
        c = {"c": torch.nn.functional.linear(Y, w).tanh(), "label": LABEL}
        return pair.sde.encode(X0, grid, KEY, context=c)

    def density(w: Tensor) -> Tensor:
        c = {"c": torch.nn.functional.linear(Y, w).tanh(), "label": LABEL}
        return pair.sde.log_prob(X0, grid, KEY, context=c)

    free = weight if shared else weight.detach().clone().requires_grad_()
    for call in (end, density):
        assert torch.autograd.gradcheck(call, free, atol=1e-6)


@pytest.mark.parametrize("chunk", [bounds.PATHS_PER_CALL, 6])
def test_each_path_of_the_bound_has_the_context_of_its_sample(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound of a batch is that of each sample by itself, also where it is taken in parts."""
    monkeypatch.setattr(bounds, "PATHS_PER_CALL", chunk)
    pair = Pair()
    c = pair.context()
    with torch.no_grad():
        whole = pair.sde.elbo(X0, GRID, KEY, num_paths=3, context=c)
        for i in range(5):
            own = {name: value[i : i + 1] for name, value in c.items()}
            alone = pair.sde.elbo(
                X0[i : i + 1], GRID, KEY, num_paths=3, context=own, sample_offset=i
            )
            torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-12, atol=1e-12)
        plain = pair.sde.elbo(X0, GRID, KEY, context=c)
        reference = pair.sde.bound_minus_loss(X0, GRID, KEY)
        torch.testing.assert_close(plain, -pair.expected(X0) - reference)


@pytest.mark.parametrize("name", ["mlp", "score", "unet"])
def test_networks_that_embed_times_do_so_with_a_context(name: str) -> None:
    """The embeddings of all times in one call, and the context in each call."""
    if name == "unet":
        x0, nets = torch.randn(3, 1, 8, 8, dtype=F64), [
            UNet(1, 8, 8, (1, 2), 1, (4,), num_classes=4, context_dim=2) for _ in range(2)
        ]  # fmt: skip
    else:
        x0, nets = X0[:3], [FourierMLP(3, 16, num_classes=4, context_dim=2) for _ in range(2)]
    for p in parameters(*nets):
        nn.init.normal_(p, std=0.3)
    drift, score = (net.double() for net in nets)
    score = NoiseScore(score, 0.8, floor=0.1) if name == "score" else score
    c = torch.randn(3, 2, dtype=F64, requires_grad=True)
    context = {"labels": LABEL[:3], "vectors": c}
    assert embeds_time(Conditioned(score, context))
    truth = unrolled(
        bound_to(drift, context), bound_to(score, context), x0, GRID,
        torch.full((GRID.num_steps + 1,), 0.8, dtype=F64),
    )  # fmt: skip
    inputs = [c, *parameters(drift, score)]
    expected = gradients(truth.mean(), inputs)
    for scores in (1, 3):
        sde = DiffFlowSDE(drift, score, 0.8, scores_per_call=scores)
        loss = sde.loss(x0, GRID, KEY, context=context)
        torch.testing.assert_close(loss, truth, rtol=1e-11, atol=1e-11)
        found = gradients(sde.mean_loss(x0, GRID, KEY, context=context), inputs)
        assert_same(found, expected)


def test_modes_of_networks_are_still_noticed() -> None:
    pair = Pair()
    pair.drift.dropout = nn.Dropout(0.5)  # of no effect, but with a mode
    loss = pair.sde.loss(X0, GRID, KEY, context=pair.context()).sum()
    pair.drift.eval()
    with pytest.raises(RuntimeError, match="switched between train"):
        loss.backward()


def test_a_context_changed_before_the_backward_pass_is_noticed() -> None:
    pair = Pair()
    c = pair.context()
    loss = pair.sde.loss(X0, GRID, KEY, context=c).sum()
    with torch.no_grad():
        c["c"].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_tensors_that_nobody_named_are_found_beside_a_context() -> None:
    pair, hidden = Pair(), torch.ones(3, dtype=F64, requires_grad=True)
    net = pair.drift

    def drift(t: Tensor, x: Tensor, c: Any) -> Tensor:
        return net(t, x, c) * hidden

    sde = DiffFlowSDE(drift, pair.score, 0.8, params=net.parameters())
    with pytest.raises(RuntimeError, match=r"depends on a tensor of shape \(3,\)"):
        sde.mean_loss(X0, GRID, KEY, context=pair.context())


def test_contexts_in_inference_mode() -> None:
    pair = Pair()
    expected = pair.sde.log_prob(X0, GRID, KEY, context=pair.context())
    with torch.inference_mode():
        found = pair.sde.log_prob(X0, GRID, KEY, context=pair.context())
        pair.sde.loss(X0, GRID, KEY, context=pair.context())
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-12)
