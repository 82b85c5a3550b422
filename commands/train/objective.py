"""What a run minimises: its configuration as an objective of the engine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from scorefield.commands.run import Run
from scorefield.configs import build
from scorefield.likelihood.decoders import Decoder, GaussianDecoder, LevelDecoder
from scorefield.sde_lib import LearnedVP, MultivariateVP
from scorefield.training import Objective, Step, TrainingState
from scorefield.training.objectives import dsm, elbo, mulan
from scorefield.training.times import ImportanceTimes, Measured, Times


@dataclass
class Loss:
    """The loss of a configuration.

    Args:
        run: to train.

    Raises:
        ValueError: if the loss does not suit the path, the times or the data.
    """

    run: Run

    def __post_init__(self) -> None:
        run, settings = self.run, self.run.config.training
        self.times: Times = build.build(build.TIMES, settings.times)
        self.weight = build.build(build.WEIGHTINGS, settings.weight)
        self.steps: int | None = settings.elbo_steps or None
        self.second_order = float(settings.get("second_order", 0.0))
        self.norm = str(settings.get("norm", "l2"))
        if not self.of_bound:
            if isinstance(run.sde, LearnedVP | MultivariateVP):
                raise ValueError(
                    "expected training.loss of elbo for a learned path, got dsm, which has no meaning for its ends: "
                    "set --config.training.loss=elbo"
                )
            return
        if isinstance(run.sde, MultivariateVP) and (self.steps is not None or self.second_order):
            raise ValueError(
                f"expected training.elbo_steps and training.second_order of 0 for the path {run.config.sde.name}, got "
                f"{self.steps or 0} and {self.second_order:g}: its bound is in continuous time"
            )
        elbo.check_times(run.sde, self.times, self.steps)
        if run.levels is not None and run.config.transform.dequantise:
            raise ValueError(
                "expected transform.dequantise to be False with training.loss=elbo, whose decoder knows the centres of "
                "the levels only: set --config.transform.dequantise=false"
            )

    @property
    def of_bound(self) -> bool:
        """Whether it is the ELBO."""
        return bool(self.run.config.training.loss == "elbo")

    @property
    def measured(self) -> Measured | None:
        """The times, if they remember what they have seen."""
        return self.times if isinstance(self.times, Measured) else None

    @property
    def advice(self) -> str:
        """A line for whoever trains on the bound of a fixed path by times that are uniform in time; or nothing."""
        learned = isinstance(self.run.sde, LearnedVP | MultivariateVP)
        if not self.of_bound or learned or self.steps is not None or isinstance(self.times, ImportanceTimes):
            return ""
        return (
            f"times that are uniform in time make the loss vary more on {self.run.config.sde.name}: "
            "--config.training.times=measured makes it vary less"
        )

    @property
    def parts(self) -> tuple[str, ...]:
        """What it reports beside the error in the noise."""
        if isinstance(self.run.sde, MultivariateVP):
            return mulan.PARTS
        return elbo.PARTS if self.of_bound else ()

    @property
    def numbers(self) -> tuple[str, ...]:
        """What it reports beside those parts."""
        return ("second_order",) if self.second_order else ()

    @property
    def decoder(self) -> Decoder:
        """Of the bound's reconstruction part."""
        run = self.run
        return GaussianDecoder() if run.levels is None else LevelDecoder(run.levels, run.low, run.high)

    def of_batch(self, denoiser: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of a batch with its drawn random numbers, and what else is reported."""
        if isinstance(self.run.sde, MultivariateVP):
            return mulan.batch_loss(denoiser, self.run.sde, batch, self.decoder)
        if self.of_bound:
            return elbo.batch_loss(denoiser, self.run.sde, batch, self.decoder, self.steps, self.second_order)
        return dsm.batch_loss(denoiser, self.run.sde, batch, self.weight, self.second_order, self.norm)

    def objective(self, state: TrainingState, accept: Callable[[Step], Tensor]) -> Objective:
        """The objective for the engine."""
        sde = self.run.sde
        if isinstance(sde, MultivariateVP):
            return mulan.objective(sde, state.optimizer, decoder=self.decoder, times=self.times, accept=accept)
        options = dict[str, Any](times=self.times, second_order=self.second_order, accept=accept)
        if self.of_bound:
            return elbo.objective(sde, state.optimizer, decoder=self.decoder, steps=self.steps, **options)
        return dsm.objective(sde, state.optimizer, weight=self.weight, norm=self.norm, **options)
