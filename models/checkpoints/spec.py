"""What an importer makes of other people's weights, before anything is built."""

import difflib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scorefield.models.conditioned import ConditionedNetwork
from scorefield.models.denoiser import Denoiser
from scorefield.models.layers.blocks import ResidualBlock
from scorefield.models.layers.transformer import SpatialTransformer
from scorefield.models.levels import Parameterisation
from scorefield.models.networks.autoencoder import ImageAutoencoder
from scorefield.sde_lib import SDE


class Entry(NamedTuple):
    """One of our tensors, the names of theirs that it is made of ("this|that" is either), and how."""

    ours: str
    theirs: tuple[str, ...]
    make: Callable[..., Tensor]


@dataclass(frozen=True)
class FirstStage:
    """The autoencoder of a latent model, with its weights.

    Args:
        module: the network.
        shape: of the images that it was trained on, (C, H, W).
        scale, shift: diffusion takes its codes z as scale (z - shift); one number, or one for each channel.
    """

    module: ImageAutoencoder
    shape: tuple[int, ...]
    scale: float | tuple[float, ...] = 1.0
    shift: float | tuple[float, ...] = 0.0


@dataclass(frozen=True)
class CheckpointSpec:
    """How to build the denoiser that a checkpoint holds.

    Args:
        network: the class of the network.
        settings: its constructor's keywords.
        entries: what each of its tensors is made of; those left out keep what they are. With a conditioner the network
            is a `ConditionedNetwork`.
        precondition: what the network predicts, and what stands for the noise level.
        sde: the path that it was trained on.
        shape: of one sample, (*D).
        low, high: the range of the data that it was trained on.
        levels: how many values it has, None for continuous data.
        unlabelled: whether "no label" means anything: it was trained with labels left out, or has none.
        class_names: of the classes in their order, where they are known.
        class_counts: training examples of each class, where they are known.
        extra: endings of names that a checkpoint may have beside its weights: buffers that follow from the settings.
        conditioner: makes the conditioner that was trained with the network, None without one.
        first_stage: the autoencoder whose codes the samples are; None for a model of the data itself.
    """

    network: type[nn.Module]
    settings: Mapping[str, Any]
    entries: Callable[[Any], Iterator[Entry]]
    precondition: Parameterisation
    sde: SDE
    shape: tuple[int, ...]
    low: float = -1.0
    high: float = 1.0
    levels: int | None = 256
    unlabelled: bool = True
    class_names: tuple[str, ...] = ()
    class_counts: tuple[int, ...] = ()
    extra: tuple[str, ...] = ("sigmas", "resample_filter")
    conditioner: functools.partial[Any] | None = None
    first_stage: FirstStage | None = None

    @property
    def num_classes(self) -> int | None:
        """How many classes the network or its conditioner takes, None without classes."""
        if self.conditioner is not None and "num_classes" in self.conditioner.keywords:
            return int(self.conditioner.keywords["num_classes"])
        count: int | None = self.settings.get("num_classes", self.settings.get("num_class_embeds"))  # in diffusers
        return count

    @property
    def tokens(self) -> bool:
        """Whether the network takes a context that is made outside; without one it need not recognise noise."""
        return self.conditioner is None and bool(self.settings.get("context", self.settings.get("cross_attention_dim")))

    def build(self) -> nn.Module:
        """The untrained network, with its conditioner if it has one."""
        network = self.network(**self.settings)
        if self.conditioner is None:
            return network
        return ConditionedNetwork(network, self.conditioner(), required=not self.unlabelled)

    def denoiser(self, network: nn.Module) -> Denoiser:
        """The denoiser of the network, which refuses to be called without a label where that means nothing."""
        required = not self.unlabelled and (self.conditioner is None or self.num_classes is not None)
        return Denoiser(network, self.precondition, label_required=required)


def itself(tensor: Tensor) -> Tensor:
    """The tensor as it is."""
    return tensor


def same(ours: str, theirs: str, *, bias: bool = True) -> Iterator[Entry]:
    """A layer's weight and bias, as they are."""
    for name in ("weight", "bias")[: 1 + bias]:
        yield Entry(f"{ours}.{name}", (f"{theirs}.{name}",), itself)


def joined(
    ours: str,
    theirs: tuple[str, ...],
    weight: str = "weight",
    bias: str = "bias",
    make: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Entry]:
    """Linear maps side by side (q, k and v) as one 1x1 convolution."""
    kernel = make or pointwise
    weights, biases = (tuple(f"{name}.{part}" for name in theirs) for part in (weight, bias))
    yield Entry(f"{ours}.weight", weights, lambda *w: torch.cat([kernel(each) for each in w]))
    yield Entry(f"{ours}.bias", biases, lambda *b: torch.cat(b))


def pointwise(weight: Tensor) -> Tensor:
    """A matrix (out, in), or a kernel over one position, as a 1x1 convolution's kernel."""
    return weight.reshape(*weight.shape[:2], 1, 1)


def cos_first(weight: Tensor) -> Tensor:
    """The first layer after an embedding that has its cosines first, for one that has its sines first."""
    cos, sin = weight.chunk(2, 1)
    return torch.cat([sin, cos], 1)


def residual_block(
    block: ResidualBlock, ours: str, theirs: str, names: Mapping[str, str], shortcut: str
) -> Iterator[Entry]:
    """A residual block's layers, whose names there are `names` by ours, and its shortcut if it has one."""
    for here, there in names.items():
        yield from same(f"{ours}.{here}", f"{theirs}.{there}")
    if isinstance(block.shortcut, nn.Conv2d):
        yield from same(f"{ours}.shortcut", f"{theirs}.{shortcut}")


def spatial_transformer(layer: SpatialTransformer, ours: str, theirs: str) -> Iterator[Entry]:
    """A spatial transformer's layers, by the names that CompVis and diffusers share.

    Its first and last map are 1x1 convolutions there, or linear (Stable Diffusion 2).
    """
    yield from same(f"{ours}.norm", f"{theirs}.norm")
    for here, there in (("expand", "proj_in"), ("project", "proj_out")):
        yield Entry(f"{ours}.{here}.weight", (f"{theirs}.{there}.weight",), pointwise)
        yield Entry(f"{ours}.{here}.bias", (f"{theirs}.{there}.bias",), itself)
    for i in range(len(layer.blocks)):
        block, there = f"{ours}.blocks.{i}", f"{theirs}.transformer_blocks.{i}"
        for n, (kind, norm) in enumerate((("self", "norm_self"), ("cross", "norm_context")), 1):
            yield from same(f"{block}.{norm}", f"{there}.norm{n}")
            for part in ("query", "key", "value"):
                name = f"{there}.attn{n}.to_{part[0]}"
                yield from same(f"{block}.{kind}_attention.{part}", name, bias=False)
            yield from same(f"{block}.{kind}_attention.project", f"{there}.attn{n}.to_out.0")
        yield from same(f"{block}.norm_perceptron", f"{there}.norm3")
        yield from same(f"{block}.expand", f"{there}.ff.net.0.proj")
        yield from same(f"{block}.contract", f"{there}.ff.net.2")


def with_unknown(table: Tensor) -> Tensor:
    """A table of classes (K, width), and a row of zeros for no class, which it was made without."""
    return torch.cat([table, torch.zeros_like(table[:1])])


def with_overrides(known: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The known values with the overrides in their place.

    Raises:
        ValueError: for one that is not known.
    """
    for key in overrides:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f": did you mean {close[0]!r}?" if close else f": the architecture takes {', '.join(known)}"
            raise ValueError(f"got {key!r}, which this source does not have{hint}")
    return {**known, **overrides}


def check_inferred(inferred: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What the weights tell, where the overrides that are not None say the same.

    Raises:
        ValueError: where it says something else.
    """
    for key, value in inferred.items():
        said = overrides.get(key)
        same = tuple(said) == tuple(value) if isinstance(said, list | tuple) else said in (None, value)
        if not same:
            raise ValueError(f"expected {key}={value}, as the weights have it, got {said}: leave it out")
    return dict(inferred)


def levels_at(size: int, resolutions: Iterable[int], levels: int) -> tuple[int, ...]:
    """The levels of a U-Net, counted from 0 at full size, whose images have one of these sizes."""
    sizes = set(resolutions)
    return tuple(level for level in range(levels) if size // 2**level in sizes)


def check_attention(key: str, value: Any, inferred: tuple[int, ...], at: tuple[int, ...]) -> None:
    """Raises ValueError where a value means attention at levels `at`, and the weights have it at others."""
    if at != inferred:
        raise ValueError(
            f"expected {key} at levels {inferred}, where the weights have attention, got {value}: levels {at}"
        )
