"""A report of a run: one page of HTML that needs nothing else.

Pictures are in its text, and it asks for nothing from the net, which a policy in its head forbids
to browsers. All texts of the run are escaped.
"""

from __future__ import annotations

import base64
import hashlib
import platform
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, StrictUndefined

from diffflow_ext.data import Dataset
from diffflow_ext.data.display import COLUMN_HEAD, MOST_ROWS, column_rows, dataset_facts, title_of
from diffflow_ext.functional.core import build_info

from ..config.defaults import changed_fields
from ..config.fields import SECTIONS
from ..store.checkpoint import Checkpoint
from ..store.directory import RunDirectory
from ..store.runs import read_run
from .curve import is_moderate
from .loaded_run import LoadedRun, run_of
from .report_pictures import (
    SHOWN_IMAGES,
    curve_of,
    densities_of,
    samples_pictures,
    slider_of,
    usable,
)
from .run_data import open_run_data, samples_like_test
from .table import read_evaluation, settings_of, table_notes, table_rows

SAMPLES = 5000


@dataclass(frozen=True)
class Field:
    """A field of a configuration, and what it would be by default if it's something else."""

    name: str
    value: str
    default: str | None


@dataclass(frozen=True)
class Evaluation:
    """The table of evaluation.json."""

    rows: list[tuple[str, str, str, str]]
    notes: list[str]
    settings: str
    package: str
    is_of_another_step: bool


def report_page(path: str | Path, data: Any = None, device: str = "auto") -> str:
    """Returns a report of a run as HTML.

    It has the configuration, the training curve, samples beside data, log p of test data, and the
    table of evaluation.json, if there is one. Samples and densities are computed; the folder of
    the run isn't changed.

    Arguments:
        path: The run directory.
        data: Where the data of the run are now, if they have moved; or the data themselves, of a
            run that was trained on data in memory.
        device: "auto", "cpu", "cuda" or "cuda:INDEX".

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
        ValueError: If there is no run, its data have changed, or they aren't there.
        CheckpointError: If it has no whole checkpoint.
    """
    checkpoint, directory = read_run(path), RunDirectory(path)
    run = replace(run_of(checkpoint, device, path), folder=directory.root.absolute())
    dataset = open_run_data(run, data)
    numbers, name = read_evaluation("report", directory), directory.root.resolve().name
    return _template().render(
        name=name,
        about=_about(run),
        facts=_facts(run, checkpoint),
        evaluation=None if numbers is None else _evaluation(numbers, run.step),
        evaluate=f"diffflow evaluate {shlex.quote(name)}",
        data=dataset_facts(dataset),
        columns=column_rows(dataset.encoding, dataset.conditions),
        column_head=COLUMN_HEAD,
        most_rows=MOST_ROWS,
        sections=_configuration(run, dataset),
        made=_made(run),
        **_pictures(run, dataset, numbers),
        **_style_and_script(),
    )


def _pictures(
    run: LoadedRun, dataset: Dataset, numbers: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Returns the pictures, and how many samples are left out of them."""
    # The curve comes first: it needs no samples, so a missing matplotlib is found at once.
    curve = curve_of(run, numbers)
    count = min(SHOWN_IMAGES, len(dataset.test)) if dataset.is_image else SAMPLES
    samples = samples_like_test(run, dataset, count, seed=0)
    finite = usable(dataset, samples)
    if not finite.any():
        raise ValueError(
            f"report: {run.folder}: expected finite samples, got none in {count}; train again"
            " with a lower learning_rate"
        )
    pictures, caption = samples_pictures(dataset, samples[finite])
    return {
        "curve": curve,
        "slider": slider_of(run, dataset),
        "samples": pictures,
        "samples_caption": caption,
        "left_out": int((~finite).sum()),
        "densities": densities_of(run, dataset, samples),
    }


def _style_and_script() -> dict[str, str]:
    """Returns both, and the digest by which a browser knows the script as ours."""
    script = _text("report.js")
    digest = hashlib.sha256(script.encode()).digest()
    return {
        "style": _text("report.css"),
        "script": script,
        "script_hash": base64.b64encode(digest).decode(),
    }


def _template() -> Any:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_text("report.html"))


def _text(name: str) -> str:
    return (resources.files(__package__ or "") / name).read_text(encoding="utf-8")


def _about(run: LoadedRun) -> str:
    """Returns what the model is."""
    return " ".join((type(run.config).__doc__ or "").split())


def _facts(run: LoadedRun, checkpoint: Checkpoint) -> dict[str, str]:
    """Returns what is known of the training, in words by names; what isn't known is left out."""
    steps, history = run.config.optimiser.steps, run.history()
    facts = {
        "model": run.config.name,
        "data": title_of(run.record.name),
        "steps": f"{run.step:,}" + ("" if run.step == steps else f" of {steps:,}"),
        "parameters": f"{run.parameters:,}",
    }
    if history and is_moderate(seconds := history[-1].get("elapsed")):
        facts["training"] = _duration(seconds)
    if package := checkpoint.meta.get("package"):
        facts["saved by"] = f"diffflow_ext {package}"
    return facts


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"


def _evaluation(numbers: Mapping[str, Any], step: int) -> Evaluation:
    return Evaluation(
        rows=table_rows(numbers),
        notes=table_notes(numbers),
        settings=settings_of(numbers),
        package=str(numbers["package"]),
        is_of_another_step=numbers["step"] != step,
    )


def _configuration(run: LoadedRun, dataset: Dataset) -> dict[str, list[Field]]:
    """Returns the fields that the run has read, by section, beside their defaults."""
    config, sections = run.config, dict[str, list[Field]]()
    changed = changed_fields(config, is_image=dataset.is_image, flip=dataset.flip)
    for section in SECTIONS:
        part, rows = getattr(config, section), list[Field]()
        for item in fields(part):
            value = getattr(part, item.name)
            if item.name == "data":
                value = title_of(value)
            if value is None or value == "":
                continue
            default = _spelt(changed[item.name]) if item.name in changed else None
            rows.append(Field(item.name, _spelt(value), default))
        if rows:
            sections[section] = rows
    return sections


def _spelt(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else "none" if value is None else str(value)


def _made(run: LoadedRun) -> str:
    """Returns the versions and the machine of the page; those of the training may be others."""
    device = next(run.model.parameters()).device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return (
        f"diffflow_ext {build_info()['version']}, torch {torch.__version__}, Python"
        f" {platform.python_version()}, {platform.system()}, {where}"
    )
