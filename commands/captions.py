"""The tokeniser of a run with captions: a file of the run, which training writes."""

from collections.abc import Callable, Iterable
from pathlib import Path

import ml_collections

from scorefield.configs import build
from scorefield.models.text_tokens import WordPieces
from scorefield.training.data import Dataset

FILE = "tokenizer.json"
VOCABULARY = 4096  # tokens of one that is made of captions, at most


def takes_captions(config: ml_collections.ConfigDict) -> bool:
    """Whether the conditioner of a configuration takes the tokens of captions."""
    return "tokens" in build.conditioning_keywords(config)


def captions_in(dataset: Dataset) -> list[str]:
    """The captions of a data set.

    Raises:
        ValueError: if it has none.
    """
    if "caption" not in dataset.cond:
        raise ValueError(
            f"expected a caption for each item of {dataset.name}, because this run is conditioned on it, got none: "
            "give data that has captions (docs/training.md)"
        )
    captions: list[str] = dataset.cond["caption"].tolist()
    return captions


def tokenizer_of(workdir: Path, config: ml_collections.ConfigDict, captions: Callable[[], Iterable[str]]) -> WordPieces:
    """The tokeniser of a run: its own, or the one that the configuration names, or one made of the captions.

    Raises:
        ValueError: if a file does not read.
    """
    length = int(config.conditioner.length)
    if (workdir / FILE).is_file():
        return WordPieces.read(workdir / FILE, length)
    if place := config.get("tokenizer"):
        return WordPieces.read(place, length)
    return WordPieces.of_captions(captions(), length, config.conditioner.vocabulary or VOCABULARY)
