"""Data sets: one class for what they are, and a reader for each place they come from."""

from training.data.archive import archive
from training.data.array import array, whole_array
from training.data.celeba import celeba
from training.data.cifar10 import cifar10
from training.data.dataset import Dataset, Split
from training.data.decoding import Decoding
from training.data.digits import digits
from training.data.download import download
from training.data.folder import folder, image_files, read_images
from training.data.hub import huggingface
from training.data.idx import fashion_mnist, mnist, read_idx
from training.data.imagenet import imagenet
from training.data.shards import shards
from training.data.toys import toy

__all__ = [
    "Dataset",
    "Decoding",
    "Split",
    "archive",
    "array",
    "celeba",
    "cifar10",
    "digits",
    "download",
    "fashion_mnist",
    "folder",
    "huggingface",
    "image_files",
    "imagenet",
    "mnist",
    "read_idx",
    "read_images",
    "shards",
    "toy",
    "whole_array",
]
