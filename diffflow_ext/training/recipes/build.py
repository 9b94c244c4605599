"""One recipe for each model: how a run trains, samples and scores it."""

from __future__ import annotations

from typing import Any

from ..config.fields import Config
from .base import Recipe
from .ddpm import DDPMRecipe
from .diffflow import DiffFlowRecipe
from .dinof import DiNofRecipe
from .flows import FFJORDRecipe, FlowRecipe

RECIPES: dict[str, type[Recipe[Any, Any]]] = {
    "diffflow": DiffFlowRecipe,
    "dinof": DiNofRecipe,
    "ddpm": DDPMRecipe,
    "ffjord": FFJORDRecipe,
    "flow": FlowRecipe,
}


def build_recipe(config: Config, event_shape: tuple[int, ...]) -> Recipe[Any, Any]:
    """Returns the recipe of a configuration with an untrained model, made from the seed alone.

    Arguments:
        config: The configuration, resolved for the data.
        event_shape: The shape of a sample.

    Raises:
        ValueError: If the model doesn't suit the data.
        ImportError: If it needs a package that is missing.
    """
    return RECIPES[config.name](config, event_shape)
