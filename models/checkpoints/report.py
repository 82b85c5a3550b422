"""A checkpoint's network with its weights, and how well these fitted."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scorefield.models.checkpoints.spec import CheckpointSpec, Entry
from scorefield.models.conditioned import ConditionedNetwork
from scorefield.models.denoiser import Denoiser
from scorefield.sde_lib import SDE, predict_noise
from scorefield.sde_lib.arguments import shown

# Below this share of the noise, the network or its path is probably wrong.
POOR = 0.5


@dataclass(frozen=True)
class LoadReport:
    """How a checkpoint fitted.

    Args:
        network: the name of our network.
        weights: "ema", "raw", or "as stored" where the file does not say.
        parameters: of our network.
        matched: how many of our tensors were filled.
        missing: their names that we need and the file does not have.
        unexpected: names of the file that our network has no place for.
        mismatched: ours whose shape is another, with both shapes.
        noise_found: the share of pure noise that is recognised as noise at the end of the path, None if untried.
    """

    network: str
    weights: str
    parameters: int
    matched: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    noise_found: float | None = None

    @property
    def fits(self) -> bool:
        """Whether every tensor has its place."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        text = f"{self.network} of {self.parameters:,} parameters, weights {self.weights}: {self.matched} tensors match"
        for words, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.mismatched),
        ):
            text += f", {len(names)} {words}" + (f" (first {names[0]})" if names else "")
        if self.noise_found is None:
            return text
        poor = ", which is little: untrained, or of other conventions" if self.noise_found < POOR else ""
        return f"{text}; of pure noise {self.noise_found:.1%} is recognised{poor}"


def fitted(spec: CheckpointSpec, state: Mapping[str, Tensor], weights: str) -> tuple[Denoiser, LoadReport]:
    """The denoiser that a spec describes, with what fits of a state dict."""
    network = spec.build()
    return spec.denoiser(network), filled(network, spec, state, weights)


class Described(Protocol):
    """What tells where the tensors of a network come from: a `CheckpointSpec`, or an autoencoder's."""

    @property
    def entries(self) -> Callable[[Any], Iterator[Entry]]: ...

    @property
    def extra(self) -> tuple[str, ...]: ...


def filled(network: nn.Module, spec: Described, state: Mapping[str, Tensor], weights: str) -> LoadReport:
    """Put what fits of a state dict into the network that a spec describes."""
    ours = network.state_dict()
    entries = list(spec.entries(network))
    found: dict[str, Tensor] = {}
    used, missing, mismatched = set(), [], []
    for entry in entries:
        names = [next((n for n in name.split("|") if n in state), name.split("|")[0]) for name in entry.theirs]
        absent = [name for name in names if name not in state]
        missing += [name for name in absent if name not in missing]
        used |= set(names)
        if absent:
            continue
        try:
            made = entry.make(*(state[name] for name in names))
        except (RuntimeError, ValueError, IndexError):
            made = torch.empty(0)
        if made.shape == ours[entry.ours].shape:
            found[entry.ours] = made
        else:
            there = ", ".join(str(tuple(state[name].shape)) for name in names)
            mismatched.append(f"{names[0]} {there} there, {tuple(ours[entry.ours].shape)} here")
    unexpected = tuple(name for name in state if name not in used and not name.endswith(spec.extra))
    network.load_state_dict({**ours, **found})
    parameters = sum(p.numel() for p in network.parameters())
    return LoadReport(
        type(network).__name__, weights, parameters, len(found), tuple(missing), unexpected, tuple(mismatched)
    )


@torch.no_grad()
def noise_found(denoiser: Denoiser, sde: SDE, shape: tuple[int, ...]) -> float:
    """1 - |eps_hat - eps|^2 / |eps|^2 for pure noise at the end of the path.

    Trained networks find nearly all of it. That is necessary, not sufficient: EDM's parameterisation finds it without
    its network, and a path that ends in the same noise is not distinguished.

    Raises:
        ValueError: if the network gives numbers that are not finite, or does not take the shape.
    """
    # A smaller image tells as much and costs less.
    network = denoiser.net.net if isinstance(denoiser.net, ConditionedNetwork) else denoiser.net
    stride = int(getattr(network, "stride", 1))
    smaller = tuple(min(size, max(64, stride)) for size in shape[1:]) if len(shape) == 3 else shape[1:]
    eps = torch.randn((1, shape[0], *smaller), generator=torch.Generator().manual_seed(0))
    alpha, sigma = sde.scales(sde.t_max)
    cond = {"label": torch.zeros(1, dtype=torch.long)} if denoiser.label_required else {}
    if isinstance(denoiser.net, ConditionedNetwork) and not cond:
        cond = denoiser.net.conditioner.nothing(1, (smaller[-2], smaller[-1]))
    try:
        found = predict_noise(denoiser, eps * float(sigma), alpha, sigma, **cond)
    except (RuntimeError, IndexError) as error:
        raise ValueError(f"the network does not run on a sample of shape {shape}: {shown(error)}") from None
    if not bool(found.isfinite().all()):
        raise ValueError("the network gives values that are not finite: its weights are damaged")
    return 1 - float((found - eps).square().mean() / eps.square().mean())
