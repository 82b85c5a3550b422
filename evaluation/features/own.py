"""Features of the network of a run: a hidden layer of the denoiser, or of the classifier that was trained beside it."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from scorefield.evaluation.features.base import Features, StoredAs, evenly_spaced, fingerprint_of

FITTED = 1000  # reference samples whose features give the whitening
SHRINKAGE = 0.01  # of the mean eigenvalue, added to each
TINY = 1e-12  # for features that are all the same


@dataclass(frozen=True)
class RunNetwork:
    """The denoiser of a run, as features of it need it.

    Args:
        module: in which hidden layers are looked for.
        call: evaluates it on stored samples (N, *D) at a log-SNR: on alpha x0, without noise.
        log_snr: the largest and the smallest of its path.
        recipe: which weights, and what the network is given beside the samples.
        fingerprint: of the weights, and of what goes in beside the samples.
    """

    module: nn.Module
    call: Callable[[Tensor, float], object]
    log_snr: tuple[float, float]
    recipe: str
    fingerprint: str


@dataclass(frozen=True)
class RunClassifier:
    """The noisy classifier of a run at its lowest noise.

    Args:
        call: of stored samples (N, *D), what its last layer takes (N, d), and the logits (N, K).
        recipe: which weights, and the noise level.
        fingerprint: of the weights and the level.
    """

    call: Callable[[Tensor], tuple[Tensor, Tensor]]
    recipe: str
    fingerprint: str


class Own(Features):
    """A hidden layer of the run's own network at a noise level, averaged over places.

    The network sees alpha x0 without noise. One noise for all samples told changed samples apart a little less well.
    Fitted features are whitened by the reference,  z = (h - m) V (w + w_mean / 100)^(-1/2),  in which w and V are the
    eigenvalues and vectors of its covariance. Else one direction, such as the amount of ink, hides the others.

    Args:
        stored_as: how samples are stored.
        network: of the run.
        layer: its name, as `net.middle_out`; by default the middle one of those with the fewest places.
        log_snr: of the noise level; it goes to the nearest one of the path.

    Raises:
        ValueError: for a layer that the network does not have, or a network without hidden layers.
    """

    def __init__(self, stored_as: StoredAs, network: RunNetwork, layer: str = "", log_snr: float = 4.0) -> None:
        self.stored_as, self.network = stored_as, network
        high, low = network.log_snr
        self.log_snr = min(max(float(log_snr), low), high)
        self.layer = layer or self._middle()
        modules = dict(network.module.named_modules())
        if self.layer not in modules:
            names = ", ".join(name for name, _ in self._layers())
            raise ValueError(f"expected a layer of the network for features own, got {layer!r}: take one of {names}")
        self._hidden = modules[self.layer]
        self._whitening: tuple[Tensor, Tensor] | None = None
        self._reference = ""
        self(_two(stored_as))  # refuses a layer that answers with no tensor

    def fitted(self, reference: Tensor) -> "Own":
        """Whitened by at most 1,000 reference samples, evenly spaced among these; as they are, for fewer than two."""
        some = evenly_spaced(reference, FITTED)
        if len(some) < 2:
            return self
        raw = copy.copy(self)
        raw._whitening = None
        h = raw.of(some)["features"].double()
        centred = h - h.mean(0)
        w, v = torch.linalg.eigh(centred.T @ centred / (len(h) - 1))
        w = w.clamp(min=0)
        result = copy.copy(self)
        result._whitening = h.mean(0), v * (w + SHRINKAGE * w.mean() + TINY).rsqrt()
        result._reference = fingerprint_of({"reference": some})
        return result

    @property
    def recipe(self) -> str:
        fitted = f", whitened by the reference ({self._reference[:8]})" if self._reference else ", not whitened"
        return f"own network ({self.network.recipe}), {self.layer} at log-SNR {self.log_snr:g}{fitted}"

    @property
    def fingerprint(self) -> str:
        settings = self.stored_as, self.network.fingerprint, self.layer, self.log_snr, self._reference
        return fingerprint_of({}, "own", *settings)

    @torch.no_grad()
    def __call__(self, stored: Tensor) -> dict[str, Tensor]:
        self.stored_as.check(stored)
        with _outputs({self.layer: self._hidden}) as outputs:
            self.network.call(stored, self.log_snr)
        if self.layer not in outputs:
            raise ValueError(f"expected {self.layer} to answer with a tensor, got none: take another layer")
        h = averaged(outputs[self.layer], len(self.stored_as.shape)).cpu()
        if self._whitening is not None:
            mean, axes = self._whitening
            h = (h.double() - mean) @ axes
        return {"features": h.float()}

    def _middle(self) -> str:
        layers = self._layers()[:-1]  # the last one answers
        if not layers:
            raise ValueError(
                "expected a network with modules that compute hidden layers for features own, got none: take "
                "--features=random, or pixels"
            )
        fewest = min(places for _, places in layers)
        names = [name for name, places in layers if places == fewest]
        return names[len(names) // 2]

    @torch.no_grad()
    def _layers(self) -> list[tuple[str, int]]:
        """Names and numbers of places of the outermost layers whose output depends on the sample, in order."""
        modules = {name: module for name, module in self.network.module.named_modules() if name}
        with _outputs(modules) as outputs:
            self.network.call(_two(self.stored_as), self.log_snr)
        known = {name: h for name, h in outputs.items() if h.shape[0] == 2 and not torch.equal(h[0], h[1])}
        found = _outermost(list(known))
        axes = len(self.stored_as.shape)
        order = {name: number for number, name in enumerate(outputs)}
        return [(name, _places(known[name], axes)) for name in sorted(found, key=order.__getitem__)]


class ByClassifier(Features):
    """What the last layer of the run's noisy classifier takes, and its probabilities of the classes.

    Args:
        stored_as: how samples are stored.
        classifier: of the run.
    """

    def __init__(self, stored_as: StoredAs, classifier: RunClassifier) -> None:
        self.stored_as, self.classifier = stored_as, classifier

    @property
    def recipe(self) -> str:
        return f"the run's classifier ({self.classifier.recipe})"

    @property
    def fingerprint(self) -> str:
        return fingerprint_of({}, "classifier", self.stored_as, self.classifier.fingerprint)

    @torch.no_grad()
    def __call__(self, stored: Tensor) -> dict[str, Tensor]:
        self.stored_as.check(stored)
        hidden, logits = self.classifier.call(stored)
        return {"features": hidden.float().cpu(), "probabilities": logits.float().softmax(1).cpu()}


def averaged(h: Tensor, axes: int) -> Tensor:
    """Maps (N, d, *places), or tokens (N, M, d) of samples with more axes, as means over places (N, d)."""
    if h.ndim < 3:
        return h.reshape(len(h), -1)
    return h.mean(1) if h.ndim == 3 and axes > 2 else h.flatten(2).mean(2)


def _places(h: Tensor, axes: int) -> int:
    if h.ndim < 3:
        return 1
    return h.shape[1] if h.ndim == 3 and axes > 2 else math.prod(h.shape[2:])


def _outermost(names: list[str]) -> list[str]:
    """The layers at the first depth at which there are several: wrappers around a network are entered."""
    found = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
    if len(found) == 1 and (inside := [name for name in names if name.startswith(f"{found[0]}.")]):
        return _outermost(inside)
    return found


@contextmanager
def _outputs(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """What these modules answer while the context is open, by name in the order of the last calls."""
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def keep(_: nn.Module, __: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, Tensor) and first.ndim > 1:
                seen.pop(name, None)
                seen[name] = first.detach()

        return keep

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _two(stored_as: StoredAs) -> Tensor:
    """Two different samples, for a look at the layers."""
    draws = np.random.RandomState(0)
    shape = (2, *stored_as.shape)
    if stored_as.levels is None:
        return torch.from_numpy(draws.standard_normal(shape)).float()
    return torch.from_numpy(draws.randint(0, stored_as.levels, shape))
