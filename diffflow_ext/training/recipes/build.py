"""The recipe of each model."""

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
    """Returns the recipe of a resolved configuration, with an untrained model from its seed."""
    return RECIPES[config.name](config, event_shape)
