"""Training an autoencoder: reconstruction, perceptual and adversarial losses, and the loss on its codes."""

from collections import deque
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from scorefield.models.networks.autoencoder import ImageAutoencoder
from scorefield.models.networks.quantisers import Quantiser
from scorefield.training.distributed.ranks import Ranks
from scorefield.training.engine import Objective, Step, finite
from scorefield.training.model import Model
from scorefield.training.objectives.adversarial import Start, adaptive_weight, hinge
from scorefield.training.state import TrainingState

Perceptual = Callable[[Tensor, Tensor], Tensor]  # two batches of images (B, C, H, W) -> distances (B,)
NORMS = {"l1": torch.abs, "l2": torch.square}


def objectives(
    optimizer: torch.optim.Optimizer,
    discriminator_optimizer: torch.optim.Optimizer | None = None,
    *,
    norm: str = "l1",
    perceptual: Perceptual | None = None,
    perceptual_weight: float = 1.0,
    kl: float = 1e-6,
    codebook: float = 1.0,
    adversarial: float = 0.5,
    largest: float = 1e4,
    start: Start | None = None,
    accept: Callable[[Step], Tensor] = finite,
) -> list[Objective]:
    """The objectives of an autoencoder and its discriminator, for `training.engine.run`.

        nll = mean |x - x_hat| + perceptual_weight d(x, x_hat)
        loss = nll + kl KL(q(z | x) || N(0, 1)) / D + codebook quantiser's loss - adversarial lambda mean D(x_hat)

    Rombach et al. 2022, Eq. 25, with the adaptive weight lambda of `adaptive_weight`. D is the number of dimensions of
    an image. The code of LDM has D times this loss for KL (it sums over the image), and this loss for a codebook. Its
    constants therefore keep their meaning: kl = 1e-6, codebook = 1, adversarial = 0.5 and 0.75. Its learning rates do
    too, since a factor on the loss does not change Adam's steps. With a loss for each dimension one `clip` suits images
    of all sizes. Its limit of lambda, 1e4, is for D times this lambda where it trains with KL.

    Before the start neither network pays for the adversarial loss. From then on both move at every step, on the same
    reconstructions. `Model(autoencoder=..., discriminator=Adversary(PatchGAN(channels)))` is what they train. It is
    `state.more_optimizers` that holds the discriminator's optimiser.

    The first reports `reconstruction` (mean |x - x_hat|), `perceptual`, `regulariser` (as the loss has it),
    `adversarial` (-mean D(x_hat)), `adversarial_weight` (lambda), and the autoencoder's own numbers; the second
    `logit_real` and `logit_fake`. With `accumulate`, lambda is that of each part, over all processes.

    Args:
        optimizer: of the autoencoder.
        discriminator_optimizer: of the discriminator; None trains without one.
        norm: "l1", or "l2" for squares.
        perceptual: a distance of images, as `models.perceptual.LPIPS`; None for none.
        perceptual_weight: of that distance.
        kl: weight of the divergence, for an autoencoder with a variance.
        codebook: weight of the quantiser's loss, for one that quantises.
        adversarial: weight of the adversarial loss; 0 trains without it.
        largest: limit of lambda.
        start: of the adversarial loss; by default at step 50,001, over 1,000 steps.
        accept: see `Objective`.

    Raises:
        ValueError: for another norm, or a negative weight.
    """
    if norm not in NORMS:
        raise ValueError(f"expected a norm of {' or '.join(NORMS)}, got {norm!r}")
    weights = {
        "perceptual_weight": perceptual_weight, "kl": kl, "codebook": codebook, "adversarial": adversarial,
        "largest": largest,
    }  # fmt: skip
    if wrong := [f"{name}={value}" for name, value in weights.items() if not value >= 0]:
        raise ValueError(f"expected weights of at least 0, got {', '.join(wrong)}")
    parts = _Parts(norm, perceptual, weights, (start or Start()) if discriminator_optimizer and adversarial else None)
    first = Objective(optimizer, parts.loss, parts.draw, due=parts.begin, accept=accept, after=parts.after)
    if discriminator_optimizer is None or not adversarial:
        return [first]
    return [first, Objective(discriminator_optimizer, parts.discriminator_loss, due=parts.runs)]


class _Parts:
    """What the two objectives of a step share."""

    def __init__(
        self, norm: str, perceptual: Perceptual | None, weights: dict[str, float], start: Start | None
    ) -> None:
        self.norm, self.perceptual, self.weights, self.start = NORMS[norm], perceptual, weights, start
        self.share = 0.0  # of the adversarial weight at this step
        self.fakes: deque[Tensor] = deque()  # a step's reconstructions, for the discriminator
        self.state: TrainingState | None = None

    def begin(self, state: TrainingState) -> bool:
        self.state = state
        self.share = self.start.share(state) if self.start else 0.0
        self.fakes.clear()
        return True

    def runs(self, state: TrainingState) -> bool:
        return self.share > 0

    def draw(self, model: Model, batch: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        (count, _, height, width), net = batch["x0"].shape, _autoencoder(model)
        shape = (count, net.code_channels, height // net.factor, width // net.factor)
        return {"noise": torch.randn(shape, generator=generator, device=generator.device)}

    def loss(self, model: Model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        x = batch["x0"]
        made = _autoencoder(model).reconstruct(x, batch["noise"])
        images = _exact(made.images)
        regulariser = made.regulariser * (
            self.weights["codebook"] if made.index is not None else self.weights["kl"] / x[0].numel()
        )
        if self.share:
            nll, numbers = self._with_adversary(model, x, images)
        else:
            nll, numbers = self._nll(x, images)
            numbers |= {"adversarial": torch.zeros_like(nll), "adversarial_weight": torch.zeros_like(nll)}
        return nll + regulariser, {**numbers, "regulariser": regulariser, **made.numbers}

    def discriminator_loss(self, model: Model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        assert model.discriminator is not None
        x, fake = batch["x0"], self.fakes[0]
        if len(fake) == len(x):
            self.fakes.rotate(-1)  # a part of a batch has its own; whoever repeats a loss finds them again
        else:
            fake = torch.cat(tuple(self.fakes))
        logits = model.discriminator(torch.cat((x, fake)))
        real, fake = _exact(logits).chunk(2)
        return hinge(real, fake), {"logit_real": real.flatten(1).mean(1), "logit_fake": fake.flatten(1).mean(1)}

    def after(self, step: Step) -> None:
        assert self.state is not None
        for module in _autoencoder(self.state.model).modules():
            if isinstance(module, Quantiser):
                module.update(self.state.generator, Ranks.current().all_gather)
        if self.start is not None:
            self.start.watch(self.state, step.numbers["reconstruction"] + step.numbers["perceptual"])

    def _nll(self, x: Tensor, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        reconstruction = self.norm(x - images).flatten(1).mean(1)
        distance = torch.zeros_like(reconstruction)
        if self.perceptual is not None and self.weights["perceptual_weight"]:
            distance = self.weights["perceptual_weight"] * self.perceptual(images, x)
        return reconstruction + distance, {"reconstruction": reconstruction, "perceptual": distance}

    def _with_adversary(self, model: Model, x: Tensor, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Both losses by one pass through each network: their gradients meet at the images.

        The value is that of the losses, and its gradient goes through the images alone.
        """
        assert model.discriminator is not None
        leaf = images.detach().requires_grad_()
        nll, numbers = self._nll(x, leaf)
        (first,) = torch.autograd.grad(nll.sum(), leaf)
        g = -_exact(model.discriminator(leaf)).flatten(1).mean(1)
        (second,) = torch.autograd.grad(g.sum(), leaf)
        weight = adaptive_weight(
            images, _autoencoder(model).last_layer, first / len(x), second / len(x), self.weights["largest"]
        )
        factor = self.share * self.weights["adversarial"] * weight
        value = (nll + factor * g).detach()
        through = (images * (first + factor * second)).flatten(1).sum(1)
        self.fakes.append(leaf.detach())
        numbers |= {"adversarial": g, "adversarial_weight": weight.expand(len(x))}
        return value + through - through.detach(), {name: each.detach() for name, each in numbers.items()}


def _autoencoder(model: Model) -> ImageAutoencoder:
    net = model.autoencoder
    if not isinstance(net, ImageAutoencoder):
        raise ValueError(
            f"expected an autoencoder of models.networks.autoencoder in the model, got {type(net).__name__}: build "
            "Model(autoencoder=...)"
        )
    return net


def _exact(x: Tensor) -> Tensor:
    """In at least float32: losses lose their digits in 16 bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
