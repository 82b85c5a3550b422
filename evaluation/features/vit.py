"""DINOv2 and CLIP, the vision transformers of FD-DINOv2 and CMMD, in plain PyTorch with weights from a file."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorefield.evaluation.features import files
from scorefield.evaluation.features import resize as resizing
from scorefield.evaluation.features.base import StoredAs, fingerprint_of
from scorefield.evaluation.features.image_network import ImageNetwork

HEAD = 64  # width of a head of attention, in each of the published networks
OFFSET = 0.1  # DINOv2 adds it to the size of the grid to which it interpolates its positions
RESIZES = {"pil": resizing.pillow_bicubic_bytes, "torch": resizing.torch_bicubic, "tf": resizing.tensorflow_bilinear}

# Names of `transformers` and of the authors of DINOv2, as patterns, and ours. What has none of these is left out.
BLOCK = r"^(?:vision_model\.)?(?:encoder\.layers?|blocks)\.(\d+)\."
NAMES = {
    r"^(?:embeddings\.cls_token|cls_token|vision_model\.embeddings\.class_embedding)$": "class_token",
    r"^(?:embeddings\.position_embeddings|pos_embed|vision_model\.embeddings\.position_embedding\.weight)$": (
        "positions"
    ),
    r"^(?:embeddings\.patch_embeddings\.projection|patch_embed\.proj|vision_model\.embeddings\.patch_embedding)\.": (
        "patches."
    ),
    r"^vision_model\.pre_layrnorm\.": "first_norm.",
    r"^(?:layernorm|norm|vision_model\.post_layernorm)\.": "norm.",
    r"^visual_projection\.": "projection.",
    BLOCK + r"(?:norm|layer_norm)([12])\.": r"blocks.\1.norm\2.",
    BLOCK + r"(?:attention\.attention\.query|self_attn\.q_proj)\.": r"blocks.\1.query.",
    BLOCK + r"(?:attention\.attention\.key|self_attn\.k_proj)\.": r"blocks.\1.key.",
    BLOCK + r"(?:attention\.attention\.value|self_attn\.v_proj)\.": r"blocks.\1.value.",
    BLOCK + r"(?:attention\.output\.dense|self_attn\.out_proj|attn\.proj)\.": r"blocks.\1.out.",
    BLOCK + r"(?:layer_scale|ls)([12])\.(?:lambda1|gamma)$": r"blocks.\1.scale\2",
    BLOCK + r"mlp\.fc([12])\.": r"blocks.\1.fc\2.",
}


@dataclass(frozen=True)
class Published:
    """A published network: what it is called, in which range it sees pixels, and what it makes of them.

    Args:
        name: in a report.
        kind: of its files, see `files`.
        size: of its images in pixels; 0 for that of its positions.
        mean: of pixels in 0 .. 1, by channel.
        std: their deviation.
        clip: whether it has the activation of CLIP, and features of unit norm.
    """

    name: str
    kind: str
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    clip: bool


DINOV2 = Published("dinov2", "dino", 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), clip=False)
CLIP = Published(
    "clip", "clip", 0, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), clip=True
)


class OfTransformer(ImageNetwork):
    """Features of a vision transformer: the class token after the last norm, and CLIP's projection of it.

    With DINOv2 ViT-L/14 (Oquab et al. 2024), features (N, 1024) are those of FD-DINOv2 (Stein et al. 2023). With CLIP
    ViT-L/14 for 336 pixels (Radford et al. 2021), features (N, 768) of unit norm are those of CMMD (Jayasumana et al.
    2024).

    Args:
        stored_as: how samples are stored: images of 1 or 3 channels with levels.
        published: the network.
        weights: the file, see `state_of`.
        resize: `pil` (bicubic to bytes: dgm-eval), `torch` (bicubic in floats: EDM2, CMMD) or `tf` (bilinear:
            torch-fidelity).
        device: where the network runs.

    Raises:
        ValueError: for other samples, an unknown recipe, or a file with other weights.
    """

    def __init__(
        self,
        stored_as: StoredAs,
        published: Published,
        weights: Path,
        resize: str,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(stored_as, resize, RESIZES, device)
        self._published = published
        state = state_of(weights, published)
        try:
            self._network = VisionTransformer(state, published.size, published.clip)
        except RuntimeError as error:
            last = str(error).splitlines()[-1].strip()
            raise ValueError(
                f"expected the weights of {published.name} in {weights}, got others ({last:.100}): "
                f"{files.SOURCES[published.kind]}"
            ) from None
        self._network.to(self._device).eval().requires_grad_(False)
        self._fingerprint = fingerprint_of(state, self.recipe)

    @property
    def recipe(self) -> str:
        network = f"{self._published.name} of {len(self._network.blocks)} blocks, {self._network.width} wide"
        note = resizing.channels_note(self._stored_as)
        return f"{network}, {self._resize} resize to {self._network.size}{note}"

    def _of_images(self, images: Tensor) -> dict[str, Tensor]:
        mean, std = (images.new_tensor(each)[:, None, None] for each in (self._published.mean, self._published.std))
        x = (RESIZES[self._resize](images, self._network.size) / 255 - mean) / std
        return {"features": self._network(x)}


class VisionTransformer(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021): images (N, 3, S, S), normalised, to features (N, d).

    Args:
        state: the weights, by our names; they say how wide and deep the network is.
        size: of the images in pixels; 0 for that of the positions. Positions are interpolated as DINOv2 does.
        clip: whether it has the activation of CLIP, and its features are of unit norm.

    Raises:
        RuntimeError: if weights are missing, or there are others.
    """

    def __init__(self, state: Mapping[str, Tensor], size: int, clip: bool) -> None:
        super().__init__()
        width, _, patch, _ = state["patches.weight"].shape
        grid = size // patch if size else round((len(state["positions"]) - 1) ** 0.5)
        self.size, self.width, self.clip = grid * patch, width, clip
        depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        eps = 1e-5 if clip else 1e-6
        with torch.device("meta"):
            self.class_token = nn.Parameter(torch.empty(width))
            self.positions = nn.Parameter(torch.empty(grid**2 + 1, width))
            self.patches = nn.Conv2d(3, width, patch, patch, bias="patches.bias" in state)
            self.first_norm = nn.LayerNorm(width, eps) if clip else nn.Identity()
            self.blocks = nn.ModuleList(
                Block(width, len(state["blocks.0.fc1.weight"]), eps, clip, "blocks.0.scale1" in state)
                for _ in range(depth)
            )
            self.norm = nn.LayerNorm(width, eps)
            projection = state.get("projection.weight")
            self.projection = nn.Identity() if projection is None else nn.Linear(width, len(projection), bias=False)
        fitting = {**state, "positions": interpolated(state["positions"], grid)}
        self.load_state_dict(fitting, assign=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], 1) + self.positions
        x = self.first_norm(x)
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.projection(self.norm(x[:, 0]))
        return F.normalize(features, dim=1) if self.clip else features


class Block(nn.Module):
    """Attention and an MLP, each after a norm, with DINOv2's scales of what they add."""

    def __init__(self, width: int, hidden: int, eps: float, clip: bool, scales: bool) -> None:
        super().__init__()
        self.clip = clip
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.scale1 = nn.Parameter(torch.ones(width)) if scales else None
        self.scale2 = nn.Parameter(torch.ones(width)) if scales else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        parts = (layer(h).unflatten(-1, (-1, HEAD)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        h = self.out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
        x = x + (h if self.scale1 is None else self.scale1 * h)
        h = self.fc1(self.norm2(x))
        h = self.fc2(h * torch.sigmoid(1.702 * h) if self.clip else F.gelu(h))
        added: Tensor = h if self.scale2 is None else self.scale2 * h
        return x + added


def interpolated(positions: Tensor, grid: int) -> Tensor:
    """Embeddings of a class token and of a square grid (1 + g^2, d), for another grid, as DINOv2 does it."""
    old = round((len(positions) - 1) ** 0.5)
    if old == grid:
        return positions
    squares = positions[1:].T.reshape(1, -1, old, old)
    factor = (grid + OFFSET) / old
    squares = F.interpolate(squares, scale_factor=(factor, factor), mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], squares.flatten(2)[0].T])


def state_of(path: Path, published: Published) -> dict[str, Tensor]:
    """The weights of a file by our names: of `transformers`, or of the authors of DINOv2.

    Raises:
        ValueError: if it has no such network, or does not read.
    """
    state: dict[str, Tensor] = {}
    for key, tensor in files.tensors(path).items():
        if fused := re.match(BLOCK + r"attn\.qkv\.(weight|bias)$", key):
            parts = zip(("query", "key", "value"), tensor.float().chunk(3), strict=True)
            state.update({f"blocks.{fused[1]}.{part}.{fused[2]}": rows for part, rows in parts})
        for pattern, ours in NAMES.items():
            if re.match(pattern, key):
                state[re.sub(pattern, ours, key)] = tensor.float()
    needed = ["class_token", "positions", "patches.weight", "blocks.0.fc1.weight"]
    needed.append("projection.weight" if published.clip else "blocks.0.scale1")
    if missing := [key for key in needed if key not in state]:
        raise ValueError(
            f"expected the weights of {published.name}, as transformers names them, got none for {missing[0]} in "
            f"{path}: {files.SOURCES[published.kind]}"
        )
    width = state["patches.weight"].shape[0]
    state["class_token"] = state["class_token"].reshape(width)
    state["positions"] = state["positions"].reshape(-1, width)
    return state
