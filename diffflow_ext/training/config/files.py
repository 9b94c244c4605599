"""Configurations as TOML files with a table for each section; [model] has the model's name."""

from __future__ import annotations

import json
import sys
from collections.abc import Container, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffflow_ext.data.formats.reading import read_bytes
from diffflow_ext.data.kinds import parse_columns

from .fields import CONFIGS, SECTIONS, Config, configure

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]


#: Larger files are no configurations and are not read.
MAX_CONFIG_BYTES = 2**20
#: Fields for which "auto" or 0 was the default, now None, in files of earlier versions.
ONCE_AUTOMATIC = {
    "limit", "image_size", "flip", "batch_size", "learning_rate", "diffusion_start",
    "diffusion_end", "flow", "glow_levels", "net", "time_scale", "threads",
}  # fmt: skip
#: What networks of earlier versions had, which were without these fields.
ONCE = {"drift_scale": 1.0, "score_scale": 1.0, "prediction": "score"}


def to_toml(config: Config, names: Container[str] | None = None) -> str:
    """Returns a TOML text for `load_config`, with the given fields or all that the run reads."""
    tables = dict[str, dict[str, Any]]()
    for section in SECTIONS:
        values = {"name": config.name} if section == "model" else {}
        for name, value in asdict(getattr(config, section)).items():
            if value is not None and (names is None or name in names):
                values[name] = value
        tables[section] = values
    columns = tables["data"].pop("columns", "")
    tables["columns"] = {_spelt(name): kind for name, kind in parse_columns(columns).items()}
    parts = [
        f"[{section}]\n" + "".join(f"{name} = {_spelt(value)}\n" for name, value in values.items())
        for section, values in tables.items()
        if values
    ]
    return "\n".join(parts)


def load_config(path: str | Path) -> Config:
    """Returns the configuration in a TOML file, with defaults for missing fields.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it isn't a regular file of TOML, has no tables, as files of earlier
            versions, or has an unknown table or key, or a value that isn't allowed.
    """
    tables = _read_tables(Path(path))
    try:
        return _from_tables(tables)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def is_configuration(path: Path) -> bool:
    """Returns whether a file is one that a run writes, and not that of another program."""
    try:
        tables = _read_tables(path)
        named = "data" in tables and "name" in tables["model"]
        return named and bool(_from_tables(tables))
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return False


def _read_tables(path: Path) -> dict[str, Any]:
    hint = "name a TOML file with a configuration"
    data = read_bytes("train: config", path, MAX_CONFIG_BYTES, hint)
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a TOML file: {error}") from error


def to_record(config: Config) -> dict[str, Any]:
    """Returns the fields that a run reads, for its checkpoint."""
    values = {name: value for name, value in config.values().items() if value is not None}
    # Without it all columns are continuous: see `from_record`.
    return {"model": config.name, "columns": "", **values}


def from_record(record: Mapping[str, Any]) -> Config:
    """Returns the configuration of a checkpoint, also of earlier versions."""
    model = record.get("model", "diffflow")
    known = CONFIGS[model]().values() if model in CONFIGS else {}
    automatic = [name for name in ONCE_AUTOMATIC & {*record} if record[name] in (0, "auto")]
    values = {name: record[name] for name in record if name in known and name not in automatic}
    once = {name: value for name, value in ONCE.items() if name in known}
    if "columns" not in record:
        once["columns"] = "continuous"  # As in all tables of earlier versions.
    elif not record["columns"]:
        values.pop("columns", None)
    return configure(model, **once | _with_graph_choice(values))


def _with_graph_choice(values: dict[str, Any]) -> dict[str, Any]:
    """Returns values in which `cuda_graph`, true or false in earlier versions, is a word."""
    graph = values.get("cuda_graph")
    return values | {"cuda_graph": "on" if graph else "off"} if isinstance(graph, bool) else values


def _old_form(tables: dict[str, Any]) -> ValueError:
    """Returns the refusal of a file of an earlier version, with its new form."""
    config = from_record(tables)
    left_out = [name for name in tables if name not in {"model", *config.values()}]
    dropped = f", without {', '.join(left_out)}, which {config.name} has not" if left_out else ""
    return ValueError(
        "train: expected a table for each section, got the form of earlier versions; this file"
        f" in the new form{dropped}:\n\n{to_toml(config, tables)}"
    )


def _take_columns(tables: dict[str, Any]) -> None:
    """Moves the table [columns] into the field of [data]."""
    if kinds := tables.pop("columns", None):
        data = tables.setdefault("data", {})
        if "columns" in data:
            raise ValueError("train: expected a table [columns] or columns in [data], got both")
        data["columns"] = kinds


def _from_tables(tables: dict[str, Any]) -> Config:
    if not all(isinstance(value, dict) for value in tables.values()):
        known = {"model"}.union(*(kind().values() for kind in CONFIGS.values()))
        if known.isdisjoint(tables):
            raise ValueError(
                f"train: expected tables with the fields of a run, such as [data], got"
                f" {', '.join(map(repr, [*tables][:4]))}; name a configuration of diffflow"
            )
        raise _old_form(tables)
    _take_columns(tables)
    unknown = [name for name in tables if name not in SECTIONS]
    if unknown:
        raise ValueError(f"train: [{unknown[0]}]: expected one of {', '.join(SECTIONS)}")
    model = tables.get("model", {}).pop("name", "diffflow")
    plain = configure(model)
    for section, values in tables.items():
        own = asdict(getattr(plain, section))
        for name in values:
            if name in plain.values() and name not in own:
                right = next(s for s in SECTIONS if name in asdict(getattr(plain, s)))
                raise ValueError(f"train: {name}: expected in [{right}], got in [{section}]")
    flat = {name: value for values in tables.values() for name, value in values.items()}
    return plain.replaced(**_with_graph_choice(flat))


def _spelt(value: object) -> str:
    if isinstance(value, float):
        return repr(value)
    # JSON and TOML agree on these types, but TOML wants the delete character escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
