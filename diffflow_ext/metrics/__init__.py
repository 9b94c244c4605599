"""How good samples are: whether they differ from data, in quality and in variety.

Every measure takes two samples, :math:`x` from the model and :math:`y` from the data, as rows:
table columns, or features of images (see `diffflow_ext.metrics.features`); `fid` alone takes
images. All depend on how many rows there are, so compare equal numbers, shuffled, and read each
beside its floor (`with_floor`).

| measure | sees | blind to |
| --- | --- | --- |
| `c2st` | any local difference | how large it is, once everything is told apart |
| `precision_recall` | quality and variety apart | what all nearest neighbours agree on |
| `frechet_distance` | means and covariances of features | everything else |
| `kernel_distance` | the same and third moments; unbiased | everything else |
"""

from .distances import energy_distance, gaussian_nll, kernel_distance, sliced_wasserstein
from .floor import WithFloor, with_floor
from .frechet import fid, frechet_distance
from .manifolds import PrecisionRecall, precision_recall
from .two_sample import TwoSampleTest, c2st

__all__ = [
    "PrecisionRecall",
    "TwoSampleTest",
    "WithFloor",
    "c2st",
    "energy_distance",
    "fid",
    "frechet_distance",
    "gaussian_nll",
    "kernel_distance",
    "precision_recall",
    "sliced_wasserstein",
    "with_floor",
]
