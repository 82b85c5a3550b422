"""Training a classifier of noisy data: cross-entropy at every noise level."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from scorefield.sde_lib import SDE
from scorefield.training import times
from scorefield.training.engine import Batch, Objective, Step, run
from scorefield.training.model import Model
from scorefield.training.state import TrainingState


def objective(optimizer: torch.optim.Optimizer, sde: SDE, at: times.Times = times.log_snr) -> Objective:
    """The loss  -log p(label | alpha(t) x0 + sigma(t) eps)  in nats, as an objective of the engine.

    It reports `correct`, 1 where the likeliest class is the label, (B,).
    """

    def draw(model: Model, batch: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        x0 = batch["x0"]
        t = at(sde, len(x0), generator)
        eps = torch.randn(x0.shape, generator=generator, device=generator.device)
        return {"times": t, "eps": eps}

    def loss(model: Model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        assert model.classifier is not None
        t, label = batch["times"], batch["label"]
        logits = model.classifier(sde.perturb(batch["x0"], t, batch["eps"]), *sde.scales(t))
        return cross_entropy(logits, label, reduction="none"), {"correct": (logits.argmax(1) == label).float()}

    return Objective(optimizer, loss, draw)


def train_classifier(
    classifier: nn.Module,
    sde: SDE,
    loader: Iterable[Batch],
    *,
    images: int,
    state: TrainingState | None = None,
    schedule: Callable[[int], float] = lambda images: 1.0,
    at: times.Times = times.log_snr,
    clip: float | None = 1.0,
) -> Iterator[Step]:
    """Train p(label | x_t) for classifier guidance (Dhariwal and Nichol 2021, Section 4).

    Args:
        classifier: trained in place; (x, alpha, sigma) -> logits (B, K), as `NoisyClassifier`.
        sde: the path of the denoiser that it will guide.
        loader: yields dicts with "x0" (B, *D) and "label" (B,).
        images: the length of training, counted from the start and not from the state's position.
        state: optimiser, averages, generator and progress; a new one by default, with AdamW at 1e-3. Its model is
            `Model(classifier=classifier)`.
        schedule: factor on the optimiser's learning rate, as a function of the images seen.
        at: which noise levels; uniform in the log-SNR by default.
        clip: largest norm of the gradient, None for no limit.

    Raises:
        ValueError: if the loader is empty, or the state is of another classifier.
    """
    if state is None:
        state = TrainingState(Model(classifier=classifier), torch.optim.AdamW(classifier.parameters(), lr=1e-3))
    if state.model.classifier is not classifier:
        raise ValueError("expected a state of this classifier: build TrainingState(Model(classifier=classifier))")
    cross = objective(state.optimizer, sde, at)
    return (step for (step,) in run(state, [cross], loader, images=images, schedule=schedule, clip=clip))


@torch.no_grad()
def accuracy(classifier: nn.Module, sde: SDE, t: float, x0: Tensor, label: Tensor, eps: Tensor) -> float:
    """The share of noisy samples whose likeliest class is their label.

    Args:
        classifier: as for training.
        sde: its path.
        t: the time of the noise.
        x0: clean samples, (B, *D).
        label: their classes, (B,).
        eps: the noise, (B, *D).
    """
    logits = classifier(sde.perturb(x0, t, eps), *sde.scales(t))
    return float((logits.argmax(1) == label).double().mean())
