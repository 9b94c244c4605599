"""What only a CUDA device can show of captured steps."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from diffflow_ext import DiffFlowSDE, GeometricDiffusion, NoiseKey, TimeGrid, functional
from diffflow_ext.engines import CapturedStep
from diffflow_ext.nets import FourierMLP, UNet

pytestmark = pytest.mark.gpu
Record = Callable[[str, object], None]
CUDA = torch.device("cuda", 0)
KEY = NoiseKey(2**63 + 12345, 7)
#: Steps that run as they are before a capture, in these tests.
WARM_UP = 2


def points(i: int) -> Tensor:
    return torch.randn(257, 2, generator=torch.Generator().manual_seed(i)).to(CUDA)


def images(i: int) -> Tensor:
    return torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(i)).to(CUDA)


def stratified(i: int, num_steps: int = 10) -> TimeGrid:
    return TimeGrid.stratified(num_steps, t_end=1.0, key=NoiseKey(1, i))


def perceptrons() -> DiffFlowSDE:
    torch.manual_seed(0)
    nets = FourierMLP(2, width=64, depth=2), FourierMLP(2, width=64, depth=2)
    return DiffFlowSDE(*nets, GeometricDiffusion(0.3, 0.6, learnable=True)).to(CUDA)


def unets() -> DiffFlowSDE:
    torch.manual_seed(0)
    nets = [UNet(1, 16, base=32, mults=(1, 2), blocks=1, attention=(8,)) for _ in range(2)]
    for net in nets:
        nn.init.normal_(net.output.weight, std=0.1)
    sde = DiffFlowSDE(nets[0], nets[1], diffusion=0.5)
    return sde.to(device=CUDA, memory_format=torch.channels_last)  # pyright: ignore


class Training:
    """A captured step with all that belongs to it; with `graph` off it never captures."""

    def __init__(
        self, sde: DiffFlowSDE, *, graph: bool, bf16: bool = False, **options: Any
    ) -> None:
        def loss(x0: Tensor, grid: TimeGrid, key: Tensor) -> Tensor:
            with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                return sde.mean_loss(x0, grid, key, **options)

        self.sde, self.ema = sde, AveragedModel(sde)
        adam = torch.optim.Adam(sde.parameters(), lr=1e-3)
        warm_up = WARM_UP if graph else 10**6
        self.step = CapturedStep(loss, sde, adam, KEY, ema=self.ema, clip=1.0, warm_up=warm_up)

    def run(
        self, steps: int, batch: Callable[[int], Tensor], grid: Callable[[int], TimeGrid]
    ) -> Tensor:
        """Returns losses and lengths of gradients, shape (steps, 2)."""
        found = []
        for i in range(steps):
            self.step.set_learning_rates([1e-3 / (1 + i)])
            result = self.step.step(batch(i), grid(i), decay=(1 + i) / (10 + i))
            found.append(torch.stack(result))
        return torch.stack(found).cpu()

    def weights(self) -> Tensor:
        every = itertools.chain(self.sde.parameters(), self.ema.parameters())
        return torch.cat([p.detach().flatten() for p in every]).cpu()


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    "options",
    [{}, {"checkpoint_every": 3}, {"checkpoint_every": 0}, {"engine": "fused"}],
    ids=str,
)
def test_replays_do_what_eager_steps_do(options: dict[str, Any], record_property: Record) -> None:
    """A new grid, batch, learning rate and decay in each step."""
    both = [Training(perceptrons(), graph=graph, **options) for graph in (True, False)]
    results = [one.run(8, points, stratified) for one in both]
    assert both[0].step.num_captures == 1
    assert both[1].step.num_captures == 0
    record_property("of_results", far(*results))
    record_property("of_weights", far(both[0].weights(), both[1].weights()))
    # The same kernels on the same numbers; cuBLAS may choose another product inside a graph.
    assert far(*results) < 1e-5
    assert far(both[0].weights(), both[1].weights()) < 1e-5


def test_replays_draw_the_noise_of_their_stream() -> None:
    net = nn.Linear(5, 5).to(CUDA)
    seen = torch.zeros(33, 5, device=CUDA)

    def loss(x0: Tensor, grid: object, key: Tensor) -> Tensor:
        seen.copy_(functional.normal((33, 5), key, device=CUDA))
        return net(seen).square().mean()

    step = CapturedStep(loss, net, torch.optim.Adam(net.parameters()), KEY, warm_up=WARM_UP)
    x0, streams = torch.zeros(1, device=CUDA), []
    for given in (None, None, None, None, 3, None):
        streams.append(step.stream if given is None else given)
        step.step(x0, stream=given)
        expected = functional.normal((33, 5), KEY.at(streams[-1]))
        assert torch.equal(seen.cpu(), expected), streams
    assert streams == [7, 8, 9, 10, 3, 4]
    assert step.num_captures == 1


def test_a_capture_for_each_number_of_steps_and_none_besides(record_property: Record) -> None:
    counts = [4] * 4 + [9] * 4 + [4, 9, 4, 9]

    def grid(i: int) -> TimeGrid:
        return stratified(i, counts[i])

    both = [Training(perceptrons(), graph=graph) for graph in (True, False)]
    results = [one.run(len(counts), points, grid) for one in both]
    assert both[0].step.num_captures == 2
    record_property("of_results", far(*results))
    assert far(*results) < 1e-5
    both[0].step.step(points(0)[:100], grid(0))
    assert both[0].step.num_captures == 2


def test_unets_in_bfloat16_and_channels_last(record_property: Record) -> None:
    both = [Training(unets(), graph=graph, bf16=True) for graph in (True, False)]
    results = [one.run(6, images, lambda i: stratified(i, 4)) for one in both]
    assert both[0].step.num_captures == 1
    assert bool(torch.isfinite(results[0]).all())
    record_property("of_results", far(*results))
    # Convolutions add their gradients in an order that is not fixed, and bfloat16 has 8 bits.
    assert far(*results) < 1e-2


def test_a_replayed_step_does_not_wait_for_the_device() -> None:
    training = Training(perceptrons(), graph=True)
    training.run(WARM_UP + 2, points, stratified)
    x0, grid = points(9), stratified(9)
    training.step.step(x0, grid)
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.step.set_learning_rates([1e-4])
        training.step.step(x0, grid, decay=0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_networks_that_draw_go_on_without_a_graph() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).to(CUDA)
    sde = DiffFlowSDE(lambda t, x: net(x), lambda t, x: net(x), params=net.parameters())
    adam = torch.optim.Adam(net.parameters())
    step = CapturedStep(sde.mean_loss, net, adam, KEY, warm_up=WARM_UP)
    with pytest.warns(UserWarning, match="draws from torch's generators"):
        step.step(points(0), stratified(0))
    assert all(bool(step.step(points(i), stratified(i)).loss.isfinite()) for i in range(4))
    assert step.num_captures == 0


READS = """
import torch, warnings
from diffflow_ext import NoiseKey
from diffflow_ext.engines import CapturedStep
net, x0 = torch.nn.Linear(2, 2).cuda(), torch.ones(3, 2, device="cuda")
def loss(x0, grid, key):
    return net(x0).square().mean() * float(x0.sum())
step = CapturedStep(loss, net, torch.optim.Adam(net.parameters()), NoiseKey(0), warm_up=1)
first = step.step(x0).loss
before = torch.cuda.current_stream()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    second = step.step(x0).loss
assert torch.cuda.current_stream() == before
assert second < first and step.num_captures == 0
print(*(one.message for one in caught))
"""


def test_a_loss_that_reads_values_goes_on_without_a_graph() -> None:
    """In a process of its own: a capture that fails may leave the device unusable."""
    run = subprocess.run(
        [sys.executable, "-c", READS], capture_output=True, text=True, check=False
    )
    assert "the step cannot be captured" in run.stdout, run.stderr


def test_a_grid_that_was_used_before_can_be_captured_by_hand() -> None:
    sde, grid, x0 = perceptrons(), TimeGrid.power(5, t_end=1.0), points(0)
    key = KEY.to_tensor(CUDA)
    fresh = torch.cuda.CUDAGraph()
    for p in sde.parameters():
        p.grad = None
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = sde.mean_loss(x0, grid, key)
        expected.backward()
    torch.cuda.current_stream().wait_stream(side)
    sde.zero_grad(set_to_none=True)
    with torch.cuda.graph(fresh):
        loss = sde.mean_loss(x0, grid, key)
        loss.backward()
    fresh.replay()
    torch.cuda.synchronize()
    assert far(loss.detach().cpu(), expected.detach().cpu()) < 1e-6
