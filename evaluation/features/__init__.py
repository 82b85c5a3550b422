"""Features of samples, on which metrics are computed."""

from scorefield.evaluation.features.base import Features, StoredAs
from scorefield.evaluation.features.inception import Inception
from scorefield.evaluation.features.module import OfModule
from scorefield.evaluation.features.own import ByClassifier, Own, RunClassifier, RunNetwork
from scorefield.evaluation.features.plain import Pixels, PrincipalComponents
from scorefield.evaluation.features.random_network import Random
from scorefield.evaluation.features.vit import CLIP, DINOV2, OfTransformer

__all__ = [
    "CLIP",
    "DINOV2",
    "ByClassifier",
    "Features",
    "Inception",
    "OfModule",
    "OfTransformer",
    "Own",
    "Pixels",
    "PrincipalComponents",
    "Random",
    "RunClassifier",
    "RunNetwork",
    "StoredAs",
]
