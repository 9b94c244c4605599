"""Readers of what the loggers write, by their own packages: series of (step, value), settings."""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

Series = dict[str, list[tuple[int, float]]]
Settings = dict[str, Any]
#: In what files of LevelDB's log format are made of.
BLOCK = 32768


def tensorboard_series(run: Path) -> tuple[Series, Settings]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    series = {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }
    content = events.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    return series, {
        name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()
    }


def wandb_series(folder: Path) -> tuple[Series, Settings]:
    """Reads all offline sessions of the one run in a folder, in their order."""
    import wandb

    wandb.teardown()  # Ends the process that writes, which may go on after the end of a run.
    series, settings = defaultdict[str, list[tuple[int, float]]](list), dict[str, Any]()
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len({file.name for file in files}) == 1
    for record in (record for file in files for record in wandb_records(file)):
        updates = [*record.run.config.update, *record.config.update]
        settings |= {
            item.key or item.nested_key[0]: json.loads(item.value_json) for item in updates
        }
        if record.WhichOneof("record_type") == "history":
            items = {
                i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item
            }
            for name, value in items.items():
                if not name.startswith("_"):
                    series[name].append((record.history.step.num, value))
    return dict(series), settings


def wandb_records(file: Path) -> list[Any]:
    """Returns the records of a file: a head of 7 bytes, then LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, records, part = file.read_bytes(), 7, list[Any](), b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        part += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # Whole, or the last part.
            records.append(Record.FromString(part))
            part = b""
    return records


def mlflow_series(run_id: str) -> tuple[Series, Settings]:
    from mlflow import MlflowClient

    client = MlflowClient()
    run = client.get_run(run_id)
    series = {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]
        for name in run.data.metrics
    }
    return series, {**run.data.params, "status": run.info.status}
