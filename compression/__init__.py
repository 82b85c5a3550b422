"""Lossless compression by a denoiser: bits back through the chain of its variational bound, on a stack of bits."""

from scorefield.compression.bits_back import BitsBack
from scorefield.compression.chain import Chain
from scorefield.compression.codec import Codec, Coded
from scorefield.compression.container import Container
from scorefield.compression.levels import ByLevel
from scorefield.compression.plan import ChainPlan, choose_plan
from scorefield.compression.stack import Stack

__all__ = ["BitsBack", "ByLevel", "Chain", "ChainPlan", "Codec", "Coded", "Container", "Stack", "choose_plan"]
