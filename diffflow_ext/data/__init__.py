"""Data to train and test on: two-dimensional sets, tables in files, splits and batch order."""

from .dataset import Dataset, batch_indices, open_dataset, split_table
from .tables import Table, magic_telescope, read_table
from .toy import TOY_SETS, sample_toy, toy_entropy, toy_log_density, toy_name

__all__ = [
    "TOY_SETS",
    "Dataset",
    "Table",
    "batch_indices",
    "magic_telescope",
    "open_dataset",
    "read_table",
    "sample_toy",
    "split_table",
    "toy_entropy",
    "toy_log_density",
    "toy_name",
]
