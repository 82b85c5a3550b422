"""Data sets: one class for what they are, and a reader for each place they come from."""

from training.data.array import array, whole_array
from training.data.cifar10 import cifar10
from training.data.dataset import Dataset, Split
from training.data.digits import digits
from training.data.download import download
from training.data.folder import folder, image_files, read_images
from training.data.idx import fashion_mnist, mnist, read_idx
from training.data.toys import toy

__all__ = [
    "Dataset",
    "Split",
    "array",
    "cifar10",
    "digits",
    "download",
    "fashion_mnist",
    "folder",
    "image_files",
    "mnist",
    "read_idx",
    "read_images",
    "toy",
    "whole_array",
]
