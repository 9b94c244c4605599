"""What the calls of networks in one sweep share: time embeddings, and weights under autocast."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffflow_ext import DiffFlowSDE, NoiseKey, TimeGrid
from diffflow_ext.engines import autocast
from diffflow_ext.engines.network import embeds_time
from diffflow_ext.nets import FourierMLP, UNet

KEY = NoiseKey(3, 1)
GRID = TimeGrid.power(6, t_end=1.0)


def perceptron() -> FourierMLP:
    return FourierMLP(3, 16, 2)


def images() -> UNet:
    net = UNet(1, 8, base=8, mults=(1, 2), blocks=1, attention=(4,))
    nn.init.normal_(net.output.weight, std=0.1)
    return net


def result(
    nets: list[Any], x0: Tensor, params: list[Tensor], per: int = 1, **options: Any
) -> list[Tensor]:
    """The loss and all gradients."""
    sde = DiffFlowSDE(nets[0], nets[1], diffusion=0.5, params=params, scores_per_call=per)
    x0 = x0.clone().requires_grad_()
    loss = sde.mean_loss(x0, GRID, KEY, engine="autograd", **options)
    return [loss.detach(), *torch.autograd.grad(loss, [x0, *params])]


@pytest.mark.parametrize("per", [1, 4])
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize(("make", "shape"), [(perceptron, (5, 3)), (images, (2, 1, 8, 8))])
def test_times_embedded_at_once_are_those_of_each_call(
    make: Callable[[], nn.Module], shape: tuple[int, ...], every: int, per: int
) -> None:
    """A function in the place of the network hides that it embeds times."""
    torch.manual_seed(0)
    nets = [make().double() for _ in range(2)]
    hidden = [lambda t, x, net=net: net(t, x) for net in nets]
    x0, params = torch.randn(shape).double(), [p for net in nets for p in net.parameters()]
    assert all(map(embeds_time, nets))
    assert not any(map(embeds_time, hidden))
    own = result(nets, x0, params, per, checkpoint_every=every)
    for a, b in zip(own, result(hidden, x0, params, checkpoint_every=0), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("bf16", [False, True])
def test_states_that_are_simulated_again_have_the_same_bits(bf16: bool) -> None:
    nets, x0 = [perceptron() for _ in range(2)], torch.randn(65, 3)
    params = [p for net in nets for p in net.parameters()]
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        first, *others = (result(nets, x0, params, checkpoint_every=k) for k in (1, 2, 6))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_parts_of_an_embedding_may_be_frozen() -> None:
    nets = [perceptron() for _ in range(2)]
    for net in nets:
        for p in (*net.time_in.parameters(), *net.time_out.parameters(), net.phase):
            p.requires_grad_(False)
    nets[1].phase.requires_grad_(True)
    params = [p for net in nets for p in net.parameters() if p.requires_grad]
    hidden = [lambda t, x, net=net: net(t, x) for net in nets]
    x0 = torch.randn(5, 3)
    for a, b in zip(result(nets, x0, params), result(hidden, x0, params), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


class Twice(FourierMLP):
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return 2 * super().forward(t, x)


class Silent(FourierMLP):
    time_enters_by_embedding = False

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return 2 * super().forward(t, x)


class Louder(FourierMLP):
    def trunk(self, x: Tensor, embedding: Tensor) -> Tensor:
        return 3 * super().trunk(x, embedding)


def changed(change: Callable[[FourierMLP], object]) -> FourierMLP:
    net = perceptron()
    change(net)
    return net


@pytest.mark.parametrize(
    "net",
    [
        Twice(3, 16, 2),
        Louder(3, 16, 2),
        Silent(3, 16, 2),
        changed(lambda net: setattr(net, "forward", lambda t, x: x)),
        changed(lambda net: setattr(net, "embed", lambda t: t)),
        changed(lambda net: setattr(net, "time_enters_by_embedding", False)),
        changed(lambda net: setattr(net, "time_out", nn.BatchNorm1d(16))),
        changed(lambda net: net.register_forward_hook(lambda *given: None)),
        changed(lambda net: net.compile()),
        torch.compile(perceptron()),
        nn.Sequential(perceptron()),
    ],
    ids=[
        "forward",
        "trunk",
        "denied",
        "own forward",
        "own embed",
        "own flag",
        "statistics",
        "hook",
        "compile",
        "compiled",
        "within",
    ],
)
def test_networks_that_do_more_are_called_as_a_whole(net: nn.Module) -> None:
    assert not embeds_time(net)


def test_a_method_that_was_replaced_in_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = FourierMLP.forward
    monkeypatch.setattr(FourierMLP, "forward", lambda net, t, x: 2 * plain(net, t, x))
    assert not embeds_time(perceptron())


def test_an_embedding_that_draws_does_so_in_each_call() -> None:
    """As if the network had no parts: dropout is replayed, and gradients are those of a graph."""
    net = perceptron().double()
    net.time_in = nn.Sequential(net.time_in, nn.Dropout(0.5))  # pyright: ignore
    x0, params, found = torch.randn(5, 3).double(), list(net.parameters()), []
    whole: Any = net.__call__
    for nets in ([net, net], [whole, whole]):
        torch.manual_seed(0)
        found.append(result(nets, x0, params))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


class Claims(nn.Module):
    """Says that time enters by an embedding, which is not so."""

    time_enters_by_embedding = True

    def __init__(self, coupled: bool) -> None:
        super().__init__()
        self.coupled, self.inner = coupled, perceptron()

    def embed(self, t: Tensor) -> Tensor:
        e = self.inner.embed(t.reshape(-1))
        return e / e.norm() if self.coupled else e

    def trunk(self, x: Tensor, e: Tensor) -> Tensor:
        return self.inner.trunk(x, e)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        y = self.trunk(x, self.embed(t))
        return y if self.coupled else y * (1 + t)


@pytest.mark.parametrize("coupled", [False, True])
def test_a_claim_of_an_embedding_is_checked(coupled: bool) -> None:
    net, other = Claims(coupled), perceptron()
    params = [p for one in (net, other) for p in one.parameters()]
    for nets in ([net, other], [other, net]):
        with pytest.raises(RuntimeError, match=r"to be trunk\(x, embed\(t\)\), as its class says"):
            result(nets, torch.randn(65, 3), params)


def test_a_hook_on_all_modules_sees_each_call() -> None:
    remove = nn.modules.module.register_module_forward_hook(lambda *given: None)
    try:
        assert not embeds_time(perceptron())
    finally:
        remove.remove()
    assert embeds_time(perceptron())


# --- autocast ------------------------------------------------------------------------------------


class Count(TorchDispatchMode):
    """Counts operations that are kernels on a GPU."""

    #: They only describe memory.
    FREE = frozenset(
        "empty empty_like new_empty empty_strided detach view t transpose slice unbind expand "
        "alias select unsqueeze squeeze permute split _unsafe_view lift_fresh split_with_sizes "
        "_local_scalar_dense equal".split()
    )

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        #: Conversions, by the address of what is converted.
        self.converted: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.seen[name] += name not in self.FREE
        if name == "_to_copy":
            self.converted[args[0].data_ptr()] += 1
        return func(*args, **(kwargs or {}))


def counted(bf16: bool = False, per: int = 1, hide: bool = False) -> tuple[DiffFlowSDE, Count]:
    torch.manual_seed(0)
    nets: list[Any] = [FourierMLP(2), FourierMLP(2)]
    params = [p for net in nets for p in net.parameters()] if hide else []
    nets = [lambda t, x, net=net: net(t, x) for net in nets] if hide else nets
    sde = DiffFlowSDE(nets[0], nets[1], diffusion=0.5, scores_per_call=per, params=params)
    grid, x0 = TimeGrid.power(30, t_end=1.0), torch.randn(4, 2)

    def step() -> None:
        sde.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = sde.mean_loss(x0, grid, KEY, engine="autograd")
        loss.backward()

    step()
    with Count() as count:
        step()
    return sde, count


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"per": 30}], ids=str)
def test_operations_of_a_step_of_the_adjoint(options: dict[str, Any]) -> None:
    """On a GPU each is a launch; a function in the place of a network embeds in each call."""
    own, hidden = (counted(**options, hide=hide)[1].seen.total() for hide in (False, True))
    assert own < 0.75 * hidden


@pytest.mark.skipif(not autocast._CACHE_HAS_GRAPHS, reason="torch before 2.13 shares none")
def test_weights_are_converted_once_in_a_sweep() -> None:
    """Both sweeps evaluate the drift, one the score; a phase is no factor of a product."""
    sde, count = counted(bf16=True)
    for name, p in sde.named_parameters():
        expected = 0 if name.endswith("phase") else 2 if name.startswith("drift") else 1
        assert count.converted[p.data_ptr()] == expected, name


@pytest.mark.parametrize("sharing", ["loss", "outside"])
def test_gradients_under_autocast_do_not_depend_on_calls_before(sharing: str) -> None:
    """Weights that torch converted without gradients, in the same mode, are not taken."""
    net = perceptron()
    sde, x0, grads = DiffFlowSDE(net, net, diffusion=0.5), torch.randn(64, 3), []
    for before in (False, True):
        sde.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            if before:
                with torch.no_grad():
                    if sharing == "loss":
                        sde.mean_loss(x0, GRID, KEY, engine="autograd")
                    else:
                        net(GRID.times[1].float(), x0)
            loss = sde.mean_loss(x0, GRID, KEY, engine="autograd")
            loss.backward()
        grads.append([p.grad for p in net.parameters()])
    for a, b in zip(*grads, strict=True):
        assert a is not None
        assert torch.equal(a, b)
