"""The data of a run, also where they have moved."""

from __future__ import annotations

import os
import warnings
from typing import Annotated, Any

import torch
from torch import Tensor

from diffflow_ext.data import Dataset, Rows, describe_sets, open_rows

from ..config.rules import checked, whole
from ..store.dataset import open_data
from .loaded_run import LoadedRun
from .sampling import MAX_SAMPLES, draw


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
            "data: expected the data of the run, which does not name them: they were in memory"
            " when it was trained, or it was shared; give them again (data=..., or --data PATH)"
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
            f"{error}. The run's own `key`, `drop_columns`, `columns` and `missing` were used:"
            " name the data of the run"
        ) from error
    run.record.require(dataset)
    return dataset


def samples_like_test(run: LoadedRun, dataset: Dataset, n: int, **options: Any) -> Tensor:
    """Returns samples in the units of training, given the conditions of the test data in turn."""
    checked("sample", "n", n, Annotated[int, whole(1, MAX_SAMPLES)])
    given = dataset.given_of("test")
    rows = None if given is None else given[torch.arange(n) % len(given)]
    return draw(run.recipe.given(rows), n, **options)


def rows_of_run(
    run: LoadedRun,
    path: str,
    key: str | None = None,
    *,
    conditions: bool = True,
    gaps: bool = False,
) -> Rows:
    """Returns the rows, or images, in a file: those to which a run is applied; see `open_rows`.

    Rows have the columns of the run's conditions too, and images their classes, unless
    `conditions` says that they are given otherwise. With `gaps` any value may be missing.
    """
    config, encoding = run.config.data, run.record.encoding
    own = run.record.conditions if conditions else None
    texts = encoding.texts if encoding is not None else ()
    names = run.record.columns
    if own is not None and own.columns:
        names, texts = names + own.names, texts + own.texts
    gaps = gaps or (encoding is not None and any(column.missing for column in encoding.columns))
    labelled = own is not None and own.num_classes > 0 and not names
    try:
        return open_rows(
            path, names, image_size=config.image_size, key=key,
            drop_columns=config.drop_columns or (), texts=texts, gaps=gaps, labelled=labelled,
        )  # fmt: skip
    except ValueError as error:
        if not labelled:
            raise
        raise ValueError(
            f"{error}. The run is conditioned on {own and own.describe()}: if images have no"
            " class, name one for all (--given label=...)"
        ) from error


def warn_of_doubts(path: str, rows: Rows) -> None:
    """Warns of what may have been meant otherwise in a file."""
    for doubt in rows.doubts:
        warnings.warn(f"{path}: {doubt}", stacklevel=3)


def is_gone(data: str) -> bool:
    """Returns whether data of a run are a path that doesn't exist any more."""
    return os.path.isabs(data) and data not in describe_sets() and not os.path.exists(data)
