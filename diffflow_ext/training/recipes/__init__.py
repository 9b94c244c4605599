"""One recipe for each model: how a run trains, samples and scores it."""

from __future__ import annotations

import importlib
from typing import Any

from .. import TrainConfig
from ..config.defaults import is_resolved
from .base import Estimator, EvaluationSettings, Part, Recipe

__all__ = ["Estimator", "EvaluationSettings", "Part", "Recipe", "build_recipe"]

# Modules by name: those of flows need packages that others do without.
_RECIPES = {
    "diffflow": ("diffflow", "DiffFlowRecipe"),
    "dinof": ("dinof", "DiNofRecipe"),
    "ddpm": ("ddpm", "DDPMRecipe"),
    "ffjord": ("flows", "FFJORDRecipe"),
    "flow": ("flows", "FlowRecipe"),
}


def build_recipe(config: TrainConfig, event_shape: tuple[int, ...]) -> Recipe[Any]:
    """Returns the recipe of a configuration with an untrained model, made from the seed alone.

    Arguments:
        config: The configuration, resolved for the data.
        event_shape: The shape of a sample.

    Raises:
        ValueError: If the model doesn't suit the data.
        ImportError: If it needs a package that is missing.
    """
    assert is_resolved(config), config
    module, name = _RECIPES[config.model]
    recipe: type[Recipe[Any]] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return recipe(config, event_shape)
