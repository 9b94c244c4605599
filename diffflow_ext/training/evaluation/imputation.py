r"""Missing values of rows, drawn from a model's distribution given the values that are there.

With the observed part :math:`o` of a row and the density :math:`p` of the model, candidates
:math:`m_c` for the missing part are drawn from a proposal :math:`q(m | o)` and have weights

.. math:: w_c \propto \frac{p(o, m_c)}{q(m_c | o)}

of which samples are drawn (sampling-importance-resampling, Rubin 1987). As the number of
candidates grows their distribution becomes :math:`p(m | o)`, whatever the proposal. This one is a
mixture of normals around the samples of the model that are nearest to the row in the observed
coordinates, and a wide normal. An observed value of a discrete column has many inputs: each
candidate has noise of its own, and its weight that of `data.encoding`. A value that is missing is
never drawn as missing, also where the model has learned gaps.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffflow_ext.data.column import cell_of, log_normal
from diffflow_ext.data.encoding import Encoding
from diffflow_ext.engines.ode.solver import EXACT_DIMENSIONS
from diffflow_ext.functional.noise import NoiseKey, normal

from ..parallel.progress import tracked
from ..recipes.base import Estimator, EvaluationSettings, Recipe
from .sampling import EVALUATION_STREAM, draw
from .scoring import pick_estimator

#: Candidates of a row, if nobody says how many.
CANDIDATES = 256
#: Samples of the model for the proposal, and those of them that are near a row.
POOL, NEAR = 10_000, 64
#: The share of the wide normal in the proposal, and its deviation in those of the pool.
WIDE, WIDTH = 0.1, 2.0
#: Rows and candidates whose distances and densities are computed at a time.
AT_A_TIME = 2**14
#: Effective candidates below which a row is named in a warning.
FEW = 5.0
NOISE_OF_ROWS = EVALUATION_STREAM + 1


@dataclass(frozen=True)
class Completed:
    """Rows with their missing values filled in.

    Attributes:
        inputs: Inputs of the model, float32, shape (n, rows, dim).
        effective: The effective number of candidates of each row, 1 / sum of squared weights.
    """

    inputs: Tensor
    effective: Tensor


def weighed(
    recipe: Recipe[Any, Any],
    encoding: Encoding | None,
    stored: Tensor,
    conditions: Tensor | None,
    n: int,
    candidates: int,
    seed: int,
) -> Tensor:
    """Returns copies of rows with values for those that are missing, (n, rows, columns), decoded.

    Arguments:
        recipe: The model.
        encoding: The encoding of its data, a table.
        stored: Rows as the encoding stores them, NaN where a value is missing.
        conditions: The conditions of the rows as the model stores them; None without.
        n: Copies.
        candidates: Candidates of a row.
        seed: The seed.

    Warns:
        UserWarning: If few candidates of a row count.

    Raises:
        ValueError: If no candidate of a row has a finite density, or densities are estimates.
    """
    assert encoding is not None
    gaps = stored.isnan().any(1)
    own = None if conditions is None else conditions[gaps]
    view = recipe.given(own, candidates)
    estimator = pick_estimator(view, None, EvaluationSettings())
    if encoding.dim > EXACT_DIMENSIONS and estimator.name == "ode":
        raise ValueError(
            f"impute: expected at most {EXACT_DIMENSIONS} coordinates, beyond which densities"
            f" of an ODE are random estimates, the run has {encoding.dim}; take the model flow"
        )
    copies = torch.zeros(n, *stored.shape, dtype=torch.float64)
    if not bool(gaps.any()):
        return copies
    of_pool = None if own is None else own[torch.arange(POOL) % len(own)]
    given = None
    if own is not None and of_pool is not None and recipe.conditions is not None:
        given = recipe.conditions.context(of_pool), recipe.conditions.context(own)
    pool = draw(recipe.given(of_pool), POOL, seed=seed)
    device = next(recipe.module.parameters()).device
    found = complete(encoding, estimator, pool, stored[gaps], n, candidates, seed, device, given)
    warn_of_few(found.effective)
    copies[:, gaps] = torch.stack([encoding.decoded(x) for x in found.inputs])
    return copies


def complete(
    encoding: Encoding,
    estimator: Estimator,
    pool: Tensor,
    stored: Tensor,
    n: int,
    candidates: int,
    seed: int,
    device: torch.device | str = "cpu",
    given: tuple[Tensor, Tensor] | None = None,
) -> Completed:
    """Draws n completions of each row.

    Arguments:
        encoding: The encoding of the run.
        estimator: A density of inputs, without noise of its own; candidate c of row i has the
            index i times `candidates` + c, by which its conditions are known.
        pool: Samples of the model, float32, shape (M, dim), on the CPU.
        stored: Rows as the encoding stores them, NaN where a value is missing.
        n: Completions of a row.
        candidates: Candidates of a row.
        seed: The seed; the noise of a row depends only on it and the row's index.
        device: Where the density is computed.
        given: Contexts of the pool and of the rows, float32, shapes (M, k) and (rows, k), in which
            samples that are near a row are near it too.

    Raises:
        ValueError: If no candidate of a row has a finite density.
    """
    size = max(1, AT_A_TIME // candidates)
    beside = given or (pool[:, :0], stored[:, :0])
    parts = list[Tensor]()
    effective = list[Tensor]()
    for start in tracked(range(0, len(stored), size), len(stored), "row"):
        rows = stored[start : start + size]
        key = NoiseKey(seed, stream=NOISE_OF_ROWS)
        noise = normal((len(rows), candidates, 2 * encoding.dim + 2), key, sample_offset=start)
        own = beside[0], beside[1][start : start + size]
        x, log_q, log_w = _candidates(encoding, pool, rows, noise, own)
        log_p = _densities(estimator, x.flatten(0, 1).to(device), key, start * candidates)
        log_p = log_p.reshape(log_q.shape)
        weights = _weights(log_p + log_w - log_q, start)
        draws = normal((len(rows), n, 1), key, step=1, sample_offset=start)[..., 0]
        places = torch.special.ndtr(draws.double())
        chosen = torch.searchsorted(weights.cumsum(1), places).clamp(max=candidates - 1)
        parts.append(torch.take_along_dim(x, chosen.unsqueeze(2), 1).transpose(0, 1))
        effective.append(1.0 / weights.square().sum(1))
    return Completed(torch.cat(parts, dim=1), torch.cat(effective))


def warn_of_few(effective: Tensor) -> None:
    """Warns of rows of which few candidates count."""
    few = int((effective < FEW).sum())
    if few:
        warnings.warn(
            f"impute: in {few} of {len(effective)} rows fewer than {FEW:g} candidates count, in "
            f"one {float(effective.min()):.1f}; their samples repeat: give more candidates",
            stacklevel=4,
        )


def _densities(estimator: Estimator, x: Tensor, key: NoiseKey, offset: int) -> Tensor:
    with torch.no_grad():
        parts = [
            estimator.log_prob(x[i : i + 2048], key, offset + i).double().cpu()
            for i in range(0, len(x), 2048)
        ]
    return torch.cat(parts)


def _weights(logs: Tensor, start: int) -> Tensor:
    """Returns normalised weights (rows, K); a candidate without a finite density has none."""
    logs = torch.where(logs.isfinite(), logs, -math.inf)
    lost = logs.isinf().all(1)
    if lost.any():
        row = start + int(lost.nonzero()[0])
        raise ValueError(
            f"impute: expected candidates with a finite density, row {row} (counted from 0, of "
            "those with missing values) has none: it lies too far from what the model learned; "
            "leave it out, or give more candidates"
        )
    return torch.softmax(logs, dim=1)


def _candidates(
    encoding: Encoding,
    pool: Tensor,
    rows: Tensor,
    noise: Tensor,
    given: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns inputs (rows, K, dim), log q of their missing part, and weights of the observed."""
    count, candidates, _ = noise.shape
    dim = encoding.dim
    absent, missing = rows.isnan(), _missing(encoding, rows)
    # What stands for a missing value here is replaced below.
    filled = torch.where(absent, 0.0, rows)
    repeated = filled.repeat_interleave(candidates, 0)
    x = encoding.inputs(repeated, noise[..., :dim].reshape(-1, dim))
    # The weight of what is observed; the coordinate of a mask says that a value is present.
    weights = encoding.log_weights(repeated, x).reshape(count, candidates, dim)
    log_w = torch.where(missing.unsqueeze(1), 0.0, weights).sum(2)
    x = x.reshape(count, candidates, dim)
    center = encoding.inputs(filled, torch.zeros(count, dim))
    log_q = torch.zeros(count, candidates, dtype=torch.float64)
    for pattern in missing.unique(dim=0):
        own = (missing == pattern).all(1)
        if pattern.any():
            distance = _distances(pool, center[own], ~pattern, (given[0], given[1][own]))
            drawn = _propose(pool, distance, pattern, noise[own][..., dim:])
            x[own] = torch.where(pattern, drawn[0], x[own])
            log_q[own] = drawn[1]
    return x, log_q, log_w.masked_fill(draws_a_gap(encoding, x, missing), -math.inf)


def draws_a_gap(encoding: Encoding, x: Tensor, missing: Tensor) -> Tensor:
    """Returns which candidates (rows, K) have the category "missing" for a missing value."""
    found = torch.zeros(x.shape[:2], dtype=torch.bool)
    for i, column in enumerate(encoding.columns):
        if column.missing_index is not None:
            gap = cell_of(column.shares, x[..., i].double()) == column.missing_index
            found |= gap & missing[:, i, None]
    return found


def _missing(encoding: Encoding, rows: Tensor) -> Tensor:
    """Returns which inputs are missing; the coordinate of a mask is known: present."""
    masks = torch.zeros(len(rows), encoding.dim - len(encoding.columns), dtype=torch.bool)
    return torch.cat([rows.isnan(), masks], dim=1)


def _distances(pool: Tensor, center: Tensor, seen: Tensor, given: tuple[Tensor, Tensor]) -> Tensor:
    """Returns distances in seen coordinates and contexts between rows and the pool, (rows, M)."""
    rows = torch.cat([center[:, seen], given[1]], 1)
    return torch.cdist(rows, torch.cat([pool[:, seen], given[0]], 1))


def _propose(
    pool: Tensor, distance: Tensor, pattern: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns proposals (rows, K, dim) of the missing coordinates, and log q (rows, K)."""
    rows, candidates, _ = noise.shape
    dim, missing = len(pattern), int(pattern.sum())
    near = min(NEAR, len(pool))
    index = distance.topk(near, largest=False).indices
    means = pool[index][..., pattern].double()
    # Silverman's rule, and no less than a hundredth of the whole width.
    broad = WIDTH * pool[:, pattern].double().std(0)
    narrow = means.std(1) * near ** (-1.0 / (missing + 4))
    narrow = torch.maximum(narrow, 0.01 * broad)
    pick = torch.special.ndtr(noise[..., dim].double()) * near
    wide = torch.special.ndtr(noise[..., dim + 1].double()) < WIDE
    mean = torch.take_along_dim(means, pick.long().clamp(max=near - 1).unsqueeze(2), 1)
    steps = noise[..., :dim][..., pattern].double()
    middle = pool[:, pattern].double().mean(0)
    drawn = torch.where(
        wide.unsqueeze(2), middle + broad * steps, mean + narrow.unsqueeze(1) * steps
    )
    log_near = _log_normal(drawn.unsqueeze(2), means.unsqueeze(1), narrow[:, None, None])
    log_near = log_near.logsumexp(2) - math.log(near) + math.log1p(-WIDE)
    log_wide = _log_normal(drawn, middle, broad) + math.log(WIDE)
    full = torch.zeros(rows, candidates, dim)
    full[..., pattern] = drawn.float()
    return full, torch.logaddexp(log_near, log_wide)


def _log_normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Returns the log-density of independent normals, summed over the last dimension."""
    return (log_normal((x - mean) / std) - std.log()).sum(-1)
