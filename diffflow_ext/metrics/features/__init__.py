"""Features of images, for measures of sample quality that pixels serve badly.

An `Extractor` is a fixed network with a name and a hash of its weights. Scores of different
extractors can't be compared, so a score is printed with `Extractor.label`, as in
``FD(classifier-28x28@1f0c2ab34d56, n=10000)``. FID is the distance in features of one particular
Inception network. Its weights aren't part of this package, nor is that network: who has both
gives the network as `Extractor(module, "inception")` after `load_weights`, or gives statistics
(`sample_quality.load_statistics`) or features (`load_features`) that another tool has written.
Without, train an extractor on labelled images (`train_extractor`) or take principal components
(`pca_extractor`), which see coarse differences only.

Files are never executed: weights are read from safetensors, or by torch.load with
weights_only=True. TorchScript archives hold code and are refused.
"""

from .digits import DigitClassifier, DigitExtractor, train_extractor
from .extractor import Extractor, pca_extractor, quantise
from .files import load_extractor, load_features, load_weights, save_extractor

__all__ = [
    "DigitClassifier",
    "DigitExtractor",
    "Extractor",
    "load_extractor",
    "load_features",
    "load_weights",
    "pca_extractor",
    "quantise",
    "save_extractor",
    "train_extractor",
]
