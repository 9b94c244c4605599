"""Glow: densities against Jacobians, samples from normals, ActNorm's first batch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from densities import jacobian_log_det
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from diffflow_ext.flows import ActNorm, FlowPrior, StandardNormal, glow


def small_glow(shape: tuple[int, ...] = (1, 4, 4)) -> Any:
    """A flow that has seen a batch and is far from the identity."""
    flow = glow(shape, blocks=2, hidden=8).double()
    # Matrices of 1 x 1 convolutions stay what they are: random rotations.
    for name, parameter in flow.named_parameters():
        if "param_map" in name or name.startswith("q0"):
            nn.init.normal_(parameter, std=0.2)
    flow.log_prob(0.5 + 2 * torch.randn(64, *shape, dtype=torch.float64), None)
    return flow


def test_the_size_of_dinofs_glow() -> None:
    flow = glow((3, 32, 32), levels=3, blocks=16, hidden=256)
    assert sum(p.numel() for p in flow.parameters()) == 7_923_456


@pytest.mark.parametrize(
    ("shape", "levels"), [((3, 32, 32), 3), ((1, 28, 28), 2), ((1, 16, 16), 3), ((1, 2, 6), 1)]
)
def test_glow_takes_the_usual_images(shape: tuple[int, ...], levels: int) -> None:
    flow = glow(shape, blocks=1, hidden=8)
    assert flow.num_levels == levels
    assert flow.log_prob(torch.randn(3, *shape), None).shape == (3,)
    x, _ = flow.sample(2)
    assert x.shape == (2, *shape)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 2)])
def test_glows_density_is_that_of_its_map(shape: tuple[int, ...]) -> None:
    flow = small_glow(shape).eval()

    def noise(x: Tensor) -> Tensor:
        parts, _ = flow.inverse_and_log_det(x)
        white = [
            (z - base.loc) / base.log_scale.exp() for z, base in zip(parts, flow.q0, strict=True)
        ]
        return torch.cat([z.flatten(1) for z in white], 1)

    x = 2 * torch.randn(3, *shape, dtype=torch.float64)
    truth = StandardNormal().log_prob(noise(x)) + jacobian_log_det(noise, x)
    torch.testing.assert_close(flow.log_prob(x, None), truth, rtol=1e-9, atol=1e-9)
    back = flow.forward_and_log_det(flow.inverse_and_log_det(x)[0])[0]
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)


def norms(flow: nn.Module) -> list[ActNorm]:
    return [module for module in flow.modules() if isinstance(module, ActNorm)]


def test_the_first_batch_of_training_sets_every_norm() -> None:
    flow = glow((2, 8, 8), levels=2, blocks=2, hidden=8)
    assert len(norms(flow)) == 4
    seen = []
    for norm in norms(flow):
        assert not norm.initialised
        norm.register_forward_hook(lambda *_: pytest.fail("this direction is for samples"))
    originals = [norm.inverse for norm in norms(flow)]
    for norm, original in zip(norms(flow), originals, strict=True):
        norm.inverse = lambda x, run=original: seen.append(run(x)) or seen[-1]
    flow.log_prob(3.0 + 5.0 * torch.randn(32, 2, 8, 8), None)
    assert all(norm.initialised for norm in norms(flow))
    for z, _ in seen:
        std, mean = torch.std_mean(z, dim=(0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)
        torch.testing.assert_close(std, torch.ones_like(std), rtol=0, atol=1e-4)


def test_the_second_batch_sets_nothing() -> None:
    flow = small_glow()
    before = copy.deepcopy(flow.state_dict())
    flow.log_prob(100 * torch.randn(8, 1, 4, 4, dtype=torch.float64), None)
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())


def test_samples_and_evaluation_leave_a_new_flow_new() -> None:
    flow = glow((1, 4, 4), blocks=1, hidden=4)
    flow.sample(8)
    flow.eval()
    flow.log_prob(torch.randn(8, 1, 4, 4), None)
    flow.train()
    flow.log_prob(torch.randn(0, 1, 4, 4), None)
    assert not any(norm.initialised for norm in norms(flow))
    flow.log_prob(torch.randn(8, 1, 4, 4), None)
    assert all(norm.initialised for norm in norms(flow))


def test_a_loaded_flow_does_not_start_again() -> None:
    flow = small_glow()
    other = glow((1, 4, 4), blocks=2, hidden=8).double()
    other.load_state_dict(flow.state_dict())
    x = 30 * torch.randn(8, 1, 4, 4, dtype=torch.float64)
    assert torch.equal(other.train().log_prob(x, None), flow.log_prob(x, None))
    fresh = glow((1, 4, 4), blocks=2, hidden=8).double()
    other.load_state_dict(fresh.state_dict())
    other.log_prob(x, None)
    scales = torch.stack([norm.s.exp().mean() for norm in norms(other)])
    assert scales.max() > 10


def test_an_averaged_twin_does_not_start_again() -> None:
    flow = glow((1, 4, 4), blocks=1, hidden=4)
    twin = AveragedModel(flow)
    flow.log_prob(2 * torch.randn(16, 1, 4, 4), None)
    twin.update_parameters(flow)
    x = 30 * torch.randn(8, 1, 4, 4)
    assert torch.equal(twin.module.log_prob(x, None), flow.log_prob(x, None))


def test_a_channel_that_does_not_vary_keeps_its_scale() -> None:
    norm = ActNorm(2)
    x = torch.stack([torch.full((4, 3, 3), 7.0), 5 * torch.randn(4, 3, 3)], 1)
    z, log_det = norm.inverse(x)
    assert not z[:, 0].any()
    assert norm.s[0, 0] == 0
    assert log_det.item() == pytest.approx(-9 * norm.s.sum().item())
    back, log_det_back = norm(z)
    torch.testing.assert_close(back, x)
    assert torch.equal(log_det_back, -log_det)


def test_the_latents_of_all_levels_are_the_normals() -> None:
    flow, z = small_glow((2, 4, 4)), torch.randn(5, 2, 4, 4, dtype=torch.float64)
    latents, _ = flow.inverse_and_log_det(flow.sample_from(z))
    white = [
        (x - base.loc) / base.log_scale.exp() for x, base in zip(latents, flow.q0, strict=True)
    ]
    parts = torch.cat([one.flatten(1) for one in white], 1)
    torch.testing.assert_close(parts, z.flatten(1), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match=r"glow: expected z of shape .*, got \(5, 32\)"):
        flow.sample_from(z.flatten(1))


def test_images_of_any_strides_have_a_density() -> None:
    flow = small_glow((1, 8, 8)).float()
    strided = torch.randn(4, 8, 8, 1).permute(0, 3, 2, 1)
    expected = flow.log_prob(strided.contiguous(), None)
    torch.testing.assert_close(FlowPrior(flow).log_prob(strided), expected)
