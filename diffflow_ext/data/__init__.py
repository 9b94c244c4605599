"""Data to train and test on: two-dimensional sets, tables, images, splits and batch order."""

from .dataset import Dataset, batch_indices, split_images, split_table
from .fetching import FETCHABLE, FetchError, fetch
from .formats.idx import read_idx
from .formats.resizing import resize_images
from .formats.tables import Table, read_rows, read_table
from .rows import Rows, open_rows
from .sets.home import data_home
from .sets.magic import magic_telescope
from .sets.toy import TOY_SETS, sample_toy, toy_entropy, toy_log_density, toy_name
from .sources import describe_sets, open_dataset

__all__ = [
    "FETCHABLE",
    "TOY_SETS",
    "Dataset",
    "FetchError",
    "Rows",
    "Table",
    "batch_indices",
    "data_home",
    "describe_sets",
    "fetch",
    "magic_telescope",
    "open_dataset",
    "open_rows",
    "read_idx",
    "read_rows",
    "read_table",
    "resize_images",
    "sample_toy",
    "split_images",
    "split_table",
    "toy_entropy",
    "toy_log_density",
    "toy_name",
]
