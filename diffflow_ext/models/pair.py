"""The parts of a pair of SDEs as a module: what is built from them for engines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from diffflow_ext.engines.choice import Engine
from diffflow_ext.engines.conditions import guided
from diffflow_ext.engines.network import Network
from diffflow_ext.engines.paths import PathEngine, path_engine
from diffflow_ext.engines.problem import (
    PathModel,
    PathProblem,
    build_problem,
    check_networks,
    checked_params,
)
from diffflow_ext.flows.prior import as_prior
from diffflow_ext.functional.contexts import Context
from diffflow_ext.functional.noise import Key
from diffflow_ext.processes.diffusion import Diffusion
from diffflow_ext.processes.grids import TimeGrid

from .state import StatefulModel, diffusion_constants, prior_constants


class NetworkPair(StatefulModel):
    """A drift, a score, a coefficient and a prior; see :class:`DiffFlowSDE`."""

    def __init__(
        self,
        drift: Network,
        score: Network,
        diffusion: Diffusion = 1.0,
        *,
        params: Iterable[Tensor] = (),
        prior: object = None,
        scores_per_call: int = 1,
    ) -> None:
        super().__init__()
        check_networks("DiffFlowSDE", drift, score)
        self.drift: Any = drift
        self.score: Any = score
        self.diffusion: Any = diffusion
        # None is N(0, I), which the kernels compute themselves.
        self.prior: Any = None if prior is None else as_prior(prior)
        self.extra_params = checked_params("DiffFlowSDE", params)
        self.scores_per_call = scores_per_call

    def constants(self) -> dict[str, Tensor]:
        """Returns the diffusion's numbers and the prior's, which are no weights."""
        return {**diffusion_constants(self.diffusion), **prior_constants(self.prior)}

    def network_parameters(self) -> list[Tensor]:
        """Returns the tensors that get gradients through drift, score and prior."""
        nets = (self.drift, self.score, self.prior)
        modules = [net for net in nets if isinstance(net, nn.Module)]
        return [p for net in modules for p in net.parameters()] + list(self.extra_params)

    def _problem(
        self,
        op: str,
        x0: Tensor,
        grid: TimeGrid,
        key: Key | None = None,
        context: Context | None = None,
        guidance: float = 1.0,
        **options: Any,
    ) -> tuple[PathProblem, Tensor]:
        params = self.network_parameters()
        score = guided(f"DiffFlowSDE.{op}", "score", self.score, context, guidance)
        model = PathModel(self.drift, score, self.diffusion, params, self.prior, context)
        options = {"key": key, "scores_per_call": self.scores_per_call, **options}
        return build_problem(f"DiffFlowSDE.{op}", model, x0, grid, **options)

    def _engine(
        self, op: str, x0: Tensor, *args: Any, engine: Engine = "auto", **options: Any
    ) -> tuple[PathEngine, Tensor]:
        problem, x0 = self._problem(op, x0, *args, **options)
        return path_engine(f"DiffFlowSDE.{op}", engine, problem, x0), x0
