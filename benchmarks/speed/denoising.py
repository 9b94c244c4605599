"""What an update of NFDM costs beside one of DDPM, with as many parameters.

    python -m benchmarks.speed.denoising                 # two minutes on one thread

Loss and gradient of DDPM, of NFDM with a linear and with a learned forward process, and of that
with the penalty for curvature: perceptrons for points, U-Nets for images, these in float32 and
under autocast. Paired timing, one thread. Writes denoising_1.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from diffflow_ext import DDPM, NFDM
from diffflow_ext.training import configure
from diffflow_ext.training.config.defaults import resolve
from diffflow_ext.training.recipes.build import build_recipe

from ..common.reports import parse, parser, write_report
from .paired import paired
from .problem import Step

TITLES: Mapping[str, str] = MappingProxyType(
    {
        "ddpm": "DDPM",
        "linear": "NFDM, linear process",
        "learned": "NFDM, learned process",
        "straight": "NFDM, learned process, straightness",
    }
)
UNET = {"unet_mults": "1,2", "unet_blocks": 1, "unet_attention": "off"}
#: Event, batch, and the networks of DDPM and of a learned process.
SIZES: Mapping[str, tuple[tuple[int, ...], int, dict[str, Any], dict[str, Any]]] = (
    MappingProxyType(
        {
            "points": ((2,), 256, {"width": 122}, {"width": 112}),
            "images": ((1, 16, 16), 64, {**UNET, "unet_base": 22}, {**UNET, "unet_base": 20}),
        }
    )
)  # fmt: skip
ROUNDS = 15


def models(size: str) -> dict[str, DDPM | NFDM]:
    """DDPM and the models that are compared with it."""
    event, _, single, double = SIZES[size]
    fields: dict[str, dict[str, Any]] = {
        "ddpm": {"model": "ddpm", **single},
        "linear": {"model": "nfdm", "forward": "linear", **single},
        "learned": {"model": "nfdm", **double},
        "straight": {"model": "nfdm", "straightness": 1.0, **double},
    }
    return {
        name: build_recipe(resolve(configure(**own), is_image=len(event) == 3), event).module
        for name, own in fields.items()
    }


def update(model: nn.Module, x0: Tensor, *, bf16: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(x0)
    loss.backward()


def main(words: Sequence[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=ROUNDS)
    args = parse(made, words)
    torch.set_num_threads(1)
    cases: dict[str, Any] = {}
    for size, bf16 in (("points", False), ("images", False), ("images", True)):
        event, batch, *_ = SIZES[size]
        x0, each = torch.rand(batch, *event) * 2 - 1, models(size)
        steps: dict[str, Step] = {
            name: partial(update, model, x0, bf16=bf16) for name, model in each.items()
        }
        cases[f"{size}, {'bf16' if bf16 else 'float32'}"] = {
            "batch": batch,
            "parameters": {n: sum(p.numel() for p in m.parameters()) for n, m in each.items()},
            "variants": paired(steps, "ddpm", args.rounds),
        }
    write_report(args, "speed.denoising", "denoising_1", titles=dict(TITLES), cases=cases)


if __name__ == "__main__":
    main()
