"""Data sets: one class for all of them, batches of it, and a reader for each source.

sources/ has the public data sets by name, files/ the readers for files of a user's own.
"""

from scorefield.training.data.batches import Batches, ToModelRange
from scorefield.training.data.dataset import Dataset, Split
from scorefield.training.data.files.archive import archive
from scorefield.training.data.files.array import array, whole_array
from scorefield.training.data.files.decoding import Decoding
from scorefield.training.data.files.folder import folder, image_files, read_images
from scorefield.training.data.files.hub import huggingface
from scorefield.training.data.files.shards import shards
from scorefield.training.data.sources.canvas import canvas
from scorefield.training.data.sources.celeba import celeba
from scorefield.training.data.sources.cifar10 import cifar10
from scorefield.training.data.sources.digits import digits
from scorefield.training.data.sources.download import download
from scorefield.training.data.sources.imagenet import imagenet
from scorefield.training.data.sources.imagenet32 import imagenet32
from scorefield.training.data.sources.mnist import fashion_mnist, mnist, read_idx
from scorefield.training.data.sources.toys import toy

__all__ = [
    "Batches",
    "Dataset",
    "Decoding",
    "Split",
    "ToModelRange",
    "archive",
    "array",
    "canvas",
    "celeba",
    "cifar10",
    "digits",
    "download",
    "fashion_mnist",
    "folder",
    "huggingface",
    "image_files",
    "imagenet",
    "imagenet32",
    "mnist",
    "read_idx",
    "read_images",
    "shards",
    "toy",
    "whole_array",
]
