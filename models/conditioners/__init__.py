"""Conditioners, a file each: raw keywords of a denoiser to context tokens or images beside x."""

from scorefield.models.conditioners.base import READY, Conditioner
from scorefield.models.conditioners.boxes import Boxes
from scorefield.models.conditioners.class_tokens import ClassTokens
from scorefield.models.conditioners.low_resolution import LowResolution
from scorefield.models.conditioners.masked_image import MaskedImage
from scorefield.models.conditioners.semantic_map import SemanticMap
from scorefield.models.conditioners.text import TextTransformer

__all__ = [
    "READY",
    "Boxes",
    "ClassTokens",
    "Conditioner",
    "LowResolution",
    "MaskedImage",
    "SemanticMap",
    "TextTransformer",
]
