"""Networks that learn a few of their weights and predict the rest (Denil et al. 2013): docs/predict.md."""

from paramcompress.dictionaries.autoencoder import Autoencoder
from paramcompress.dictionaries.contract import Dictionary
from paramcompress.dictionaries.cosine_atoms import Cosine
from paramcompress.dictionaries.covariance import Covariance
from paramcompress.dictionaries.data import StreamedMoments
from paramcompress.dictionaries.downsampling import DownSampling
from paramcompress.dictionaries.kmeans import KMeans
from paramcompress.dictionaries.learned import LearnedLowRank
from paramcompress.dictionaries.principal import PCA
from paramcompress.dictionaries.random_atoms import RandomConnections, RandomFixed
from paramcompress.dictionaries.squared_exponential import SquaredExponential
from paramcompress.dictionaries.supports import SUPPORTS

from .conversion import convert, frobenius_decay, learned_fraction, merge, predicted_layers
from .layers import Predicted, PredictedConv2d, PredictedLinear
from .protocol import layer_inputs, layerwise, pretrain

__all__ = [
    "PCA",
    "SUPPORTS",
    "Autoencoder",
    "Cosine",
    "Covariance",
    "Dictionary",
    "DownSampling",
    "KMeans",
    "LearnedLowRank",
    "Predicted",
    "PredictedConv2d",
    "PredictedLinear",
    "RandomConnections",
    "RandomFixed",
    "SquaredExponential",
    "StreamedMoments",
    "convert",
    "frobenius_decay",
    "layer_inputs",
    "layerwise",
    "learned_fraction",
    "merge",
    "predicted_layers",
    "pretrain",
]
