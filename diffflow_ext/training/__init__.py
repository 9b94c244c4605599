"""Training: one configuration in, a run directory out, and what to do with it afterwards."""

from __future__ import annotations

from diffflow_ext.training.checkpoint import Checkpoint, CheckpointError
from diffflow_ext.training.config import TrainConfig
from diffflow_ext.training.dataset_record import DatasetRecord
from diffflow_ext.training.evaluation import evaluate
from diffflow_ext.training.loaded_run import LoadedRun, load_run
from diffflow_ext.training.report import format_table
from diffflow_ext.training.sampling import draw_samples
from diffflow_ext.training.trainer import Interrupted, TrainingError, TrainResult, train

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "DatasetRecord",
    "Interrupted",
    "LoadedRun",
    "TrainConfig",
    "TrainResult",
    "TrainingError",
    "draw_samples",
    "evaluate",
    "format_table",
    "load_run",
    "train",
]
