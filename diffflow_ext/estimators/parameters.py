"""From parameters of an estimator to the configuration of a run, and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from numbers import Integral
from typing import Any

import numpy as np

from diffflow_ext.functional.checks import in_words
from diffflow_ext.training.config.defaults import resolve
from diffflow_ext.training.config.fields import Config, configure
from diffflow_ext.training.config.sections import Data

#: Fields about where data lie; an estimator is given its data.
OF_DATA = frozenset(field.name for field in fields(Data)) - {"columns", "missing"}
#: Fields that a run has for itself: an estimator is trained in a folder that goes at the end.
OF_RUNS = frozenset({"seed", "log_to"})
#: Parameters that are no fields of a configuration.
OWN = frozenset({"options", "random_state", "verbose", "conditional"})


def plain(value: Any) -> Any:
    """Returns a NumPy number as one of Python: grids of parameters are made by NumPy."""
    return value.item() if isinstance(value, np.generic) else value


def seed_of(random_state: Any) -> int:
    """Returns the number itself, or a number drawn from a state; None is NumPy's global state."""
    # Imported here: the module of the estimators says which version is needed.
    from sklearn.utils import check_random_state

    if isinstance(random_state, Integral) and not isinstance(random_state, bool):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def configuration(model: str, parameters: Mapping[str, Any]) -> Config:
    """Returns the configuration that parameters of an estimator stand for.

    Raises:
        ValueError: If there is no such field in `options`, it is a parameter or about data, or a
            value isn't allowed.
        TypeError: If a value has the wrong type.
    """
    options = _options(parameters)
    given = {name: value for name, value in parameters.items() if name not in OWN} | options
    # Kinds that are found in the values may differ between folds, whose scores must compare.
    values = {"columns": "continuous", **{name: plain(value) for name, value in given.items()}}
    return configure(model, **values, seed=seed_of(parameters["random_state"]))


def _options(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields in `options`, none of which is a parameter or about data."""
    options = parameters["options"]
    options = {} if options is None else options
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise TypeError(
            f"fit: options={in_words(options)}: expected a mapping from names of fields of a"
            " configuration to values, such as {'warmup': 100}, or None"
        )
    mends = dict.fromkeys(OF_DATA, "choose rows and columns of X before")
    mends |= {name: f"set the parameter {name} itself" for name in parameters}
    mends |= {"seed": "set random_state", "condition": "set conditional=True and pass y to fit"}
    mends["log_to"] = "take training.train, whose runs `load` makes estimators of"
    for name in options:
        if name in mends:
            raise ValueError(
                f"fit: options has {name!r}: expected fields that are no parameters; {mends[name]}"
            )
    return dict(options)


def parameters_of(config: Config, names: Collection[str]) -> dict[str, Any]:
    """Returns parameters, out of `names`, that stand for the configuration of a run.

    Those with the default are left out. The values of fields that are no parameters are `options`.
    """
    usual = resolve(configure(config.name, columns="continuous"), is_image=False).values()
    changed = {
        name: value
        for name, value in config.values().items()
        if value not in (None, usual[name]) and name not in OF_DATA | OF_RUNS
    }
    options = {name: value for name, value in changed.items() if name not in names}
    own = {name: value for name, value in changed.items() if name in names}
    conditional = {"conditional": True} if config.data.condition is not None else {}
    return {**own, **conditional, "random_state": config.run.seed, "options": options or None}
