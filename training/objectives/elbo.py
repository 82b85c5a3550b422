"""Training on the evidence lower bound: the network, and a learned path with its ends."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from scorefield.likelihood.decoders import Decoder
from scorefield.sde_lib import SDE, LearnedVP
from scorefield.sde_lib.arguments import shown
from scorefield.sde_lib.broadcast import one_each, precise
from scorefield.sde_lib.denoiser import BoundDenoiser, DenoiserLike, predict_noise
from scorefield.sde_lib.sde import noised
from scorefield.training import times as times_
from scorefield.training.engine import Objective, Step, finite
from scorefield.training.model import Model
from scorefield.training.objectives.dsm import DRAWN, Draw
from scorefield.training.objectives.second_order import second_order_loss
from scorefield.training.times import ImportanceTimes, Times

PARTS = ("prior", "diffusion", "reconstruction")


def elbo_loss(
    denoiser: DenoiserLike,
    sde: SDE,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    start_eps: Tensor,
    *,
    decoder: Decoder,
    importance: Tensor | None = None,
    steps: int | None = None,
    second_order: float = 0.0,
    probe: Tensor | None = None,
    cond: Mapping[str, Any] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """-ELBO in nats/dim by one draw for each example, (B,), and its parts.

        prior            KL(q(x_T | x0) || prior)
        diffusion        -1/2 lambda'(t) |eps_hat - eps|^2
            with T steps T/2 expm1(lambda_s - lambda_t) |eps_hat - eps|^2,  s one step before t
        reconstruction   -log p(x0 | x_{t_min})

    Kingma et al. 2021, Eq. 11, 14 and 17, on the path's time, which is t in [0, 1] for theirs. All that is drawn is an
    argument. Of a `LearnedVP` the gradient is:

    - for the ends, that of the mean of all three parts;
    - for the interior in continuous time, that of the variance of the diffusion part. The mean does not depend on it,
      so d E[L^2] = E[2 L dL] is enough (Appendix I.2). One backward pass gives both;
    - for the interior with T steps, that of the mean.

    Args:
        denoiser: E[x0 | x].
        sde: the path.
        x0: (B, *D).
        t: times, (B,), uniform on the path, or drawn by an `ImportanceTimes`.
        eps: standard normal, (B, *D), the noise at t.
        start_eps: standard normal, (B, *D), the noise at t_min for the decoder.
        decoder: see `likelihood.decoders`.
        importance: weights of the times, (B,), where an `ImportanceTimes` drew them.
        steps: T, or None for continuous time. Times are then rounded up to the grid.
        second_order: times `second_order_loss` is added to |eps_hat - eps|^2 / D in the diffusion part of the loss, and
            not in the part that is reported. Its gradient is for the network alone.
        probe: standard normal, (B, *D), for that loss.
        cond: keywords for the denoiser.

    Returns:
        The loss (B,); and prior, diffusion and reconstruction in nats/dim, eps_error, |eps_hat - eps|^2 / D, and
        second_order, where it is in the loss.

    Raises:
        ValueError: if a part has another shape.
    """
    model, dims, factor = BoundDenoiser(denoiser, cond, len(x0)), x0[0].numel(), _Factor()
    alpha, sigma, cost = _noise_level(sde, precise(t), importance, steps, factor)
    x = noised(x0, alpha, sigma, eps)
    error = (predict_noise(model, x, alpha, sigma) - eps).square().flatten(1).mean(1)
    diffusion = one_each(cost.to(error) * error, len(x0), "the diffusion loss")
    factor.losses = diffusion.detach()
    with torch.set_grad_enabled(torch.is_grad_enabled() and (isinstance(sde, LearnedVP) or decoder.evaluations > 0)):
        start = torch.tensor(sde.t_min, dtype=torch.float64)
        decoded = decoder.log_prob(model, x0, sde.perturb(x0, start, start_eps), *sde.scales(start))
        reconstruction = -one_each(decoded, len(x0), "the decoder") / dims
        prior = sde.prior_kl(x0) / dims
    parts = {"prior": prior, "diffusion": diffusion, "reconstruction": reconstruction}
    loss = prior + diffusion + reconstruction.to(diffusion)
    numbers = {**parts, "eps_error": error.detach()}
    if second_order:
        assert probe is not None
        divergence = second_order_loss(model, x, alpha, sigma, eps, probe)
        numbers["second_order"] = divergence.detach()
        loss = loss + second_order * cost.detach().to(divergence) * divergence
    return loss, numbers


class _Factor:
    """Multiplies the gradient of a tensor (B,) by twice the losses, once these are known."""

    losses: Tensor

    def on(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            x.register_hook(lambda gradient: gradient * 2 * self.losses.to(gradient))  # type: ignore[no-untyped-call]
        return x


def _noise_level(
    sde: SDE, t: Tensor, importance: Tensor | None, steps: int | None, factor: _Factor
) -> tuple[Tensor, Tensor, Tensor]:
    """Alpha, sigma and what |eps_hat - eps|^2 / D costs at times t, (B,) each."""
    duration = sde.t_max - sde.t_min
    if steps is not None:
        if importance is not None:
            raise ValueError("expected times without importance weights for the ELBO of T steps: draw them uniformly")
        i = ((t - sde.t_min) / duration * steps).ceil().clamp(1, steps)
        s, t = (sde.t_min + duration * k / steps for k in (i - 1, i))
        return *sde.scales(t), steps / 2 * torch.expm1(sde.log_snr(s) - sde.log_snr(t))
    if importance is not None:
        ends = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=t.dtype, device=t.device))
        return *sde.scales(t), (ends[0] - ends[1]) / 2 * importance
    if not isinstance(sde, LearnedVP):
        alpha, sigma = sde.scales(t)
        return alpha, sigma, (sde.diffusion(t) / sigma).square() * duration / 2
    low, high = sde.ends(t)
    share, slope = (factor.on(each) for each in sde.share_and_slope(t))
    alpha, sigma = sde.scales_at(torch.lerp(high, low, share))
    return alpha, sigma, (high - low) * slope / 2


def objective(
    sde: SDE,
    optimizer: torch.optim.Optimizer,
    *,
    decoder: Decoder,
    times: Times = times_.log_snr,
    steps: int | None = None,
    second_order: float = 0.0,
    accept: Callable[[Step], Tensor] = finite,
) -> Objective:
    """The ELBO as an objective of the engine; it reports the parts of `elbo_loss`.

    Args:
        sde: the path; a learned one is the model's own.
        optimizer: of the weights, those of a learned path among them.
        decoder: `LevelDecoder(levels)` of integers, whose data then has to be the centres of the levels' cells.
        times: "stratified" or "uniform" in time, or an `ImportanceTimes`. These replace a learned interior.
        steps: T of a chain, or None for continuous time.
        second_order: see `elbo_loss`.
        accept: see `Objective`.

    Raises:
        ValueError: for fewer than 2 steps, or times that the bound or the path cannot take.
    """
    check_times(sde, times, steps)
    draw = Draw(sde, times, more=("start_eps", "probe") if second_order else ("start_eps",))

    def loss(model: Model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return batch_loss(model.denoiser, sde, batch, decoder, steps, second_order)

    return Objective(optimizer, loss, draw, accept=accept, after=draw.after)


def batch_loss(
    denoiser: DenoiserLike,
    sde: SDE,
    batch: dict[str, Tensor],
    decoder: Decoder,
    steps: int | None,
    second_order: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`elbo_loss` of a batch as `objective` draws it."""
    cond = {name: value for name, value in batch.items() if name not in (*DRAWN, "start_eps")}
    return elbo_loss(
        denoiser, sde, batch["x0"], batch["times"], batch["eps"], batch["start_eps"], decoder=decoder,
        importance=batch.get("importance"), steps=steps, second_order=second_order, probe=batch.get("probe"), cond=cond,
    )  # fmt: skip


def check_times(sde: SDE, times: Times, steps: int | None) -> None:
    """Raises ValueError unless the bound's integral, or its sum over T steps, can be drawn by these times."""
    over_time = times in (times_.uniform, times_.stratified)
    if steps is not None and steps < 2:
        raise ValueError(f"expected 2 steps of the ELBO's chain or more, got {steps}; leave it out for continuous time")
    if not over_time and not isinstance(times, ImportanceTimes):
        raise ValueError(
            f"expected times of the ELBO's integral, got {shown(times)}: use stratified, log_snr, idode or measured"
        )
    if steps is not None and not over_time:
        raise ValueError(f"expected stratified or uniform times of the ELBO's {steps} steps, got {shown(times)}")
    if isinstance(times, ImportanceTimes) and isinstance(sde, LearnedVP) and sde.interior != "linear":
        raise ValueError(
            f"expected stratified times to train the interior {sde.interior}, got {shown(times)}: these replace an "
            "interior, so take interior=linear with them"
        )
