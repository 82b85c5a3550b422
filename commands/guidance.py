"""From the flags of guidance to a guided denoiser."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from scorefield.commands.conditioning import Conditioning, sampled_conditioning
from scorefield.commands.generate import Guide, guided
from scorefield.commands.run import Run, with_labels
from scorefield.commands.train_classifier import load_classifier
from scorefield.commands.trained import Trained, open_trained
from scorefield.configs import build
from scorefield.models.guidance import Auto, ClassifierGuidance
from scorefield.sde_lib.denoiser import DenoiserLike


@dataclass(frozen=True)
class Guidance(Guide):
    """What guides a run, and with which conditioning.

    Args:
        run: that is guided.
        scale: of classifier-free guidance, or of autoguidance.
        settings: keywords of `TwoDenoisers` beside the scale.
        bad: the denoiser of autoguidance.
        classifier: of noisy data.
        classifier_scale: of its gradient.
        described: what a report says of it.
    """

    run: Run
    scale: float = 1.0
    settings: dict[str, Any] = field(default_factory=dict)
    bad: nn.Module | None = None
    classifier: nn.Module | None = None
    classifier_scale: float = 0.0
    described: dict[str, Any] = field(default_factory=dict)

    @property
    def prepares(self) -> bool:
        """Whether the run's own conditioner makes tokens once for all steps: those of another network differ."""
        return self.bad is None

    def __call__(self, denoiser: DenoiserLike) -> DenoiserLike:
        """The guided denoiser."""
        if self.bad is not None:
            denoiser = Auto(denoiser, self.bad, self.scale, **self.settings)
        else:
            denoiser = guided(denoiser, self.scale, **self.settings)
        if self.classifier is None:
            return denoiser
        takes_label = self.run.num_classes is not None
        return ClassifierGuidance(denoiser, self.classifier, self.classifier_scale, conditional=takes_label)

    def conditioning(self, num: int, label: str | int | None, caption: str | None) -> Conditioning:
        """The conditioning of `num` samples: see `sampled_conditioning`. A classifier has classes of its own.

        Raises:
            ValueError: for options that the run does not take.
        """
        scale = 1.0 if self.bad is not None else self.scale
        if self.classifier is None or self.run.num_classes is not None:
            return sampled_conditioning(self.run, num, label=label, caption=caption, guidance=scale)
        if scale != 1.0:  # of classes that the denoiser does not take
            sampled_conditioning(self.run, num, caption=caption, guidance=scale)
        return sampled_conditioning(with_labels(self.run), num, label=label, caption=caption)


def guidance_of(
    trained: Trained,
    *,
    guidance: float = 1.0,
    interval: Sequence[float] | None = None,
    rescale: float | None = None,
    parallel: float | None = None,
    norm: float | None = None,
    guide: str | None = None,
    classifier: float | None = None,
) -> Guidance:
    """The guidance of a run by the flags of `sample`, `compare` and `edit`.

    Raises:
        ValueError: for settings out of range, a guide of another kind, or a run without a classifier.
    """
    chosen = {"rescale": rescale, "parallel": parallel, "norm": norm}
    settings: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
    if interval is not None and len(interval) != 2:
        raise ValueError(f"expected --guidance_interval of two noise levels, as 0.2,5, got {interval}: give two")
    if guidance == 1.0 and (settings or guide is not None):
        name = "guide" if guide is not None else f"guidance_{next(iter(settings))}"
        raise ValueError(f"expected --guidance beside --{name}, got none or 1, which guides nothing: give --guidance=2")
    described = {f"guidance_{key}": value for key, value in settings.items()}
    if interval is not None:
        settings["interval"] = (float(interval[0]), float(interval[1]))
        described["guidance_interval"] = list(interval)
    bad = module = None
    if guide is not None:
        other = _guide(trained, guide)
        bad = other.denoiser
        described["guide"] = {"name": guide, **other.described}
    if classifier is not None:
        module, facts = load_classifier(trained)
        described |= {"classifier": classifier, "classifier_sha256": facts["classifier_sha256"]}
    made = Guidance(trained.run, guidance, settings, bad, module, classifier or 0.0, described)
    Auto(trained.denoiser, trained.denoiser, guidance, **settings)  # refuses settings before anything is computed
    return made


def _guide(trained: Trained, guide: str) -> Trained:
    """The denoiser of another run, or of another checkpoint of this one.

    Raises:
        ValueError: if there is none, or its samples, path or classes are others.
    """
    run, place = trained.run, Path(guide).expanduser()
    device = str(run.device)
    if guide.isdecimal():
        return open_trained(run.workdir, device, trained.ema, checkpoint=guide)
    inside = place.absolute().parent.name == "checkpoints"
    home = place.absolute().parent.parent if inside else place
    if inside and home.resolve() == run.workdir.resolve():
        return open_trained(run.workdir, device, trained.ema, checkpoint=guide)
    other = open_trained(home, device, trained.ema, checkpoint=str(place) if inside else None)
    for name, own, theirs in _compared(run, other.run):
        if own != theirs:
            raise ValueError(
                f"expected --guide to be a run with the same {name} as {run.workdir}, {own}, got {theirs} in {home}: "
                "choose another, or an earlier checkpoint of this run"
            )
    return other


def _compared(run: Run, other: Run) -> list[tuple[str, object, object]]:
    """What must agree of two runs, as (name, ours, theirs)."""
    first, second = (
        {
            "shape": each.shape,
            "path": build.unparse(each.config.sde),
            "data range": (each.low, each.high),
            "number of classes": each.num_classes,
            "conditioning": sorted(build.conditioning_keywords(each.config)),
            "autoencoder": each.autoencoder and each.autoencoder.sha256,
        }
        for each in (run, other)
    )
    return [(name, own, second[name]) for name, own in first.items()]
