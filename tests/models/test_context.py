"""Models with a context: closed forms of Gaussians that depend on it, and rows that stay put."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from context_cases import F64, GaussianGiven, LazyGaussian, Told
from helpers import same_bits
from torch import Tensor, nn
from torch.distributions import Normal

from diffflow_ext import DDPM, NFDM, DiffFlowSDE, DiNof, NoiseKey, TimeGrid
from diffflow_ext.flows import FlowPrior, spline_flow
from diffflow_ext.nets import FourierMLP
from diffflow_ext.processes import VP, DiscreteVP

KEY = NoiseKey(5, 2)
C = torch.tensor([[-1.0], [0.3], [2.0], [0.0], [-0.4]], dtype=F64)
#: Of Runge-Kutta's solution in 200 steps, in nats. The rate of a chain jumps at its 1000 times.
CLOSE = {"ddpm": 2e-3, "dinof": 1e-5, "diffflow": 1e-5}
CUTOFF = 0.6


class Model:
    """An exact model of the Gaussian, and the time of its data."""

    def __init__(self, name: str, chain: DiscreteVP | None = None) -> None:
        process = (chain or DDPM(torch.neg).process) if name == "ddpm" else VP()  # pyright: ignore
        self.data, self.name = GaussianGiven(process), name
        self.model: Any = getattr(self, name)()
        self.start = {"ddpm": 1 / 1000, "dinof": 1e-3, "diffflow": 0.1}[name]

    def ddpm(self) -> DDPM:
        return DDPM(self.data.eps, self.data.process)

    def dinof(self) -> DiNof:
        flow = FlowPrior(LazyGaussian(self.data, CUTOFF), conditional=True)
        return DiNof(self.data.eps, flow, self.data.process, CUTOFF)

    def diffflow(self) -> DiffFlowSDE:
        """The same process as a pair, where the drift has no use for its context."""
        process = self.data.process
        prior = FlowPrior(LazyGaussian(self.data, CUTOFF), conditional=True)

        def score(t: Tensor, x: Tensor, c: Tensor) -> Tensor:
            return -self.data.eps(t, x, c) / process.sigma(t)

        def drift(t: Tensor, x: Tensor, c: Tensor) -> Tensor:
            return process.drift_rate(t) * x

        like = torch.zeros(1, dtype=F64)
        return DiffFlowSDE(drift, score, process.diffusion, prior=prior, params=[like])

    def grid(self, steps: int) -> Any:
        return TimeGrid.power(steps, CUTOFF, 0.1) if self.name == "diffflow" else steps

    def samples(self, c: Tensor, steps: int = 30, **options: Any) -> Tensor:
        like = torch.zeros(len(c), 2, dtype=F64)
        self.model.dtype_of_samples = nn.Parameter(like[0])
        options = {"key": KEY, "context": c, **options}
        return self.model.sample(tuple(like.shape), self.grid(steps), **options)


each_model = pytest.mark.parametrize("name", ["ddpm", "dinof", "diffflow"])
each_trained = pytest.mark.parametrize(
    "name", ["ddpm", "dinof", "diffflow", "nfdm", "nfdm, learned", "nfdm, straight"]
)


@each_model
def test_the_density_is_that_of_the_gaussian_given_the_context(name: str) -> None:
    """The noise that the first time leaves counts as part of the data."""
    case = Model(name)
    x = case.data.mean(C) + torch.randn(5, 2, dtype=F64)
    found = case.model.log_prob(x, case.grid(200), KEY, solver="rk4", context=C)
    first = case.data.law(case.start, C)
    expected = first.log_prob(x)
    if name == "ddpm":  # Its equation ends at N(0, I), not quite the marginal there.
        last, first = (case.data.law(t, C).base_dist for t in (1.0, case.start))
        end = last.loc + (x - first.loc) / first.scale * last.scale
        growth = (last.scale / first.scale).log().sum(1)
        expected = Normal(0.0, 1.0).log_prob(end).sum(1) + growth
    torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE[name])


def test_ancestral_samples_of_ddpm_have_the_moments_of_their_context() -> None:
    """Each step is linear, so that means and variances are those of a recursion by hand."""
    case, c = Model("ddpm", DiscreteVP.cosine(50)), C[:3].repeat(20_000, 1)
    found = case.samples(c, 50).reshape(20_000, 3, 2)
    process = case.data.process
    mean, variance = torch.zeros(3, 2, dtype=F64), torch.ones(3, 1, dtype=F64)
    m, s2 = case.data.mean(C[:3]), case.data.scale(C[:3]).square()
    bar = (2 * process.log_alphas).exp()
    for i in range(50, 0, -1):
        # x_0 given x_i is Gaussian; the posterior of Ho et al. is taken at its mean.
        gain = bar[i].sqrt() * s2 / (bar[i] * s2 + 1 - bar[i])
        beta = 1 - bar[i] / bar[i - 1]
        a = bar[i - 1].sqrt() * beta / (1 - bar[i])
        b = (1 - beta).sqrt() * (1 - bar[i - 1]) / (1 - bar[i])
        slope = a * gain + b
        mean = slope * mean + a * (m - gain * bar[i].sqrt() * m)
        variance = slope.square() * variance + beta * (1 - bar[i - 1]) / (1 - bar[i])
    error = 4.5 * (variance / 20_000).sqrt()
    assert bool(((found.mean(0) - mean).abs() < error).all())
    assert bool(((found.var(0) / variance - 1).abs() < 4.5 * (2 / 20_000) ** 0.5).all())
    assert float((mean - m).abs().max()) < 0.1  # and these are nearly those of the data


@each_model
def test_rows_stay_with_their_context(name: str) -> None:
    """A sample is a function of its index and its context, however a batch is split."""
    case = Model(name)
    whole = case.samples(C)
    parts = [case.samples(C[i : i + 2], sample_offset=i) for i in (0, 2, 4)]
    # The conditional flow here draws from torch's generator, by the split of the batch.
    if name == "ddpm":
        assert same_bits(torch.cat(parts), whole)
    other = C.clone()
    other[2] += 1
    changed = (case.samples(other) - whole).abs().amax(1) > 1e-6
    assert changed.tolist() == [False, False, True, False, False]


class Shape(nn.Module):
    """A forward network of data and a context: one function h and one function u."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 6).double()

    def forward(self, x0: Tensor, context: Tensor) -> Tensor:
        return 0.3 * self.layer(torch.cat([x0, context], 1)).tanh()


def trained(name: str) -> tuple[Any, list[Tensor]]:
    """A model with nets in float64, and its arguments before the key."""
    torch.manual_seed(2)
    x0 = torch.randn(5, 3, dtype=F64)
    if name == "diffflow":
        return DiffFlowSDE(Told(), Told(), 0.7), [x0, TimeGrid.power(6, 1.0)]
    if name == "ddpm":
        return DDPM(Told(), "cosine", 20), [x0]
    if name.startswith("nfdm"):
        straightness = 0.3 if name == "nfdm, straight" else 0.0
        return NFDM(Told(), Shape() if "," in name else None, straightness=straightness), [x0]
    flow = spline_flow(3, 1, (8,), 4, context_dim=2).double()
    return DiNof(Told(), flow), [x0]


@each_trained
def test_losses_of_samples_are_those_of_each_with_its_context(name: str) -> None:
    model, (x0, *grid) = trained(name)
    c = torch.randn(5, 2, dtype=F64, requires_grad=True)
    parts = {"ddpm": ("loss", "elbo"), "dinof": ("score_loss", "flow_loss")}.get(name, ("loss",))
    for part in parts:
        call = getattr(model, part)
        whole = call(x0, *grid, KEY, context=c)
        for i in range(5):
            at = slice(i, i + 1)
            alone = call(x0[at], *grid, KEY, context=c[at].detach(), sample_offset=i)
            torch.testing.assert_close(whole[at], alone, rtol=1e-10, atol=1e-12)
        (own,) = torch.autograd.grad(whole[2], c, retain_graph=True)
        assert own[2].abs().min() > 1e-6
        assert not own[[0, 1, 3, 4]].any()


@each_trained
def test_the_mean_of_losses_trains_the_encoder_of_a_context(name: str) -> None:
    """Against finite differences in one weight of it."""
    model, (x0, *grid) = trained(name)
    encoder, y = nn.Linear(4, 2).double(), torch.randn(5, 4, dtype=F64)
    weight = torch.rand(5, dtype=F64)

    def loss() -> Tensor:
        return model.mean_loss(x0, *grid, KEY, context=encoder(y), weight=weight)

    (grad,) = torch.autograd.grad(loss(), encoder.weight)
    for index in ((0, 1), (1, 3)):
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                encoder.weight[index] += step
                values.append(float(loss()))
                encoder.weight[index] -= step
        assert float(grad[index]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


@each_trained
def test_densities_have_gradients_of_the_context(name: str) -> None:
    model, (x0, *grid) = trained(name)
    c = torch.randn(5, 2, dtype=F64, requires_grad=True)

    def density(c: Tensor) -> Tensor:
        return model.log_prob(x0, *(grid or [4]), KEY, context=c)

    assert torch.autograd.gradcheck(density, c, atol=1e-6)


@each_trained
@pytest.mark.parametrize("call", ["mean_loss", "elbo", "log_prob", "sample", "path", "encode"])
def test_wrong_contexts_are_explained(name: str, call: str) -> None:
    model, (x0, *grid) = trained(name)
    method = getattr(model, call, None)
    if method is None:
        pytest.skip("the model has no such method")
    first = tuple(x0.shape) if call == "sample" else x0
    middle = grid or ([5] if call in ("log_prob", "sample") else [])
    for context, text in (
        (torch.zeros(4, 2, dtype=F64), "context of shape (5, ...), one row for each sample, got"),
        (torch.zeros(5, 2), "context in the dtype of the samples (float64), got float32"),
        ([1], "context as a tensor of shape (5, ...) or a mapping of names to such tensors"),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            method(first, *middle, KEY, context=context)
        assert text in str(caught.value)
        assert type(model).__name__ in str(caught.value)
    with pytest.raises((TypeError, ValueError)) as caught:
        method(first, *middle, KEY)
    assert "as context=" in str(caught.value) or "FlowPrior" in str(caught.value)


def plain_networks() -> list[Callable[..., Tensor]]:
    return [FourierMLP(3, 8).double(), lambda t, x: x]


@pytest.mark.parametrize("index", [0, 1])
def test_networks_that_take_no_context_refuse_one(index: int) -> None:
    net, x0 = plain_networks()[index], torch.randn(5, 3, dtype=F64)
    c = torch.zeros(5, 2, dtype=F64)
    text = ("expected no context, because the network", "to take three arguments, t, x and the")
    with pytest.raises((TypeError, ValueError)) as caught:
        DDPM(net).loss(x0, KEY, context=c)
    assert text[index] in str(caught.value)
    with pytest.raises((TypeError, ValueError)) as caught:
        DiffFlowSDE(net, net).mean_loss(x0, TimeGrid.power(3, 1.0), KEY, context=c)
    assert text[index] in str(caught.value)


def test_all_ways_of_sampling_a_pair_use_the_context() -> None:
    """Given one context for all, they are those of the networks with this context inside."""
    net, c = Told(), torch.randn(1, 2, dtype=F64)
    inside = Inside(net, c)
    given, fixed = DiffFlowSDE(net, net, 0.7), DiffFlowSDE(inside, inside, 0.7)
    grid = TimeGrid.power(5, 1.0)
    ways: list[dict[str, Any]] = [
        {}, {"last_step": "tweedie"}, {"corrector_steps": 2},
        {"stochasticity": 0.0, "solver": "heun"},
        {"stochasticity": 0.0, "solver": "rk4", "corrector_steps": 1},
    ]  # fmt: skip
    for way in ways:
        found = given.sample((5, 3), grid, KEY, context=c.expand(5, 2), **way)
        assert same_bits(found, fixed.sample((5, 3), grid, KEY, **way))
    states = given.sample_path((5, 3), grid, KEY, context=c.expand(5, 2))
    assert same_bits(states, fixed.sample_path((5, 3), grid, KEY))
    noise = {"key": KEY, "context": c.expand(5, 2)}
    end = given.encode(torch.ones(5, 3, dtype=F64), grid, **noise)
    assert same_bits(end, fixed.encode(torch.ones(5, 3, dtype=F64), grid, KEY))


def test_all_ways_of_sampling_noise_predictors_use_the_context() -> None:
    net, c = Told(), torch.randn(1, 2, dtype=F64)
    inside = Inside(net, c)
    for sampler in ("em", "reverse_diffusion", "ode"):
        way: dict[str, Any] = {"sampler": sampler, "last_step": "tweedie"}
        found = DiNof(net).sample((5, 3), 4, KEY, context=c.expand(5, 2), **way)
        assert same_bits(found, DiNof(inside).sample((5, 3), 4, KEY, **way))
    for strength in (0.0, 1.0):
        found = NFDM(net).sample((5, 3), 4, KEY, strength, context=c.expand(5, 2))
        assert same_bits(found, NFDM(inside).sample((5, 3), 4, KEY, strength))
    for sampler in ("ancestral", "ddim"):
        found = DDPM(net).sample((5, 3), 4, KEY, context=c.expand(5, 2), sampler=sampler)
        assert same_bits(found, DDPM(inside).sample((5, 3), 4, KEY, sampler=sampler))
    t, x = torch.tensor(0.3, dtype=F64), torch.randn(5, 3, dtype=F64)
    assert same_bits(DiNof(net).score(t, x, c.expand(5, 2)), DiNof(inside).score(t, x))


class Inside(nn.Module):
    """A network that has one context for all samples in itself."""

    def __init__(self, net: Told, context: Tensor) -> None:
        super().__init__()
        self.net, self.context = net, context

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(t, x, self.context.expand(len(x), -1))


@pytest.mark.parametrize("labelled", [False, True])
def test_losses_of_predicted_noise_compile_without_a_break(labelled: bool) -> None:
    torch.manual_seed(0)
    net = FourierMLP(3, 8, 1, num_classes=4 if labelled else 0, context_dim=0 if labelled else 2)
    model, x0 = DDPM(net), torch.randn(5, 3)
    c = torch.arange(5) % 4 if labelled else torch.randn(5, 2, requires_grad=True)

    def loss(x0: Tensor) -> Tensor:
        return model.mean_loss(x0, KEY, context=c, engine="autograd")

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    inputs = [*net.parameters(), *([] if labelled else [c])]
    found, expected = (torch.autograd.grad(f(x0), inputs) for f in (compiled, loss))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
