"""Inception of 2015-12-05, the network of FID, KID and the Inception score, in plain PyTorch."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorefield.evaluation.features import resize as resizing
from scorefield.evaluation.features.base import StoredAs, fingerprint_of
from scorefield.evaluation.features.image_network import ImageNetwork
from scorefield.evaluation.features.inception_weights import LOGITS, convolutions, read

SIZE = 299  # pixels a side
SPATIAL = ("mixed_6", 7)  # sFID: the block, and the channels that its first convolution has there


def _tf(images: Tensor) -> Tensor:
    return (resizing.tensorflow_bilinear(images, SIZE) - 128) / 128


def _torch(images: Tensor) -> Tensor:
    return 2 * resizing.torch_bilinear(images / 255, SIZE) - 1


def _clean(images: Tensor) -> Tensor:
    return (resizing.pillow_bicubic(images, SIZE) - 128) / 128


RECIPES: dict[str, Callable[[Tensor], Tensor]] = {"tf": _tf, "torch": _torch, "clean": _clean}


class Inception(ImageNetwork):
    """Features of Inception of 2015-12-05 (Szegedy et al. 2016), as FID takes them (Heusel et al. 2017).

    `features` (N, 2048) are the last averages over space. `spatial` (N, 17 * 17 * 7) are the first 7 channels within
    block mixed_6, as sFID takes them (Nash et al. 2021), with the channel as the fastest index. `probabilities`
    (N, 1008) are there if the weights have the head: the softmax of the logits without their bias, as the published
    Inception score has it.

    Args:
        stored_as: how samples are stored: images of 1 or 3 channels with levels.
        weights: the file of weights, see `inception_weights.read`.
        resize: to 299 pixels: `tf` (Heusel, StyleGAN, EDM, torch-fidelity), `torch` (pytorch-fid) or `clean`
            (clean-fid).
        device: where the network runs.

    Raises:
        ValueError: for other samples, an unknown recipe, or a file that does not have these weights.
    """

    def __init__(
        self, stored_as: StoredAs, weights: Path, resize: str = "tf", device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(stored_as, resize, RECIPES, device)
        state = read(weights)
        self._fingerprint = fingerprint_of(state, self.recipe)
        with torch.device("meta"):  # the initial values would take longer than the file
            self._network = InceptionNetwork(head=LOGITS in state)
        self._network.load_state_dict(convolutions(state), assign=True)
        self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network.to(self._device).eval().requires_grad_(False)

    @property
    def recipe(self) -> str:
        return f"inception-2015-12-05, {self._resize} resize{resizing.channels_note(self._stored_as)}"

    def _of_images(self, images: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self._network(
            RECIPES[self._resize](images).contiguous(memory_format=torch.channels_last)
        )
        return found


class InceptionNetwork(nn.Sequential):
    """The layers, by the names of the published graph: images (N, 3, 299, 299) in -1 .. 1 to features by name.

    Each batch normalisation is folded into its convolution. What differs from torchvision's network: average pools do
    not count the padding, and the pool of the last block takes the maximum.

    Args:
        head: whether there are the weights of the 1008 logits.
    """

    def __init__(self, head: bool = False) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv=Conv(3, 32, 3, stride=2, padding=0),
            conv_1=Conv(32, 32, 3, padding=0),
            conv_2=Conv(32, 64, 3),
            pool=nn.MaxPool2d(3, 2),
            conv_3=Conv(64, 80, 1),
            conv_4=Conv(80, 192, 3, padding=0),
            pool_1=nn.MaxPool2d(3, 2),
            mixed=_block_35(192, 32),
            mixed_1=_block_35(256, 64),
            mixed_2=_block_35(288, 64),
            mixed_3=_to_17(288),
            mixed_4=_block_17(128),
            mixed_5=_block_17(160),
            mixed_6=_block_17(160),
            mixed_7=_block_17(192),
            mixed_8=_to_8(768),
            mixed_9=_block_8(1280, _average()),
            mixed_10=_block_8(2048, nn.MaxPool2d(3, 1, padding=1)),
        )
        super().__init__(layers)
        self.logits = nn.Parameter(torch.zeros(1008, 2048)) if head else None

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = {}
        block, channels = SPATIAL
        for name, layer in self.named_children():
            x = layer(x)
            if name == block:  # its first convolution has the first channels of the block
                found["spatial"] = x[:, :channels].permute(0, 2, 3, 1).flatten(1)
        found["features"] = x.mean((2, 3))
        if self.logits is not None:
            found["probabilities"] = (found["features"] @ self.logits.mT).softmax(1)
        return found


class Conv(nn.Conv2d):
    """A convolution with a bias, and its ReLU. By default it keeps the size at stride 1."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] | None = None,
    ) -> None:
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        same = (sides[0] // 2, sides[1] // 2)
        super().__init__(inputs, outputs, sides, stride, same if padding is None else padding)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x), inplace=True)


class Fork(nn.Module):
    """Branches that all see the same input; their outputs are joined along the channels."""

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.children()], 1)


def _average() -> nn.Module:
    return nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)


def _tower(inputs: int, *convs: tuple[int, int | tuple[int, int]], **others: nn.Module) -> nn.Sequential:
    """Convolutions of (outputs, kernel) in a row, after a `pool` or before a fork if there is one."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (outputs, kernel) in enumerate(convs):
        layers[f"conv_{i}" if i else "conv"] = Conv(inputs, outputs, kernel)
        inputs = outputs
    layers.update(others)
    if "pool" in others:
        layers.move_to_end("pool", last=False)
    return nn.Sequential(layers)


def _halved(tower: nn.Sequential) -> nn.Sequential:
    """The tower, with a last convolution that halves the size."""
    last = tower[-1]
    assert isinstance(last, Conv)
    last.stride, last.padding = (2, 2), (0, 0)
    return tower


def _block_35(inputs: int, pooled: int) -> Fork:
    return Fork(
        conv=Conv(inputs, 64, 1),
        tower=_tower(inputs, (48, 1), (64, 5)),
        tower_1=_tower(inputs, (64, 1), (96, 3), (96, 3)),
        tower_2=_tower(inputs, (pooled, 1), pool=_average()),
    )


def _to_17(inputs: int) -> Fork:
    return Fork(
        conv=Conv(inputs, 384, 3, stride=2, padding=0),
        tower=_halved(_tower(inputs, (64, 1), (96, 3), (96, 3))),
        pool=nn.MaxPool2d(3, 2),
    )


def _block_17(width: int) -> Fork:
    across, down = (1, 7), (7, 1)
    return Fork(
        conv=Conv(768, 192, 1),
        tower=_tower(768, (width, 1), (width, across), (192, down)),
        tower_1=_tower(768, (width, 1), (width, down), (width, across), (width, down), (192, across)),
        tower_2=_tower(768, (192, 1), pool=_average()),
    )


def _to_8(inputs: int) -> Fork:
    return Fork(
        tower=_halved(_tower(inputs, (192, 1), (320, 3))),
        tower_1=_halved(_tower(inputs, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3))),
        pool=nn.MaxPool2d(3, 2),
    )


def _block_8(inputs: int, pool: nn.Module) -> Fork:
    def both(width: int) -> Fork:
        return Fork(conv=Conv(width, 384, (1, 3)), conv_1=Conv(width, 384, (3, 1)))

    return Fork(
        conv=Conv(inputs, 320, 1),
        tower=_tower(inputs, (384, 1), mixed=both(384)),
        tower_1=_tower(inputs, (448, 1), (384, 3), mixed=both(384)),
        tower_2=_tower(inputs, (192, 1), pool=pool),
    )
