"""State dicts: constants, tensors of no module, and states of earlier versions."""

from __future__ import annotations

import io
import warnings
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from diffflow_ext import DDPM, NFDM, DiffFlowSDE, DiNof, GeometricDiffusion, NoiseKey, TimeGrid
from diffflow_ext.flows import StandardNormal
from diffflow_ext.models.state import weights
from diffflow_ext.nets import FourierMLP
from diffflow_ext.processes import VP, LogSNR

KEY, GRID = NoiseKey(0), TimeGrid.power(4, 0.5)


def net() -> FourierMLP:
    return FourierMLP(2, 8, 1)


def sde(g: Any, **options: Any) -> DiffFlowSDE:
    return DiffFlowSDE(net(), net(), g, **options)


#: A model, one with other constants, and the entry that tells them apart.
PAIRS: dict[str, tuple[Any, Any, str]] = {
    "g": (lambda: sde(0.2), lambda: sde(0.7), "diffusion"),
    "time of g": (
        lambda: sde(GeometricDiffusion(0.1, 1.0, 0.05)),
        lambda: sde(GeometricDiffusion(0.1, 1.0)),
        "diffusion.t_end",
    ),
    "prior": (
        lambda: sde(1.0, prior=StandardNormal(2.0)),
        lambda: sde(1.0, prior=StandardNormal(3.0)),
        "prior.scale",
    ),
    "schedule": (lambda: DDPM(net()), lambda: DDPM(net(), "cosine"), "betas"),
    "length": (lambda: DDPM(net()), lambda: DDPM(net(), num_timesteps=50), "betas"),
    "process": (lambda: DiNof(net()), lambda: DiNof(net(), process="subvp"), "process"),
    "rates": (lambda: DiNof(net()), lambda: DiNof(net(), process=VP(0.1, 10.0)), "process"),
    "cutoff": (lambda: DiNof(net()), lambda: DiNof(net(), t_cutoff=0.8), "t_cutoff"),
    "flow": (lambda: DiNof(net()), lambda: DiNof(net(), StandardNormal(2.0)), "prior.scale"),
    "noise at the data": (
        lambda: NFDM(net()),
        lambda: NFDM(net(), process=LogSNR(11.0)),
        "log_snr",
    ),
    "noise at the end": (
        lambda: NFDM(net(), nn.Linear(2, 4)),
        lambda: NFDM(net(), nn.Linear(2, 4), LogSNR(end=-4.0)),
        "log_snr",
    ),
}


def through_torch(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


#: Ways of states from one model to another.
WAYS: dict[str, Any] = {
    "itself": lambda state: state,
    "torch.save": through_torch,
    "safetensors": lambda state: load(save(dict(state))),
    "float32": lambda state: {name: value.float() for name, value in state.items()},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(("make", "other", "entry"), PAIRS.values(), ids=PAIRS)
def test_weights_of_another_model_are_refused(make: Any, other: Any, entry: str, way: Any) -> None:
    state = way(make().state_dict())
    assert str(make().load_state_dict(state)) == "<All keys matched successfully>"
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=rf"\t{entry}: expected that of this model, "):
            other().load_state_dict(state, strict=strict)
    # Within another module, too, and with the way out that the message names.
    with pytest.raises(RuntimeError, match=rf"0\.{entry}: expected that of this model, "):
        nn.Sequential(other()).load_state_dict(
            way({f"0.{name}": value for name, value in make().state_dict().items()})
        )
    del state[entry]
    assert not other().load_state_dict(state).missing_keys


@pytest.mark.parametrize("make", [pair[0] for pair in PAIRS.values()], ids=PAIRS)
def test_states_without_constants_load_as_before(make: Any) -> None:
    """Those of earlier versions, and of checkpoints, whose configuration has the constants."""
    model, loaded = make(), make()
    old = weights(model)
    assert old.keys() == {n for n, _ in (*model.named_parameters(), *model.named_buffers())}
    assert str(loaded.load_state_dict(old)) == "<All keys matched successfully>"
    for name, value in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), value)


def test_a_sampler_may_end_earlier_than_that_of_training() -> None:
    DiNof(net(), t_min=1e-2).load_state_dict(DiNof(net()).state_dict())


def closure(w: Tensor) -> DiffFlowSDE:
    return DiffFlowSDE(lambda t, x: x @ w, lambda t, x: -x, params=[w])


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_tensors_of_no_module_are_part_of_the_state(way: Any) -> None:
    w, other = (torch.randn(2, 2, requires_grad=True) for _ in range(2))
    model, loaded, x = closure(w), closure(other), torch.randn(5, 2)
    loaded.load_state_dict(way(model.state_dict()))
    assert torch.equal(loaded.loss(x, GRID, KEY), model.loss(x, GRID, KEY))
    with pytest.raises(RuntimeError, match=r"params\.0: expected a tensor of shape \(3, 3\), got"):
        closure(torch.zeros(3, 3, requires_grad=True)).load_state_dict(way(model.state_dict()))
    with pytest.warns(UserWarning, match=r"expected params\.0, one of `params`, got a state with"):
        loaded.load_state_dict({})


def test_tensors_of_a_module_are_saved_once() -> None:
    """And a tensor that is computed from others is not: it would not follow them."""
    drift, w = net(), torch.randn(2, 2, requires_grad=True)
    model = DiffFlowSDE(drift, net(), params=[*drift.parameters(), w * 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict(model.state_dict())
    assert not any(name.startswith("params") for name in model.state_dict())
    assert load(save(model.state_dict())).keys() == model.state_dict().keys()


def test_a_model_is_shown_in_a_line() -> None:
    assert repr(sde(0.2)) == (
        f"DiffFlowSDE(drift=FourierMLP, score=FourierMLP, {2 * numbers_of(net()):,} parameters)"
    )
    lazy = DDPM(nn.LazyLinear(2))
    assert repr(lazy) == "DDPM(eps_net=LazyLinear, 0 parameters)"


def numbers_of(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
