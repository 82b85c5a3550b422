"""The conditioners of latent-diffusion that are ours too, and the names of their tensors."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from scorefield.models.checkpoints.spec import Entry, itself, same, with_unknown
from scorefield.models.conditioners import (
    Boxes,
    ClassTokens,
    Conditioner,
    LowResolution,
    MaskedImage,
    SemanticMap,
    TextTransformer,
)

PREFIX = "cond_stage_model."
CLASSES, TOKENS, POSITIONS, KERNEL = (
    PREFIX + name
    for name in ("embedding.weight", "transformer.token_emb.weight", "transformer.pos_emb.emb.weight",
                 "channel_mapper.weight")
)  # fmt: skip
# Their text transformer is made without a number of heads, so it has the default of x-transformers.
HEADS, HEAD_WIDTH = 8, 64
# Tokens of an empty caption in BERT's vocabulary, whose size tells it: [CLS] and [SEP].
BERT, EMPTY = 30_522, (101, 102)


def conditioner_of(
    state: Mapping[str, Tensor], channels: int, concat: int, context: int | None, values: Mapping[str, Any]
) -> partial[Any] | None:
    """What makes the conditioner that a state dict holds, None without one, or with one that is not ours.

    Args:
        state: their state dict.
        channels: of the codes.
        concat: of the images beside them.
        context: width of the tokens.
        values: by their own names: `n_stages`, `n_classes` and `no_object_classes`.
    """
    if CLASSES in state and context:
        rows, width = state[CLASSES].shape
        return partial(ClassTokens, num_classes=values["n_classes"] or rows - has_unknown(rows), width=width)
    if TOKENS in state and context:
        return _tokens(state, values)
    if context or not concat:
        return None  # CLIP and others, whose context is made outside
    if KERNEL in state:
        out, classes = state[KERNEL].shape[:2]
        return partial(SemanticMap, classes=classes, halvings=values["n_stages"], out=out)
    if concat == channels + 1:
        return partial(MaskedImage, channels=channels)
    return partial(LowResolution, image_channels=concat)


def _tokens(state: Mapping[str, Tensor], values: Mapping[str, Any]) -> partial[Any]:
    """The text transformer, for captions or, with a length of three tokens a box and two for the crop, for boxes."""
    (vocabulary, width), length = state[TOKENS].shape, len(state[POSITIONS])
    attention = f"{PREFIX}transformer.attn_layers.layers."
    layers = len({name.split(".")[4] for name in state if name.startswith(attention)}) // 2
    common: dict[str, Any] = {
        "vocabulary": vocabulary,
        "width": width,
        "layers": layers,
        "heads": HEADS,
        "head_width": HEAD_WIDTH,
    }
    classes = values["no_object_classes"]
    if classes is None:
        empty = EMPTY if vocabulary == BERT else ()
        return partial(TextTransformer, **common, length=length, empty=empty)
    sections = int((vocabulary - 2) ** 0.5)
    return partial(
        Boxes, **common, classes=classes, boxes=(length - 2) // 3, sections=sections, crop=True, masked=False
    )


def has_unknown(rows: int) -> bool:
    """Whether a table of classes has a last row for no class, as that of ImageNet with 1001 rows."""
    return rows == 1001


def entries(conditioner: Conditioner) -> Iterator[Entry]:
    """What each of a conditioner's tensors is made of."""
    if isinstance(conditioner, ClassTokens):
        known = conditioner.embed.num_embeddings
        yield Entry("embed.weight", (CLASSES,), lambda table: table if len(table) == known else with_unknown(table))
    elif isinstance(conditioner, SemanticMap):
        yield Entry("project.weight", (KERNEL,), itself)
    elif isinstance(conditioner, TextTransformer | Boxes):
        yield Entry("token.weight", (TOKENS,), itself)
        yield Entry("position.weight", (POSITIONS,), itself)
        there = f"{PREFIX}transformer"
        yield from same("norm", f"{there}.norm")
        for i in range(len(conditioner.layers)):
            yield from _layer(f"layers.{i}", *(f"{there}.attn_layers.layers.{2 * i + k}" for k in (0, 1)))


def _layer(ours: str, attention: str, perceptron: str) -> Iterator[Entry]:
    """An attention and a perceptron, each a list there of its norm, itself and the residual."""
    yield from same(f"{ours}.norm_attention", f"{attention}.0")
    for part in ("query", "key", "value"):
        yield from same(f"{ours}.attention.{part}", f"{attention}.1.to_{part[0]}", bias=False)
    yield from same(f"{ours}.attention.project", f"{attention}.1.to_out")
    yield from same(f"{ours}.norm_perceptron", f"{perceptron}.0")
    yield from same(f"{ours}.expand", f"{perceptron}.1.net.0.0")
    yield from same(f"{ours}.contract", f"{perceptron}.1.net.2")
