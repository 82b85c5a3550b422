"""Open the features that a command line names."""

import copy
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.commands.conditions import conditions_of
from scorefield.commands.on_stderr import on_stderr
from scorefield.commands.run import Run
from scorefield.commands.train_classifier import load_classifier
from scorefield.commands.trained import Trained
from scorefield.configs.build import build
from scorefield.configs.specs import FROM_DATA, find, modern, unparse
from scorefield.configs.tables import FEATURES
from scorefield.evaluation.features import Features, OfModule, RunClassifier, RunNetwork, StoredAs
from scorefield.evaluation.features.base import fingerprint_of

SMALL = 1024  # values of a vector whose moments are taken as they are


def open_features(
    spec: str | None, stored_as: StoredAs, device: torch.device, trained: Trained | None = None
) -> Features:
    """The features of a spec, as `own`, `pca:components=64` or `mypkg.Net:width=3`; None takes what suits the data.

    By default these are Inception's for images of 3 channels where its weights are found. Else they are of the run's
    own network, or without a run those of a random network for images and other grids, and pixels for vectors. A line
    on stderr says which.

    Args:
        spec: of the table of features, or the name of a user's module, function or `Features`.
        stored_as: how samples are stored.
        device: that computes.
        trained: the run whose network or classifier is meant, where there is one.

    Raises:
        ValueError: for an unknown name, features that these samples cannot have, or a run that is needed.
    """
    if spec is None:
        return _default(stored_as, device, trained)
    settings = modern(FEATURES, spec)
    constructor = find(FEATURES, settings["name"])
    part = _used_as_it_is(constructor, {key: value for key, value in settings.items() if key != "name"})
    if part is None:
        shape = stored_as.shape
        context: dict[str, Any] = {"stored_as": stored_as, "device": device, "shape": shape, "channels": shape[0]}
        for key, of_run in (("network", network_of), ("classifier", classifier_of)):
            if key in inspect.signature(constructor).parameters:
                context[key] = of_run(_needed(trained, stored_as, settings["name"]))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a user's module of random weights has the same ones every time
            part = build(FEATURES, settings, **context)
    if isinstance(part, Features):
        return part
    if not callable(part):
        raise ValueError(f"expected {spec} to make features, a module or a function of samples, got {part!r:.80}")
    return OfModule(part, unparse(settings), stored_as, device)


def network_of(trained: Trained) -> RunNetwork:
    """The denoiser of a run, for features of it. It is a copy, so that no compiled code skips its hidden layers.

    Where classes were left out in training it is given none. Else it is given the first class, whatever the sample.

    Raises:
        ValueError: for a path with several noise levels in a sample, or a network that needs other conditioning.
    """
    run, sde = trained.run, trained.run.sde
    if sde.per_dimension or sde.needs_code:
        raise ValueError(
            "expected a path with one noise level for all dimensions for features own, got "
            f"{type(sde).__name__}: take --features=random, or pixels"
        )
    if conditions_of(run) is not None and run.config.training.label_dropout == 0:
        raise ValueError(
            "expected a network that was also trained without its conditioning for features own, got one that always "
            "had it: take --features=random, or pixels"
        )
    denoiser = copy.deepcopy(trained.denoiser)
    label = run.classes[0] if run.label_required else None

    def call(stored: Tensor, log_snr: float) -> object:
        alpha, sigma = sde.scales(sde.time(torch.tensor(log_snr, dtype=torch.float64)))
        x = run.centred(stored).to(run.device) * float(alpha)
        cond = {} if label is None else {"label": torch.full((len(x),), label, device=x.device)}
        return denoiser(x, alpha, sigma, **cond)

    with torch.no_grad():
        high, low = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)).tolist()
    described, digest = trained.described, trained.described["checkpoint_sha256"]
    weights = f"{described['weights']} weights of {described['checkpoint']}, {digest[:8]}"
    given = f", given class {label}" if label is not None else ""
    fingerprint = fingerprint_of(_autoencoder(run), digest, label, run.low, run.high, run.data.levels)
    return RunNetwork(denoiser, call, (high, low), weights + given, fingerprint)


def classifier_of(trained: Trained) -> RunClassifier:
    """The noisy classifier of a run at the least noise of its path.

    Raises:
        ValueError: if the run has none.
    """
    trained.check_one_level("evaluate")
    run, sde = trained.run, trained.run.sde
    classifier, facts = load_classifier(trained)
    alpha, sigma = sde.scales(torch.tensor(sde.t_min, dtype=torch.float64))

    def call(stored: Tensor) -> tuple[Tensor, Tensor]:
        x = run.centred(stored).to(run.device) * float(alpha)
        hidden = classifier.hidden(x, alpha, sigma)
        return hidden, classifier.head(hidden)

    level, digest = f"sigma / alpha = {float(sigma / alpha):.2g}", facts["classifier_sha256"]
    fingerprint = fingerprint_of(_autoencoder(run), digest, float(alpha), float(sigma), run.low, run.high)
    return RunClassifier(call, f"{digest[:8]} at {level}", fingerprint)


def _autoencoder(run: Run) -> dict[str, Tensor]:
    """The weights that make the codes of a latent run; none for other runs."""
    return {} if run.autoencoder is None else dict(run.autoencoder.scaled.state_dict())


def _default(stored_as: StoredAs, device: torch.device, trained: Trained | None) -> Features:
    """The first kind that suits: see `open_features`."""
    reasons = []
    for name in _suited(stored_as, trained):
        try:
            features = open_features(name, stored_as, device, trained)
        except ValueError as error:
            reasons.append(f"not {name}: {error}")
            continue
        others = "--features=NAME takes others (--mode=list)"
        on_stderr(f"features: {features.recipe}; {others}" + "".join(f"; {reason}" for reason in reasons))
        return features
    why = "; ".join(reasons)
    raise ValueError(f"expected features for samples {stored_as.shape}, found {why}: give --features=PACKAGE.NAME")


def _suited(stored_as: StoredAs, trained: Trained | None) -> list[str]:
    """Names in the order of preference."""
    photographs = stored_as.is_image and stored_as.shape[0] == 3 and stored_as.levels is not None
    names = ["inception"] if photographs and "inception" in FEATURES else []
    names += [] if trained is None else ["own"]
    if len(stored_as.shape) in (2, 3, 4):
        names.append("random")
    return [*names, "pixels" if math.prod(stored_as.shape) <= SMALL else "pca"]


def _needed(trained: Trained | None, stored_as: StoredAs, name: str) -> Trained:
    if trained is None:
        raise ValueError(
            f"expected a run for features {name}, got samples without one: give --workdir, or take --features=random"
        )
    data = trained.run.data
    if (data.shape, data.levels) != (stored_as.shape, stored_as.levels):
        raise ValueError(
            f"expected samples {data.shape} of {data.levels} levels, as the run of features {name} was trained on, got "
            f"{stored_as.shape} of {stored_as.levels}: take --features=random"
        )
    return trained


def _used_as_it_is(constructor: Callable[..., Any], keywords: dict[str, Any]) -> Callable[..., Any] | None:
    """A module, or a function of samples alone, with its other keywords bound; None for what makes features."""
    if isinstance(constructor, nn.Module):
        return constructor
    if isinstance(constructor, type):
        return None
    required = [
        key for key, p in inspect.signature(constructor).parameters.items()
        if p.default is inspect.Parameter.empty and p.kind is not inspect.Parameter.VAR_KEYWORD
    ]  # fmt: skip
    if len(required) != 1 or required[0] in (*FROM_DATA, *keywords):
        return None
    return functools.partial(constructor, **keywords) if keywords else constructor
