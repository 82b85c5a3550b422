"""The addresses of the data sets, and the SHA-256 of every unpacked file."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Archive:
    """A file to fetch and the files in it.

    A name that ends in .tar.gz is a tar, from which only the members named in `files` are unpacked. Any other name is
    one file, in gzip's format or plain.

    Args:
        urls: its mirrors, in the order to try them.
        files: the SHA-256 of each unpacked file, by its path below the root.
    """

    urls: tuple[str, ...]
    files: Mapping[str, str]


def _idx(folder: str, mirrors: tuple[str, ...], sums: Mapping[str, str]) -> tuple[Archive, ...]:
    """One gzip file for each of the four parts of a data set in IDX."""
    return tuple(
        Archive(tuple(f"{mirror}{name}.gz" for mirror in mirrors), {f"{folder}/{name}": sha256})
        for name, sha256 in sums.items()
    )


ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "mnist": _idx(
        "MNIST/raw",
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        {
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    "fashion_mnist": _idx(
        "FashionMNIST/raw",
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        {
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
    ),
    "cifar10": (
        Archive(
            ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
            {
                f"cifar-10-batches-bin/{name}.bin": sha256
                for name, sha256 in {
                    "data_batch_1": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
                    "data_batch_2": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
                    "data_batch_3": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
                    "data_batch_4": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
                    "data_batch_5": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
                    "test_batch": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
                }.items()
            },
        ),
    ),
}
