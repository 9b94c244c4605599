"""Features of images, for measures of sample quality that pixels serve badly.

`train_extractor` trains a small classifier on labelled images, without any download, whose last
hidden layer serves as features. Scores of different extractors can't be compared, so a score is
printed with `DigitExtractor.label`, as in ``FD(classifier-28x28@1f0c2ab34d56, n=10000)``. FID is
the distance in features of one particular network: see `metrics.fid`.
"""

from .digits import DigitClassifier, DigitExtractor, train_extractor
from .files import load_extractor, save_extractor

__all__ = [
    "DigitClassifier",
    "DigitExtractor",
    "load_extractor",
    "save_extractor",
    "train_extractor",
]
