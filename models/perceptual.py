"""Distances of images that follow the eye more than a difference of pixels does."""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d, pad

from scorefield.models.checkpoints import files

# VGG16: channels of the convolutions before each pooling, and the places of the convolutions in torchvision's list.
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
# Mean and deviation of the photographs of ImageNet, for values in -1 .. 1.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
TRUNK = "vgg16-397923af.pth"  # as torchvision's download is called in torch's cache
SMALLEST = 2 ** (len(BLOCKS) - 1)
HELP = (
    "pass weights=PATH to a file of lpips.LPIPS(net='vgg').state_dict(), or to torchvision's vgg16 with the package "
    "lpips installed, or use perceptual=laplacian"
)


class LaplacianPyramid(nn.Module):
    """The mean absolute difference of each level of two Laplacian pyramids (Burt and Adelson 1983), added, (B,).

        d(x, y) = sum_(j < n) mean |L_j(x) - L_j(y)| + mean |x_n - y_n|
        L_j(x) = x_j - blur(x_j),   x_(j + 1) = half blur(x_j),   x_0 = x

    It is the Lap1 loss of Bojanowski et al. 2018, Section 3.2. The blur is binomial with 5 taps, `half` the mean over 2
    x 2 pixels. It needs no weights and takes any channels. A level more than the size allows is left out.

    Args:
        levels: n.

    Raises:
        ValueError: for levels below 1.
    """

    kernel: Tensor

    def __init__(self, levels: int = 4) -> None:
        super().__init__()
        if levels < 1:
            raise ValueError(f"expected a pyramid of at least 1 level, got {levels}")
        self.levels = levels
        taps = torch.tensor((1.0, 4.0, 6.0, 4.0, 1.0)) / 16
        self.register_buffer("kernel", (taps[:, None] * taps)[None, None], persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The distances of images (B, C, H, W), (B,)."""
        rest = (x - y).flatten(0, 1)[:, None]  # the pyramid of a difference is the difference of the pyramids
        total = x.new_zeros(len(x))
        for _ in range(self.levels):
            low = conv2d(pad(rest, (2, 2, 2, 2), "replicate"), self.kernel.to(rest.dtype))
            total = total + _mean(rest - low, len(x))
            if min(rest.shape[2:]) < 2:
                return total + _mean(low, len(x))
            rest = avg_pool2d(low, 2)
        return total + _mean(rest, len(x))


class LPIPS(nn.Module):
    """Learned distance of the features of VGG16 (Zhang et al. 2018, "LPIPS", Eq. 1), version 0.1, (B,).

        d(x, y) = sum_l mean_hw sum_c w_lc (f_lc(x) / |f_l(x)| - f_lc(y) / |f_l(y)|)^2

    Images are in -1 .. 1. Grey ones count as three equal channels. The weights are never random: they come from a file,
    or from the installed package `lpips` and the cache of torch. No `torchvision` is needed.

    Args:
        weights: a file or a folder of files with the trunk and the heads, by the names of `lpips`, `torchvision` or
            this class. Heads that are absent are taken from the package `lpips`. By default the trunk is looked for in
            torch's cache.

    Raises:
        ValueError: if weights are absent, or the file is none of these.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, weights: str | Path = "") -> None:
        super().__init__()
        tensors = _read_weights(weights)
        sizes = [size for block in BLOCKS for size in block]
        self.trunk = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in zip((3, *sizes), sizes, strict=False)
        )
        self.heads = nn.ParameterList(torch.empty(block[-1]) for block in BLOCKS)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)
        self.load_state_dict(tensors)
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The distances of images (B, C, H, W), (B,).

        Raises:
            ValueError: unless they have 1 or 3 channels, and 16 pixels a side.
        """
        if x.ndim != 4 or x.shape[1] not in (1, 3) or min(x.shape[2:]) < SMALLEST:
            raise ValueError(
                f"expected images of 1 or 3 channels and at least {SMALLEST} pixels a side for LPIPS, got "
                f"{tuple(x.shape)}: use perceptual=laplacian, which takes any"
            )
        total = torch.zeros(len(x), device=x.device)
        for head, ours, theirs in zip(self.heads, self.features(x), self.features(y), strict=True):
            squares = (_directions(ours) - _directions(theirs)).square()
            total = total + (squares * head[:, None, None]).sum(1).flatten(1).mean(1)
        return total

    def features(self, x: Tensor) -> list[Tensor]:
        """The features before each pooling, (B, c, h, w), for images in -1 .. 1."""
        h = (x - self.shift) / self.scale
        layers, features = iter(self.trunk), list[Tensor]()
        for block in BLOCKS:
            h = max_pool2d(h, 2) if features else h
            for _ in block:
                h = next(layers)(h).relu()
            features.append(h)
        return features


def _mean(planes: Tensor, batch: int) -> Tensor:
    """The mean absolute value of planes (B C, 1, h, w), (B,)."""
    return planes.abs().reshape(batch, -1).mean(1)


def _directions(features: Tensor) -> Tensor:
    """Features of length 1 at each place. (The gradient of this norm is 0 where all of them are.)"""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    length: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / (length + 1e-10)


def _shapes() -> dict[str, tuple[int, ...]]:
    """Of all weights of LPIPS."""
    sizes = [size for block in BLOCKS for size in block]
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (before, after) in enumerate(zip((3, *sizes), sizes, strict=False)):
        shapes |= {f"trunk.{i}.weight": (after, before, 3, 3), f"trunk.{i}.bias": (after,)}
    return shapes | {f"heads.{i}": (block[-1],) for i, block in enumerate(BLOCKS)}


def _read_weights(weights: str | Path) -> dict[str, Tensor]:
    """Trunk and heads by our names."""
    place = Path(weights).expanduser() if weights else Path(torch.hub.get_dir()) / "checkpoints" / TRUNK
    if not place.exists():
        raise ValueError(f"expected weights of LPIPS in {place}, and there is no such file: {HELP}")
    tensors: dict[str, Tensor] = {}
    for path in sorted(place.iterdir()) if place.is_dir() else [place]:
        if path.suffix in (".pth", ".pt", ".ckpt", ".bin", ".safetensors"):
            tensors |= _named(files.weights_of(files.read(path))[0])
    if not any(name.startswith("heads") for name in tensors) and (heads := _of_package()) is not None:
        tensors |= _named(files.weights_of(files.read(heads))[0])
    shapes = _shapes()
    missing = [name for name, shape in shapes.items() if name not in tensors or tensors[name].shape != shape]
    if missing:
        raise ValueError(
            f"expected weights of LPIPS with VGG16 in {place}, got a file without {len(missing)} of its {len(shapes)} "
            f"tensors ({missing[0]}, ...): {HELP}"
        )
    return {name: tensors[name].float() for name in shapes}


def _of_package() -> Path | None:
    """The file of heads in the installed package `lpips`, without importing it: that needs torchvision."""
    package = importlib.util.find_spec("lpips")
    path = Path(package.origin).parent / "weights" / "v0.1" / "vgg.pth" if package and package.origin else None
    return path if path is not None and path.is_file() else None


def _named(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by our names: those of torchvision's features and of the lpips package are understood."""
    named = {}
    for name, tensor in state.items():
        if match := re.fullmatch(r"(?:features|(?:net\.)?slice\d)\.(\d+)\.(weight|bias)", name):
            if int(match[1]) in PLACES:
                named[f"trunk.{PLACES.index(int(match[1]))}.{match[2]}"] = tensor
        elif match := re.fullmatch(r"lins?\.?(\d)\.model\.1\.weight", name):
            named[f"heads.{match[1]}"] = tensor.flatten()
        elif name.startswith(("trunk.", "heads.")):
            named[name] = tensor
    return named
