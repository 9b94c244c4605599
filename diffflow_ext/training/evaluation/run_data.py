"""The data of a run, also where they have moved."""

from __future__ import annotations

import os
from typing import Any

from diffflow_ext.data import Dataset, describe_sets

from ..store.dataset import open_data
from .loaded_run import LoadedRun


def open_run_data(run: LoadedRun, data: Any = None, *, warn: bool = True) -> Dataset:
    """Returns the data of a run, which are `data`, or lie there if that is a path.

    Raises:
        FileNotFoundError: If they aren't there.
        ValueError: If they aren't the data of the run: other columns, shapes or values.
    """
    config, rows = run.config, None
    if data is not None and not isinstance(data, (str, os.PathLike)):
        rows = data
    elif data is not None:
        config = config.replaced(data=os.fspath(data))
    elif not config.data.data:
        raise FileNotFoundError(
            "evaluate: expected the data of the run, which were in memory when it was trained;"
            " give them again (data=..., or --data PATH)"
        )
    elif is_gone(config.data.data):
        raise FileNotFoundError(
            f"{config.data.data!r}: expected the data of the run, found nothing; if they"
            " have moved, give their new path (--data PATH)"
        )
    try:
        dataset = open_data(config, rows, warn=warn)
    except (TypeError, ValueError) as error:
        if data is None:
            raise
        raise ValueError(
            f"{error}. The run's own `key` and `drop_columns` were used: name the data of the run"
        ) from error
    run.record.require(dataset)
    return dataset


def is_gone(data: str) -> bool:
    """Returns whether data of a run are a path that doesn't exist any more."""
    return os.path.isabs(data) and data not in describe_sets() and not os.path.exists(data)
