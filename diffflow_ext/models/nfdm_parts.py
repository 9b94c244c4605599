"""The parts of NFDM: its networks, its forward process and the coefficient of its reverse one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from diffflow_ext.engines.conditions import conditioned, guided
from diffflow_ext.engines.network import Network
from diffflow_ext.functional.checks import checked_finite, in_words
from diffflow_ext.functional.contexts import Context
from diffflow_ext.processes.linear import LogSNR

from .denoising import check_network, network_output
from .learned_forward import LearnedForward, per_sample
from .state import StatefulModel

#: Coefficients of the polynomial that log g^2 is learned with.
_VOLATILITY_TERMS = 4


class LearnedDiffusion(StatefulModel):
    """A network, a forward process and a coefficient; see :class:`NFDM`."""

    def __init__(
        self,
        net: Network,
        forward_net: Any = None,
        process: LogSNR | None = None,
        *,
        straightness: float = 0.0,
    ) -> None:
        super().__init__()
        check_network("NFDM", net, "net")
        process = LogSNR() if process is None else process
        if not isinstance(process, LogSNR):
            raise TypeError(f"NFDM: expected process as a LogSNR, got {in_words(process)}")
        self.net: Any = net
        self.process = process
        self.straightness = checked_finite("NFDM", "straightness", straightness)
        if self.straightness < 0:
            raise ValueError(f"NFDM: expected straightness >= 0, got {self.straightness}")
        self.forward_process = LearnedForward(forward_net, process)
        if forward_net is not None:
            like = next((p for p in self.parameters() if p.is_floating_point()), torch.empty(0))
            zeros = torch.zeros(_VOLATILITY_TERMS, dtype=like.dtype, device=like.device)
            self.volatility = nn.Parameter(zeros)

    def constants(self) -> dict[str, Tensor]:
        """Returns the logarithms of signal to noise at both ends."""
        ends = torch.tensor(
            [self.process.start, self.process.end], dtype=torch.float64, device="cpu"
        )
        return {"log_snr": ends}

    def squared_g(self, t: Tensor) -> Tensor:
        """Returns g(t)^2 of the reverse process, in squared data units per unit of time."""
        squared = self.process.diffusion(t).square()
        if self.forward_process.net is None:
            return squared
        exponent = torch.zeros_like(t)
        for factor in self.volatility.to(t.dtype).flip(0):
            exponent = exponent * t + factor
        return squared * exponent.exp()

    def prediction(self, t: Tensor, x: Tensor, *, op: str = "NFDM.prediction") -> Tensor:
        r"""Returns the predicted data :math:`\hat x_0(t, x) = \alpha x - \sigma v(t, x)`.

        The times t have shape () or (B,), x has (B, *event); `op` is the caller, for messages.
        """
        alpha, sigma = (per_sample(c(t), x) for c in (self.process.alpha, self.process.sigma))
        return alpha * x - sigma * network_output(op, self.net, t, x, "net").to(x.dtype)

    def _given(self, context: Context | None, guidance: float = 1.0) -> Any:
        """Returns the same model with networks that have a context, one row for each sample.

        Guidance is for samples.
        """
        net = guided("NFDM.sample", "net", self.net, context, guidance)
        if context is None:
            return self
        view = copy.copy(self)
        # Otherwise both would be changed.
        view.__dict__["_modules"] = dict(self._modules)
        view.net = conditioned(net, context)
        view.forward_process = self.forward_process.given(context)
        return view
