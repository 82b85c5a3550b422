"""What is trained and saved together, as one module."""

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from scorefield.sde_lib import SDE
from scorefield.sde_lib.broadcast import Scale
from scorefield.sde_lib.denoiser import DenoiserLike, predict_noise

PARTS = ("denoiser", "sde", "autoencoder", "dequantiser", "discriminator", "classifier")
WRAPPERS = ("_orig_mod", "module")  # what torch.compile and DistributedDataParallel put into the names of tensors


class Model(nn.Module):
    """The modules that are trained, averaged and saved together.

    A part that is an `nn.Module` is registered: optimiser, averages, checkpoints and processes see its weights. A part
    that is not, such as a path without parameters, is a plain attribute. Called as a denoiser, the model is its
    denoiser, so an average of the model can be sampled from.

    Args:
        denoiser: D(x, alpha, sigma, **cond) = E[x0 | x]; a conditioner is a part of its network.
        sde: the path; one that is an `nn.Module` is learned.
        autoencoder: maps images to codes and back.
        dequantiser: q(u | k).
        discriminator: tells images from an autoencoder's.
        classifier: tells the classes of noisy data, for guidance.
    """

    def __init__(
        self,
        denoiser: DenoiserLike | None = None,
        sde: SDE | None = None,
        *,
        autoencoder: nn.Module | None = None,
        dequantiser: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        classifier: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.denoiser: Any = denoiser
        self.sde = sde
        self.autoencoder = autoencoder
        self.dequantiser = dequantiser
        self.discriminator = discriminator
        self.classifier = classifier

    def forward(self, x: Tensor, alpha: Scale, sigma: Scale, **cond: Any) -> Tensor:
        """E[x0 | x], shape (B, *D)."""
        x0: Tensor = self.denoiser(x, alpha, sigma, **cond)
        return x0

    def noise(self, x: Tensor, alpha: Scale, sigma: Scale, **cond: Any) -> Tensor:
        """E[eps | x], shape (B, *D)."""
        return predict_noise(self.denoiser, x, alpha, sigma, **cond)

    @property
    def learns_path(self) -> bool:
        """Whether the path is a module."""
        return "sde" in self._modules

    def train(self, mode: bool = True) -> "Model":
        """Training mode, but for the parts whose weights are all frozen."""
        super().train(mode)
        for part in self.children():
            if not any(weight.requires_grad for weight in part.parameters()):
                part.eval()
        return self


def unwrapped(names: Collection[str]) -> dict[str, str]:
    """The names without those of wrappers, with the own name of each; as they are where two would become one."""
    plain = {".".join(part for part in name.split(".") if part not in WRAPPERS): name for name in names}
    return plain if len(plain) == len(names) else {name: name for name in names}


def file_name(own: str) -> str:
    """The name of a module's tensor in a file: it does not tell whether the module was compiled."""
    return own.replace("_orig_mod.", "")


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors by their names in a file."""
    return {file_name(own): tensor for own, tensor in module.state_dict().items()}


def names_of(module: nn.Module) -> dict[str, str]:
    """The names of a module's tensors as a `Model` has them, without wrappers, with its own name of each."""
    prefix = "" if isinstance(module, Model) else "denoiser."
    return {f"{prefix}{name}": own for name, own in unwrapped(module.state_dict()).items()}


def names_in(file: Collection[str], module: nn.Module) -> dict[str, str]:
    """The names of a file's tensors as a `Model` has them, without wrappers, with the file's own name of each.

    Files of earlier versions hold a denoiser alone. For a module that is not a `Model`, only the denoiser counts.
    """
    plain = unwrapped(file)
    ours = all(name.split(".")[0] in PARTS for name in plain)
    names = {name if ours else f"denoiser.{name}": own for name, own in plain.items()}
    return {n: own for n, own in names.items() if isinstance(module, Model) or n.startswith("denoiser.")}
