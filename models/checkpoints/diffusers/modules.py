"""Networks of diffusers called as ours are, for the architectures that only diffusers has."""

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.models.layers.initial import with_concat

UNETS = ("UNet2DModel", "UNet2DConditionModel")


class DiffusersUNet(nn.Module):
    """F(x, c_noise, **cond): a U-Net of diffusers; c_noise is a timestep, or log sigma with "fourier".

    Forward-mode derivatives pass through a `UNet2DModel`, and reverse-mode ones through both.

    Args:
        kind: its class there: "UNet2DModel", or "UNet2DConditionModel" with `context` among `cond`.
        config: the class's own keywords, as its config.json has them. A network that predicts variances too, with 2C
            channels out, gives the first C. One with more channels in than out takes the others as `concat`.

    Raises:
        ValueError: if diffusers is not installed, or does not build such a network.
    """

    def __init__(self, kind: str = "UNet2DModel", **config: Any) -> None:
        super().__init__()
        self.unet = _built(kind, UNETS, config)
        # The class's own keywords, which `save_hyperparameters` would keep under the one name "config".
        self.settings = {"kind": kind, **config}
        seen, out = self.unet.config.in_channels, self.unet.config.out_channels
        self.concat = max(seen - out, 0) if kind == "UNet2DConditionModel" else 0
        self.channels: int = seen - self.concat
        embedding = self.unet.config.time_embedding_type
        # What UNet2DModel takes for c_noise there; UNet2DConditionModel takes timesteps everywhere.
        self.embedding = embedding if kind == "UNet2DModel" else "positional"
        if out not in (self.channels, 2 * self.channels):
            raise ValueError(f"expected out_channels to be in_channels or twice that, got {out} of {self.channels}")
        if kind == "UNet2DModel":
            _forward_mode(self.unet)
        # As in our own networks: there is a row for "no label".
        self.classes = self.unet.config.num_class_embeds if _has_table(self.unet) else None
        if self.classes is not None:
            self.unet.class_embedding = nn.Embedding(self.classes + 1, self.unet.class_embedding.embedding_dim)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        label: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        concat: Tensor | None = None,
        **cond: Any,
    ) -> Tensor:
        """The prediction, shape (B, C, H, W); see `ADM` for the context, its mask and images beside x.

        Raises:
            ValueError: if x is no such batch of images, or the conditioning is not what the network takes.
        """
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"expected images (B, {self.channels}, H, W), got {tuple(x.shape)}")
        if self.embedding == "fourier":
            c_noise = c_noise.exp()
        if self.embedding == "learned":
            c_noise = c_noise.round().long()
        if label is None and self.classes is not None:
            label = torch.full((len(x),), self.classes, device=x.device)
        if label is not None:
            cond["class_labels"] = label
        named = {"encoder_hidden_states": context, "encoder_attention_mask": context_mask}
        cond |= {name: value for name, value in named.items() if value is not None}
        try:
            output: Tensor = self.unet(with_concat(x, concat, self.concat), c_noise, **cond).sample
        except TypeError as error:
            raise ValueError(f"{self.settings['kind']} of diffusers does not take this conditioning: {error}") from None
        return output[:, : self.channels]


def import_diffusers(part: str) -> Any:
    """The library.

    Raises:
        ValueError: if it is not installed, with what needs it.
    """
    try:
        return importlib.import_module("diffusers")
    except ImportError:
        raise ValueError(f"{part} is built by diffusers, which is not installed: pip install diffusers") from None


def _built(kind: str, kinds: tuple[str, ...], config: dict[str, Any]) -> Any:
    if kind not in kinds:
        raise ValueError(f"expected kind to be one of {', '.join(kinds)}, got {kind!r}")
    network = getattr(import_diffusers(kind), kind)
    try:
        return network.from_config(dict(config))
    except Exception as error:  # whatever its constructors come upon
        first = (str(error) or repr(error)).strip().splitlines()[0]
        raise ValueError(f"diffusers does not build {kind} of this configuration: {first}") from None


def _has_table(unet: Any) -> bool:
    return isinstance(getattr(unet, "class_embedding", None), nn.Embedding)


def _forward_mode(unet: Any) -> None:
    """Attention written out rather than fused, and norms of contiguous images: forward-mode derivatives need both."""
    plain = importlib.import_module("diffusers.models.attention_processor")
    for module in unet.modules():
        if isinstance(module, plain.Attention):
            module.set_processor(plain.AttnProcessor())
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(_contiguous)


def _contiguous(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].contiguous(),)
