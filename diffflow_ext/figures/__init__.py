"""Pictures of data, samples, paths and training.

Functions take NumPy arrays and return a figure of matplotlib, which notebooks show and `save`
writes; `film` writes a film. Matplotlib is imported when the first picture is drawn, and only its
object-oriented interface is used: no window, no global figure or backend, no change to the
caller's style.
Data are blue and samples orange throughout; points that are followed in time keep one colour.

All raise `ModuleNotFoundError` if matplotlib is missing, and `ValueError` if shapes don't fit or
values are not finite.
"""

from .axes import Axis
from .images import image_grid, image_rows, metric_curves
from .panels import SUFFIXES, save
from .paths import FILMS, Paths, film, trajectories
from .points import loss_curve, samples_beside_data

__all__ = [
    "FILMS",
    "SUFFIXES",
    "Axis",
    "Paths",
    "film",
    "image_grid",
    "image_rows",
    "loss_curve",
    "metric_curves",
    "samples_beside_data",
    "save",
    "trajectories",
]
