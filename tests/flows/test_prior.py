"""Priors: densities against closed forms and quadrature, and what their samples depend on."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import normflows
import pytest
import torch
import zuko
from helpers import same_bits
from torch import Tensor, distributions, nn

from diffflow_ext import NoiseKey
from diffflow_ext.engines.problem import normal_cost
from diffflow_ext.flows import FFJORD, FlowPrior, StandardNormal, as_prior, glow, spline_flow
from diffflow_ext.functional import normal
from diffflow_ext.nets import FourierMLP

KEY = NoiseKey(7, 3)


def wide(flow: Any) -> Any:
    """The flow far from the identity: its weights are drawn wide."""
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.25)
    return flow


def seen_glow() -> Any:
    """Two levels over images (1, 4, 4) that have seen a batch."""
    flow = glow((1, 4, 4), blocks=2, hidden=8)
    flow.log_prob(0.5 + 2 * torch.randn(64, 1, 4, 4), None)
    return flow


def real_nvp() -> normflows.NormalizingFlow:
    base = normflows.distributions.DiagGaussian(2)
    base.loc.data.fill_(0.3)
    base.log_scale.data.fill_(-0.4)
    nets = [normflows.nets.MLP([1, 8, 2]) for _ in range(2)]
    couplings = [normflows.flows.AffineCouplingBlock(net) for net in nets]
    swap = normflows.flows.Permute(2, mode="swap")
    return normflows.NormalizingFlow(base, [couplings[0], swap, couplings[1]])


def multiscale() -> normflows.MultiscaleFlow:
    """Two levels of a flow over images (1, 4, 4); ActNorm has seen a batch."""
    bases = [normflows.distributions.DiagGaussian(shape) for shape in ((8, 1, 1), (2, 2, 2))]
    for parameter in (p for one in bases for p in one.parameters()):
        nn.init.normal_(parameter, std=0.2)
    blocks = [normflows.flows.GlowBlock(channels, 4) for channels in (8, 4)]
    levels = [[block, normflows.flows.Squeeze()] for block in blocks]
    flow = normflows.MultiscaleFlow(bases, levels, [normflows.flows.Merge()], class_cond=False)
    flow.log_prob(torch.randn(32, 1, 4, 4), None)
    for block in blocks:
        nn.init.normal_(block.flows[0].flows[1].param_map.net[-1].weight, std=0.1)
    return flow


class Scaled(nn.Module):
    """A module without library, with either form of sample."""

    def __init__(self, tuples: bool) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(0.5))
        self.tuples = tuples

    def log_prob(self, x: Tensor) -> Tensor:
        return distributions.Normal(0.0, self.log_scale.exp()).log_prob(x).sum(-1)

    def sample(self, n: Any) -> Any:
        if self.tuples:
            return torch.randn(*n, 2) * self.log_scale.exp()
        return torch.randn(n, 2) * self.log_scale.exp(), None


class Lifted(Scaled):
    """The same, with samples from given normals."""

    def sample_from(self, z: Tensor) -> Tensor:
        return z * self.log_scale.exp()


KEYED = {
    "spline": (lambda: wide(spline_flow(2, transforms=2, hidden=(16, 16))), (2,)),
    "glow": (seen_glow, (1, 4, 4)),
    "ffjord": (lambda: FFJORD(FourierMLP(2, 8), solver="rk4", num_steps=4), (2,)),
    "module": (lambda: Lifted(tuples=False), (2,)),
}
FORKED = {
    "zuko spline": (lambda: wide(zuko.flows.NSF(2, transforms=2, hidden_features=(16, 16))), (2,)),
    "normflows coupling": (real_nvp, (2,)),
    "normflows multiscale": (multiscale, (1, 4, 4)),
    "zuko mixture": (lambda: zuko.flows.GMM(2, components=3), (2,)),
    "torch mixture": (
        lambda: distributions.MixtureSameFamily(
            distributions.Categorical(torch.ones(3)),
            distributions.Independent(distributions.Normal(torch.randn(3, 2), 1.0), 1),
        ),
        (2,),
    ),
    "module of ints": (lambda: Scaled(tuples=False), (2,)),
    "module of tuples": (lambda: Scaled(tuples=True), (2,)),
}
EVERY = {**KEYED, **FORKED}


def built(name: str) -> tuple[FlowPrior, tuple[int, ...]]:
    make, event = EVERY[name]
    return FlowPrior(make()), event


# --- Gaussians -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_standard_normal_samples_are_the_scaled_noise_bit_for_bit(
    scale: float, dtype: torch.dtype
) -> None:
    shape = (5, 3, 2)
    x = StandardNormal(scale).sample(shape, KEY, sample_offset=11, dtype=dtype)
    z = normal(shape, KEY, purpose="prior", sample_offset=11, dtype=dtype)
    assert same_bits(x, scale * z)
    assert same_bits(StandardNormal().sample(shape, KEY.to_tensor()), normal(
        shape, KEY, purpose="prior"
    ))  # fmt: skip


@pytest.mark.parametrize("scale", [1.0, 0.25, 50.0])
def test_standard_normal_density_is_torchs(scale: float) -> None:
    x = (scale * torch.randn(6, 3, 4, dtype=torch.float64)).requires_grad_()
    width = torch.tensor(scale, dtype=torch.float64)
    truth = distributions.Normal(torch.zeros_like(width), width).log_prob(x).sum((1, 2))
    value = StandardNormal(scale).log_prob(x)
    torch.testing.assert_close(value, truth, rtol=1e-13, atol=1e-11)
    torch.testing.assert_close(
        torch.autograd.grad(value.sum(), x)[0], -x.detach() / scale**2, rtol=1e-13, atol=0
    )


def test_standard_normal_has_the_bits_of_the_losss_own_last_term() -> None:
    x = torch.randn(5, 3, 7)
    assert same_bits(-StandardNormal().log_prob(x), normal_cost(x))


# --- samples of flows ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORKED)
def test_a_forked_sample_repeats_and_leaves_torchs_generator_alone(name: str) -> None:
    prior, event = built(name)
    before = torch.get_rng_state()
    first = prior.sample((10, *event), KEY)
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(3)
    assert torch.equal(prior.sample((10, *event), KEY), first)
    assert torch.equal(prior.sample((10, *event), KEY.to_tensor()), first)
    others = [KEY.at(4), NoiseKey(8, 3), NoiseKey(7 + 2**32, 3)]
    for other in (*(prior.sample((10, *event), key) for key in others), prior.sample(
        (10, *event), KEY, sample_offset=1
    )):  # fmt: skip
        assert (other - first).abs().max() > 0.1


@pytest.mark.parametrize("name", KEYED)
def test_the_latent_is_the_keyed_noise(name: str) -> None:
    prior, event = built(name)
    z = normal((5, *event), KEY, purpose="prior", sample_offset=3)
    before = torch.get_rng_state()
    x = prior.sample((5, *event), KEY, sample_offset=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(x, prior.flow.sample_from(z).detach())


@pytest.mark.parametrize("name", EVERY)
def test_samples_follow_the_density(name: str) -> None:
    """The mean of exp(q - p) over samples of p is 1 for any density q: here a Gaussian."""
    prior, event = built(name)
    x = prior.sample((4000, *event), KEY).double().flatten(1)
    floats = x.float().unflatten(1, event)
    with torch.no_grad():
        log_p = prior.log_prob(floats).double()
    # q: the Gaussian fitted to the samples, narrowed to keep the weights' variance small.
    loc, covariance = x.mean(0), torch.cov(x.T)
    q = distributions.MultivariateNormal(loc, 0.6 * covariance)
    log_q = q.log_prob(x)
    weights = (log_q - log_p).exp()
    error = float(weights.std() / math.sqrt(len(weights)))
    assert error < 0.2
    assert abs(float(weights.mean()) - 1) < 5 * error


# --- densities of flows --------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_gradients_reach_states_and_parameters(name: str) -> None:
    prior, event = built(name)
    x = prior.sample((8, *event), KEY).requires_grad_()
    value = prior.log_prob(x)
    assert value.shape == (8,)
    assert value.dtype == x.dtype
    trainable = [p for p in prior.parameters() if p.requires_grad]
    grads = torch.autograd.grad(value.sum(), [x, *trainable], allow_unused=True)
    assert grads[0].isfinite().all()
    assert grads[0].abs().max() > 0
    assert sum(g is not None and bool(g.abs().max() > 0) for g in grads[1:]) >= bool(trainable)


def test_the_gradient_is_the_slope() -> None:
    prior = FlowPrior(spline_flow(2).double())
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(prior.log_prob, (x,))


def test_autocast_does_not_reach_the_flow() -> None:
    prior, event = built("normflows multiscale")
    x = prior.sample((4, *event), KEY)
    expected = prior.log_prob(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same_bits(prior.log_prob(x), expected)
        assert same_bits(prior.sample((4, *event), KEY), x)


def test_minus_infinity_is_a_density() -> None:
    box = distributions.Independent(
        distributions.Uniform(torch.zeros(2), torch.ones(2), validate_args=False), 1
    )
    values = FlowPrior(box).log_prob(torch.tensor([[0.5, 0.5], [2.0, 0.5]]))
    assert values.tolist() == [0.0, -math.inf]


def test_float64_flows_take_float64() -> None:
    prior = FlowPrior(spline_flow(2).double())
    x = prior.sample((4, 2), KEY, dtype=torch.float64)
    assert x.dtype == torch.float64
    assert prior.log_prob(x).dtype == torch.float64
    single = FlowPrior(spline_flow(2))
    assert single.sample((4, 2), KEY, dtype=torch.float64).dtype == torch.float64


# --- modules -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["spline", "glow", "normflows multiscale", "module"])
def test_state_dicts_name_the_flow_and_restore_it(name: str) -> None:
    prior, event = built(name)
    assert {key.split(".")[0] for key in prior.state_dict()} == {"flow"}
    other, _ = built(name)
    other.load_state_dict(prior.state_dict())
    x = prior.sample((4, *event), KEY)
    assert torch.equal(other.log_prob(x), prior.log_prob(x))
    assert torch.equal(copy.deepcopy(prior).sample((4, *event), KEY), x)


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda prior: pickle.loads(pickle.dumps(prior))])
@pytest.mark.parametrize("name", ["spline", "glow"])
def test_a_copy_samples_from_its_own_weights(name: str, twin: Callable[[Any], Any]) -> None:
    prior, event = built(name)
    other, x = twin(prior), prior.sample((4, *event), KEY)
    for parameter in prior.parameters():
        parameter.data.add_(0.1)
    assert torch.equal(other.sample((4, *event), KEY), x)
    assert not torch.equal(prior.sample((4, *event), KEY), x)


def test_as_prior() -> None:
    class Own:
        def log_prob(self, x: Tensor) -> Tensor:
            return -x.square().sum(-1)

        def sample(self, shape: tuple[int, ...], key: NoiseKey, **_: Any) -> Tensor:
            return torch.zeros(shape)

    for prior in (StandardNormal(2.0), FlowPrior(spline_flow(2)), Own()):
        assert as_prior(prior) is prior
    assert isinstance(as_prior(None), StandardNormal)
    for flow in (spline_flow(2), distributions.Normal(0.0, 1.0)):
        assert isinstance(as_prior(flow), FlowPrior)


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flow",
    [
        None,
        3,
        zuko.flows.NSF,
        object(),
        normflows.MultiscaleFlow([], [], [], class_cond=True),
        normflows.ClassCondFlow(nn.Identity(), []),
    ],
)
def test_what_is_no_flow_is_refused(flow: Any) -> None:
    with pytest.raises(TypeError, match="FlowPrior: expected a"):
        FlowPrior(flow)


def test_a_module_that_makes_no_distribution_is_refused() -> None:
    class Constant(nn.Module):
        def forward(self) -> int:
            return 3

    with pytest.raises(TypeError, match=r"Constant\(\) to return a torch distribution, got int"):
        FlowPrior(Constant()).log_prob(torch.zeros(3, 2))


class Wrong(nn.Module):
    """A flow that returns what it is told to."""

    def __init__(self, density: Any = None, samples: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.density, self.samples = density, samples

    def log_prob(self, x: Tensor) -> Any:
        return self.density(x * self.weight)

    def sample(self, n: int) -> Any:
        return self.samples


@pytest.mark.parametrize(
    ("density", "error", "words"),
    [
        (lambda x: x, ValueError, r"of shape \(4,\) for x of shape \(4, 2\), got \(4, 2\)"),
        (lambda x: x.sum(), ValueError, r"of shape \(4,\) .* got \(\)"),
        (lambda x: x.sum(1).bfloat16(), TypeError, "float32 or float64, got torch.bfloat16"),
        (lambda x: x.sum(1).tolist(), TypeError, "a tensor, got list"),
        (lambda x: x.sum(1).detach(), RuntimeError, "the flow detaches it"),
    ],
)
def test_wrong_densities_are_named(density: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        FlowPrior(Wrong(density)).log_prob(torch.ones(4, 2))


def test_densities_without_gradient_are_fine_where_none_are_wanted() -> None:
    prior = FlowPrior(Wrong(lambda x: x.sum(1).detach()))
    with torch.no_grad():
        assert prior.log_prob(torch.ones(4, 2)).tolist() == [2.0] * 4


@pytest.mark.parametrize(
    ("samples", "error", "words"),
    [
        (torch.ones(4, 3), ValueError, r"samples of shape \(4, 2\), got \(4, 3\)"),
        (torch.ones(4, 2).long(), TypeError, "a floating tensor"),
        (3.0, TypeError, "a floating tensor, got 3.0"),
        (torch.tensor([[1.0, 2.0]] * 3 + [[math.nan, math.inf]]), RuntimeError, "returned 2 "),
    ],
)
def test_wrong_samples_are_named(samples: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        FlowPrior(Wrong(samples=samples)).sample((4, 2), KEY)


def test_wrong_arguments_are_named() -> None:
    prior = FlowPrior(spline_flow(2))
    with pytest.raises(
        TypeError, match=r"float32\), got torch.float64; .* with .to\(torch.float64"
    ):
        prior.log_prob(torch.zeros(3, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"z of shape \(B, 2\), got \(4, 3\)"):
        prior.sample((4, 3), KEY)
    with pytest.raises(TypeError, match=r"FlowPrior\.sample: expected key"):
        prior.sample((4, 2), 3)
    with pytest.raises(TypeError, match=r"FlowPrior\.sample: expected shape"):
        prior.sample(4, KEY)
    with pytest.raises(ValueError, match=r"FlowPrior\.sample: expected 0 <= sample_offset"):
        prior.sample((4, 2), KEY, sample_offset=-1)


# --- GPU -----------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", KEYED)
def test_the_device_gives_the_same_samples(name: str) -> None:
    prior, event = built(name)
    x = prior.sample((10, *event), KEY)
    if not list(prior.parameters()):
        pytest.skip("tensors of a distribution stay where they are")
    on_device = prior.cuda().sample((10, *event), KEY, device="cuda")
    assert on_device.is_cuda
    torch.testing.assert_close(on_device.cpu(), x, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_a_forked_sample_leaves_the_devices_generator_alone() -> None:
    prior = FlowPrior(Scaled(tuples=False)).cuda()
    torch.cuda.manual_seed(0)
    before = torch.cuda.get_rng_state()
    prior.sample((4, 2), KEY, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), before)
