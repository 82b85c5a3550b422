"""From noise to samples, in batches of bounded memory, with a noise source for each sample."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scorefield import models, solvers
from scorefield.commands.progress_bar import Bar, progress_bar
from scorefield.commands.run import Run
from scorefield.configs import build
from scorefield.models.conditioned import ConditionedNetwork
from scorefield.sde_lib.denoiser import Cond, DenoiserLike
from scorefield.solvers import Solver
from scorefield.solvers.solver import OnStep
from scorefield.training.distributed.ranks import Ranks

ALONE = Ranks()


class Guide(Protocol):
    """What makes a guided denoiser.

    `prepares` says whether the run's conditioner may make tokens once for all steps.
    """

    @property
    def prepares(self) -> bool: ...

    def __call__(self, denoiser: DenoiserLike) -> DenoiserLike: ...


def generate(
    run: Run,
    denoiser: DenoiserLike,
    num: int,
    *,
    sampling: Mapping[str, Any],
    seed: int,
    batch: int = 256,
    cond: Cond | None = None,
    guide: Guide | None = None,
    show: bool = True,
    bar: Bar | None = None,
    trajectory: OnStep = None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Draw `num` samples (N, *D) in the model's values, on the CPU. They depend on the seed and not on the batch.

    Several ranks share the same batches. The first rank returns all samples, equal to the bit to those of one process.
    The others return none, (0, *D).

    Args:
        run: the run, for its path and shape.
        denoiser: E[x0 | x].
        num: number of samples.
        sampling: a mapping with `solver` and `grid` (specs, as text or mappings), `steps` and `denoise`.
        seed: seed of the noise.
        batch: samples in one batch.
        cond: keywords of the denoiser, with a row for each sample, (N, ...).
        guide: makes the guided denoiser.
        show: whether to show the progress.
        bar: which counts the samples in place of one of its own.
        trajectory: called after each step of the first batch, as `on_step` of a solver.
        ranks: the processes that share the work. All of them must call.

    Raises:
        ValueError: if a sample is not finite, or for a solver or a grid that is none.
    """
    draw = batch_sampler(run, denoiser, sampling=sampling, seed=seed, cond=cond, guide=guide)
    samples: dict[int, Tensor] = {}
    firsts = ranks.shard(range(0, num, batch))
    own = sum(min(batch, num - first) for first in firsts)
    shown = nullcontext(bar) if bar is not None else progress_bar("sample", own, show and ranks.first)
    with shown as counter:
        for first in firsts:
            count = min(batch, num - first)
            samples[first] = draw(first, count, counter.steps(count, trajectory if first == 0 else None))
    samples = ranks.gather(samples)
    if not ranks.first:
        return torch.empty(0, *run.shape)
    x = torch.cat([samples[first] for first in sorted(samples)])
    return finite(x, sampling)


def batch_sampler(
    run: Run,
    denoiser: DenoiserLike,
    *,
    sampling: Mapping[str, Any],
    seed: int,
    cond: Cond | None = None,
    guide: Guide | None = None,
) -> Callable[[int, int, OnStep], Tensor]:
    """A function of `first` and `count` that draws these samples on the CPU, (count, *D); arguments as of `generate`.

    Its third argument is the `on_step` of the solver. The device holds one batch at a time.

    Raises:
        ValueError: for a solver or a grid that is none.
    """
    solver: Solver = build.build(build.SOLVERS, sampling["solver"])
    ts, model = grid(run, sampling), denoiser if guide is None else guide(denoiser)
    prepares = guide is None or guide.prepares

    def draw(first: int, count: int, on_step: OnStep) -> Tensor:
        given = of_rows(cond, run.device, slice(first, first + count))
        return solvers.sample(
            model,
            run.sde,
            (count, *run.shape),
            solver=solver,
            grid=ts,
            cond=prepared(denoiser, given, run.shape) if prepares else given,
            denoise=sampling["denoise"],
            seed=seed,
            first=first,
            device=run.device,
            on_step=on_step,
        ).cpu()

    return draw


def finite(x: Tensor, sampling: Mapping[str, Any]) -> Tensor:
    """The samples.

    Raises:
        ValueError: if one is not finite.
    """
    if not bool(x.isfinite().all()):
        solver = build.unparse(sampling["solver"])
        raise ValueError(f"{solver} gave values that are not finite: use more --steps, or smaller ones")
    return x


def grid(run: Run, sampling: Mapping[str, Any]) -> Tensor:
    """The falling grid of times of `sampling`, (steps + 1,)."""
    ts: Tensor = build.build(build.GRIDS, sampling["grid"], sde=run.sde, steps=sampling["steps"], workdir=run.workdir)
    return ts


def guided(denoiser: DenoiserLike, guidance: float, **settings: Any) -> DenoiserLike:
    """The denoiser with classifier-free guidance, if the scale is not 1, by all of its conditioning.

    Args:
        denoiser: E[x0 | x].
        guidance: the scale.
        settings: other keywords of `ClassifierFree`.

    Raises:
        ValueError: if these are not of one.
    """
    if guidance == 1.0:
        return denoiser
    network = conditioned_network(denoiser)
    without = ("label",) if network is None else ("label", *network.conditioning)
    return models.ClassifierFree(denoiser, guidance, without, **settings)


def of_rows(cond: Cond | None, device: torch.device, rows: slice = slice(None)) -> dict[str, Any]:
    """The conditioning of some samples, on a device."""
    return {key: value[rows].to(device) for key, value in (cond or {}).items()}


def prepared(denoiser: DenoiserLike, cond: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """The conditioning as the network takes it: a conditioner encodes it here, once, and not at every step."""
    network = conditioned_network(denoiser)
    if network is None:
        return cond
    with torch.no_grad():
        return network.conditioner.prepare(cond, (shape[-2], shape[-1]) if len(shape) == 3 else None)


def conditioned_network(denoiser: DenoiserLike) -> ConditionedNetwork | None:
    """The network with a conditioner within a denoiser, if there is one."""
    while isinstance(denoiser, models.CountCalls):
        denoiser = denoiser.denoiser
    modules = denoiser.modules() if isinstance(denoiser, nn.Module) else ()
    return next((module for module in modules if isinstance(module, ConditionedNetwork)), None)
