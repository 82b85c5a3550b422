"""What `--mode=likelihood` scores with: the run with its options, and of a latent run its autoencoder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from scorefield.commands.autoencoder_files import encoded_at_once
from scorefield.commands.likelihood.image_model import NoisyCodes, image_model
from scorefield.commands.progress_bar import Bar, progress_bar
from scorefield.commands.run import Run
from scorefield.commands.train_dequantiser import load_dequantiser
from scorefield.commands.trained import Trained
from scorefield.commands.training_times import read_times
from scorefield.configs import build
from scorefield.likelihood import DatasetScorer, GaussianPrior, ImageScorer, Moments, PixelDistribution
from scorefield.sde_lib.denoiser import Cond
from scorefield.sde_lib.level_density import LevelDensity
from scorefield.training.data.batches import tensor
from scorefield.training.distributed.ranks import Ranks

MOMENT_IMAGES = 10_000  # training images from which --prior=data takes its moments
PRIORS = ("standard", "data")


def scorer_of(
    trained: Trained, stored: Tensor, cond: Cond, *, dequantisation: str | None, prior: str, times: str,
    code_draws: int | None, batch: int = 128, **settings: Any,
) -> tuple[DatasetScorer, dict[str, Any]]:  # fmt: skip
    """The scorer of stored values, and what decides its values beside the options, for a report.

    Args:
        trained: the run with its weights.
        stored: of the data, (N, *D).
        cond: conditioning, with a row for each.
        dequantisation: its spec; None for the default.
        prior: "standard" or "data".
        times: "log_snr" or "measured".
        code_draws: codes of each image of a latent run; None for one.
        batch: the most images that the networks see at once.
        settings: of `DatasetScorer`.

    Raises:
        ValueError: if an option does not suit the run.
    """
    run = trained.run
    settings |= {"low": run.low, "high": run.high, "device": run.device, "density": _density(run.workdir, times)}
    of_prior = _prior(run, prior, settings["seed"], batch)
    if run.autoencoder is None:
        if code_draws is not None:
            raise ValueError("expected no --code_draws, because this run has no autoencoder: leave it out")
        written, more, sha256 = dequantisation_of(trained, dequantisation)
        scorer = DatasetScorer(
            trained.denoiser, run.sde, stored, run.data.levels, of_prior, cond=cond, **more, **settings
        )
        return scorer, {"dequantisation": written, "dequantiser_sha256": sha256}
    if dequantisation is not None:
        raise ValueError(
            f"expected no --dequantisation of a latent run, whose codes are continuous, got {dequantisation}: leave it "
            "out"
        )
    kept = image_model(trained, of_prior, batch)
    images = ImageScorer(
        trained.denoiser, run.sde, stored, run.data.levels, of_prior, cond=cond, **settings,
        autoencoder=NoisyCodes(run.autoencoder.scaled, kept["noise"]), code_draws=code_draws or 1,
        pixels=PixelDistribution.read(kept["distribution"]), at_once=min(encoded_at_once(run.data.shape), batch),
    )  # fmt: skip
    return images, {"code_draws": images.code_draws, "image_model": kept}


def dequantisation_of(trained: Trained, spec: str | None) -> tuple[str | None, dict[str, Any], str | None]:
    """The dequantisation as it is written, the scorer's setting for it, and the hash of its weights if it has any."""
    if trained.run.data.levels is None:
        if spec is not None:
            raise ValueError(
                "expected no --dequantisation, because the data is continuous. It has a density, which depends on the "
                "unit of the data and is given in nats/dim; bits/dim, which count levels, are refused"
            )
        return None, {}, None
    parsed = build.modern(build.DEQUANTISATIONS, spec or "uniform")
    more, sha256 = {}, None
    if parsed["name"] == "variational":
        more["flow"], facts = load_dequantiser(trained)
        sha256 = facts["dequantiser_sha256"]
    built = build.build(build.DEQUANTISATIONS, parsed, **more)
    return build.unparse(parsed), {"dequantisation": built}, sha256


def finite(stored: Tensor, name: str) -> Tensor:
    """Stored values, once they are known to be finite."""
    if stored.is_floating_point() and not bool(stored.isfinite().all()):
        raise ValueError(f"expected finite values, got NaN or infinity in {name}: correct or remove its images")
    return stored


def _density(workdir: Path, times: str) -> LevelDensity | None:
    if times not in ("log_snr", "measured"):
        raise ValueError(f"expected --times of log_snr or measured, got {times!r}")
    return read_times(workdir) if times == "measured" else None


def _prior(run: Run, name: str, seed: int, batch: int) -> GaussianPrior:
    if name not in PRIORS:
        raise ValueError(f"expected --prior of {' or '.join(PRIORS)}, got {name!r}")
    if name == "standard":
        return GaussianPrior.standard(run.sde)
    some = run.dataset("train").subset(MOMENT_IMAGES, seed)

    def batches(bar: Bar) -> Iterator[Tensor]:
        for start in range(0, len(some), batch):
            yield run.centred(tensor(some.x[start : start + batch]))
            bar.skip(min(batch, len(some) - start))

    with progress_bar("moments of the prior", len(some), Ranks.current().first, unit="image") as bar:
        return GaussianPrior.matched(run.sde, Moments.of(batches(bar)))
