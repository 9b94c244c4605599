"""Callbacks that also write the lines of metrics.jsonl elsewhere: the field `log_to`."""

from __future__ import annotations

import importlib
import json
import os
import time
from pathlib import Path
from typing import Any, ClassVar

from ..config.fields import Config
from ..config.files import to_record
from ..store.directory import EVENTS_SUFFIX, RunDirectory, replace_text
from .callbacks import Callback


class TensorBoardLogger(Callback):
    """Writes events into RUN/tensorboard, which a resumed session goes on with.

    Readers drop what a killed session has logged after the step from which the next one goes on.
    """

    def __init__(self) -> None:
        self._module = _library("tensorboard", "torch.utils.tensorboard")

    def on_start(self, config: Config, out: Path, step: int) -> None:
        """Keeps what the first line needs: the folder may be cleared before."""
        self._folder, self._values, self._step = RunDirectory(out).events, to_record(config), step
        self._writer: Any = None

    def on_log(self, line: dict[str, float]) -> None:
        """Writes a scalar for each number."""
        step, numbers = _split(line)
        if self._writer is None:
            self._writer = self._opened(numbers)
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def _opened(self, numbers: dict[str, float]) -> Any:
        writer = self._module.SummaryWriter(
            str(self._folder), purge_step=self._step + 1, filename_suffix=EVENTS_SUFFIX
        )
        # SummaryWriter.add_hparams would make a second run, in a folder of its own.
        for summary in self._module.summary.hparams(self._values, numbers):
            writer.file_writer.add_summary(summary)
        return writer

    def on_end(self, error: BaseException | None) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()


class _Remembered(Callback):
    """A series in a service: RUN/log_to.json has its id and last step, for resumed sessions.

    Steps that are there and are taken again, after a kill or an error, aren't logged again.
    """

    name: ClassVar[str]
    _id: str | None
    #: The last step that the service has.
    _last: int

    def on_start(self, config: Config, out: Path, step: int) -> None:
        """Begins a series, or goes on with that of the run."""
        self._file, self._noted = RunDirectory(out).log_to, False
        self._series = _read(self._file) if step else {}
        known = self._series.get(self.name, {})
        self._id, self._last = known.get("id"), known.get("step", 0)
        self._open(out.resolve().name, to_record(config))

    def on_log(self, line: dict[str, float]) -> None:
        """Sends the numbers of a step that is new."""
        step, numbers = _split(line)
        if not self._noted:
            self._note()
        if step > self._last:
            self._send(step, numbers)
            self._last = step

    def on_end(self, error: BaseException | None) -> None:
        """Ends the session there; what it has logged is there for certain only then."""
        self._close(error)
        if self._noted:
            self._note()

    def _note(self) -> None:
        self._series[self.name] = {"id": self._id, "step": self._last}
        replace_text(self._file, json.dumps(self._series) + "\n")
        self._noted = True

    def _open(self, title: str, values: dict[str, Any]) -> None:
        """Goes on with the series of an id, or begins one and sets its id."""
        raise NotImplementedError

    def _send(self, step: int, numbers: dict[str, float]) -> None:
        raise NotImplementedError

    def _close(self, error: BaseException | None) -> None:
        raise NotImplementedError


class WandbLogger(_Remembered):
    """Sends lines to Weights & Biases, whose own variables such as WANDB_MODE are respected."""

    name = "wandb"

    def __init__(self) -> None:
        self._module = _library("wandb", "wandb")

    def _open(self, title: str, values: dict[str, Any]) -> None:
        self._run = self._module.init(
            project=os.environ.get("WANDB_PROJECT", "diffflow"),
            name=os.environ.get("WANDB_NAME", title),
            id=self._id,
            resume=None if self._id is None else "allow",
            # A run of the caller's own stays as it is, and so does the terminal.
            reinit="create_new",
            settings=self._module.Settings(console="off"),
        )
        self._run.config.update(values, allow_val_change=True)
        # What a killed session has sent; offline that is not known.
        self._id, self._last = self._run.id, max(self._last, self._run.starting_step - 1)

    def _send(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=step)

    def _close(self, error: BaseException | None) -> None:
        self._run.finish(exit_code=0 if error is None else 1)


class MLflowLogger(_Remembered):
    """Sends lines to MLflow, whose own variables such as MLFLOW_TRACKING_URI are respected."""

    name = "mlflow"

    def __init__(self) -> None:
        self._module = _library("mlflow", "mlflow")
        if "sql" in self._module.get_tracking_uri().partition(":")[0]:
            _library("mlflow", "sqlalchemy")

    def _open(self, title: str, values: dict[str, Any]) -> None:
        self._client = self._module.MlflowClient()
        if self._id is not None:
            self._client.update_run(self._id, status="RUNNING")
            history = self._client.get_metric_history(self._id, "elapsed")
            self._last = max((metric.step for metric in history), default=0)
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "diffflow")
        found = self._client.get_experiment_by_name(name)
        place = found.experiment_id if found else self._client.create_experiment(name)
        self._id = self._client.create_run(place, run_name=title).info.run_id
        parameter = self._module.entities.Param
        parameters = [parameter(name, str(value)) for name, value in values.items()]
        self._client.log_batch(self._id, params=parameters)

    def _send(self, step: int, numbers: dict[str, float]) -> None:
        now, metric = round(1000 * time.time()), self._module.entities.Metric
        metrics = [metric(name, value, now, step) for name, value in numbers.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def _close(self, error: BaseException | None) -> None:
        ended = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        self._client.set_terminated(self._id, "FINISHED" if error is None else ended)


#: The values of the field `log_to` but for "off".
LOGGERS: dict[str, type[Callback]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "mlflow": MLflowLogger,
}


def loggers_of(config: Config) -> list[Callback]:
    """Returns the logger that a configuration asks for, if any; ImportError if it isn't there."""
    kind = LOGGERS.get(config.run.log_to)
    return [] if kind is None else [kind()]


def _library(extra: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"train: log_to={extra!r}: expected its package to be installed, got: {error};"
            f" pip install 'diffflow_ext[{extra}]'",
            name=extra,
        ) from error


def _split(line: dict[str, float]) -> tuple[int, dict[str, float]]:
    """Returns the step of a line, and the other numbers."""
    numbers = dict(line)
    return int(numbers.pop("step")), numbers


def _read(path: Path) -> dict[str, Any]:
    """Returns what RUN/log_to.json has of each service, without what is missing or damaged."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    series = known.items() if isinstance(known, dict) else ()
    return {name: one for name, one in series if _is_series(one)}


def _is_series(one: object) -> bool:
    known = one if isinstance(one, dict) else {}
    return isinstance(known.get("id"), str) and type(known.get("step")) is int
