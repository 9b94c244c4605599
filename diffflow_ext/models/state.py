"""What a model is besides its weights, kept in its state dict.

A diffusion coefficient, a schedule or a cutoff is a number of the constructor. With other numbers
the same weights are another model, so a state dict has them too, and loading compares them.
"""

from __future__ import annotations

import numbers
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from diffflow_ext.flows.prior import StandardNormal
from diffflow_ext.functional.checks import in_words
from diffflow_ext.processes.diffusion import GeometricDiffusion

#: Relative difference of constants that counts as rounding.
_ROUNDING = 1e-6


class StatefulModel(nn.Module):
    """A module whose state dict holds constants, which loading compares with its own.

    State dicts of earlier versions have none and load as before.
    """

    #: Tensors that the model depends on and that may belong to no module.
    extra_params: tuple[Tensor, ...] = ()

    def __repr__(self) -> str:
        """Returns its networks by their classes; `repr` of one shows its layers."""
        parts = [f"{name}={type(child).__name__}" for name, child in self.named_children()]
        known = [p for p in self.parameters() if not isinstance(p, UninitializedParameter)]
        parts.append(f"{sum(p.numel() for p in known):,} parameters")
        return f"{type(self).__name__}({', '.join(parts)})"

    def constants(self) -> dict[str, Tensor]:
        """Returns the constants by their names in the state dict, float64 on the CPU."""
        return {}

    def extra_tensors(self) -> list[Tensor]:
        """Returns leaves of no module, which the state dict holds as "params.0" and so on."""
        known = {id(p) for p in (*self.parameters(), *self.buffers())}
        return [p for p in self.extra_params if p.is_leaf and id(p) not in known]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, value in self.constants().items():
            destination[prefix + name] = value
        for i, tensor in enumerate(self.extra_tensors()):
            destination[f"{prefix}params.{i}"] = tensor if keep_vars else tensor.detach()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        for name, own in self.constants().items():
            given = state_dict.pop(prefix + name, None)
            if given is not None and not _same(own, given):
                error_msgs.append(_differ(prefix + name, own, given))
        for i, tensor in enumerate(self.extra_tensors()):
            _load(f"{prefix}params.{i}", tensor, state_dict, error_msgs)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def constant(value: float) -> Tensor:
    """Returns a number as a constant of a state dict."""
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def diffusion_constants(diffusion: object) -> dict[str, Tensor]:
    """Returns the numbers of a diffusion coefficient that are no buffers."""
    if isinstance(diffusion, numbers.Real):
        return {"diffusion": constant(float(diffusion))}
    if isinstance(diffusion, GeometricDiffusion):
        return {"diffusion.t_end": constant(diffusion.t_end)}
    return {}


def prior_constants(prior: object) -> dict[str, Tensor]:
    """Returns the scale of a Gaussian prior."""
    return {"prior.scale": constant(prior.scale)} if isinstance(prior, StandardNormal) else {}


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Returns a state dict without constants, for files that have them elsewhere."""
    state = module.state_dict()
    known = module.constants() if isinstance(module, StatefulModel) else {}
    return {name: value for name, value in state.items() if name not in known}


def _same(own: Tensor, given: object) -> bool:
    if not isinstance(given, Tensor) or given.shape != own.shape:
        return False
    eps = torch.finfo(given.dtype).eps if given.is_floating_point() else 0.0
    rounding = max(_ROUNDING, 2 * eps)  # It may have been saved in 16 bits.
    return torch.allclose(given.detach().cpu().double(), own, rtol=rounding, atol=0.0)


def _differ(name: str, own: Tensor, given: object) -> str:
    def shown(value: object) -> str:
        single = isinstance(value, Tensor) and value.numel() == 1
        return f"{float(value):g}" if single else in_words(value)  # pyright: ignore

    return (
        f"{name}: expected that of this model, {shown(own)}, got {shown(given)}"
        f"{'' if own.numel() == 1 else ' with other values'}; build the model with the arguments "
        f"of the saved one, or delete the entry {name!r} from the state"
    )


def _load(name: str, tensor: Tensor, state: dict[str, Any], error_msgs: list[str]) -> None:
    """Copies an entry of a state into a tensor, and removes it from the state."""
    given = state.pop(name, None)
    if given is None:
        warnings.warn(
            f"load_state_dict: expected {name}, one of `params`, got a state without it, as saved "
            "by earlier versions; the tensor keeps its value",
            stacklevel=2,
        )
    elif not isinstance(given, Tensor) or given.shape != tensor.shape:
        error_msgs.append(f"{name}: expected {in_words(tensor)}, got {in_words(given)}")
    else:
        with torch.no_grad():
            tensor.copy_(given)
