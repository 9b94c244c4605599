"""Pictures of data, samples, paths and training.

Every function takes NumPy arrays and a path ending in .png, .pdf or .svg, writes the picture and
returns the path. Matplotlib is imported when the first picture is drawn, and only its
object-oriented interface is used: no window, no global figure, no change to the caller's style.
Data are blue and samples orange throughout; points that are followed in time keep one colour.
"""

from .images import image_grid, image_rows, metric_curves
from .panels import SUFFIXES
from .points import loss_curve, particle_paths, samples_beside_data, trajectories

__all__ = [
    "SUFFIXES",
    "image_grid",
    "image_rows",
    "loss_curve",
    "metric_curves",
    "particle_paths",
    "samples_beside_data",
    "trajectories",
]
