"""Training: one configuration in, a run directory out, and what to do with it afterwards."""

from .config.fields import TrainConfig
from .evaluation.evaluate import evaluate
from .evaluation.loaded_run import LoadedRun, load_run
from .evaluation.report import format_table
from .evaluation.sampling import draw_samples
from .loop.train import train
from .loop.trainer import Interrupted, TrainingError, TrainResult
from .store.checkpoint import Checkpoint, CheckpointError
from .store.dataset import DatasetRecord

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
