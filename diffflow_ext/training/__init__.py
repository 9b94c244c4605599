"""Training of a configuration into a run directory, and sampling and evaluation of runs."""

from .config.fields import (
    Config,
    DDPMConfig,
    DiffFlowConfig,
    DiNofConfig,
    FFJORDConfig,
    FlowConfig,
    NFDMConfig,
    configure,
)
from .config.files import load_config
from .evaluation.evaluate import evaluate
from .evaluation.loaded_run import LoadedRun, load_run
from .evaluation.pictures import film_of_paths, loss_figure, path_figure, sample_figure
from .evaluation.table import format_table
from .loop.callbacks import Callback, CallbackError
from .loop.session import Interrupted
from .loop.step import TrainingError
from .loop.train import train
from .loop.trainer import TrainResult
from .parallel.progress import show_progress
from .store.checkpoint import Checkpoint, CheckpointError
from .store.dataset import DatasetRecord

__all__ = [
    "Callback",
    "CallbackError",
    "Checkpoint",
    "CheckpointError",
    "Config",
    "DDPMConfig",
    "DatasetRecord",
    "DiNofConfig",
    "DiffFlowConfig",
    "FFJORDConfig",
    "FlowConfig",
    "Interrupted",
    "LoadedRun",
    "NFDMConfig",
    "TrainResult",
    "TrainingError",
    "configure",
    "evaluate",
    "film_of_paths",
    "format_table",
    "load_config",
    "load_run",
    "loss_figure",
    "path_figure",
    "sample_figure",
    "show_progress",
    "train",
]
