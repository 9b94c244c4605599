"""Features of images, for measures of sample quality that pixels serve badly.

An `Extractor` is a fixed network with a name and a hash of its weights. Scores of different
extractors can't be compared, so a score is printed with `Extractor.label`, as in
``FD(classifier-28x28@1f0c2ab34d56, n=10000)``. `train_extractor` trains one on labelled images,
without any download. FID is the distance in features of one particular network: `metrics.fid`.
"""

from .digits import DigitClassifier, DigitExtractor, train_extractor
from .extractor import Extractor
from .files import load_extractor, save_extractor

__all__ = [
    "DigitClassifier",
    "DigitExtractor",
    "Extractor",
    "load_extractor",
    "save_extractor",
    "train_extractor",
]
