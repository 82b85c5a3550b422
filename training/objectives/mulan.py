"""Training on the bound of a path with a noise level for each dimension and a latent code, the path included."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from scorefield.likelihood.decoders import Decoder
from scorefield.sde_lib import MultivariateVP
from scorefield.sde_lib.broadcast import expand, one_each, precise
from scorefield.sde_lib.denoiser import BoundDenoiser, DenoiserLike, predict_noise
from scorefield.training import times as times_
from scorefield.training.engine import Objective, Step, finite
from scorefield.training.model import Model
from scorefield.training.objectives.dsm import DRAWN, Draw
from scorefield.training.objectives.elbo import check_times
from scorefield.training.times import Times

PARTS = ("prior", "diffusion", "reconstruction", "code")


def mulan_loss(
    denoiser: DenoiserLike,
    sde: MultivariateVP,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    start_eps: Tensor,
    code_uniform: Tensor,
    *,
    decoder: Decoder,
    importance: Tensor | None = None,
    cond: Mapping[str, Any] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """-ELBO in nats/dim by one draw for each example, (B,), and its parts.

        code             KL(q(c | x0) || all codes equally likely)
        prior            KL(q(x_1 | x0, c) || prior)
        diffusion        -1/2 sum_d lambda_d'(c, t) (eps_hat_d - eps_d)^2
        reconstruction   -log p(x0 | x_0, c)

    Sahoo et al. 2024, Eq. 9 and 11. The gradient of network and polynomials is that of the mean. The encoder's is
    exact for the divergence; for the rest a draw passes on the gradient of its mean, which is biased. The value depends
    on the path between its ends, unlike that of one noise level. The denoiser gets the code as `code`. All that is
    drawn is an argument.

    Args:
        denoiser: E[x0 | x, c].
        sde: the paths.
        x0: (B, *D).
        t: times, (B,), uniform on the path, or drawn by an `ImportanceTimes` on the straight line.
        eps: standard normal, (B, *D), the noise at t.
        start_eps: standard normal, (B, *D), the noise at t = 0 for the decoder.
        code_uniform: numbers on [0, 1), (B, m), that draw the code.
        decoder: see `likelihood.decoders`.
        importance: weights of the times, (B,), where an `ImportanceTimes` drew them.
        cond: keywords for the denoiser.

    Returns:
        The loss (B,); and its four parts in nats/dim, and eps_error, |eps_hat - eps|^2 / D.

    Raises:
        ValueError: if a part has another shape.
    """
    dims, t = x0[0].numel(), precise(t)
    code, kl = sde.infer(x0, code_uniform)
    path, model = sde.given(code), BoundDenoiser(denoiser, {**(cond or {}), "code": code}, len(x0))
    alpha, sigma = path.scales(t)
    squares = (predict_noise(model, path.perturb(x0, t, eps), alpha, sigma) - eps).square()
    cost = -path.slope(t) / 2
    diffusion = (expand(cost, squares) * squares).flatten(1).mean(1)
    if importance is not None:
        diffusion = diffusion * importance.to(diffusion)
    start = torch.full_like(t, sde.t_min)
    decoded = decoder.log_prob(model, x0, path.perturb(x0, start, start_eps), *path.scales(start))
    parts = {
        "prior": path.prior_kl(x0) / dims,
        "diffusion": one_each(diffusion, len(x0), "the diffusion loss"),
        "reconstruction": -one_each(decoded, len(x0), "the decoder").to(diffusion) / dims,
        "code": kl.to(diffusion) / dims,
    }
    return torch.stack(list(parts.values())).sum(0), {**parts, "eps_error": squares.detach().flatten(1).mean(1)}


def objective(
    sde: MultivariateVP,
    optimizer: torch.optim.Optimizer,
    *,
    decoder: Decoder,
    times: Times = times_.stratified,
    accept: Callable[[Step], Tensor] = finite,
) -> Objective:
    """The bound as an objective of the engine; it reports the parts of `mulan_loss`.

    Args:
        sde: the paths, the model's own.
        optimizer: of the weights, those of the path and its encoder among them.
        decoder: see `training.objectives.elbo.objective`.
        times: "stratified" or "uniform" in time, or an `ImportanceTimes`.
        accept: see `Objective`.

    Raises:
        ValueError: for times that the bound cannot take.
    """
    check_times(sde, times, None)
    draws = Draw(sde, times, more=("start_eps",))

    def draw(model: Model, batch: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        drawn = draws(model, batch, generator)
        uniform = torch.rand(len(drawn["x0"]), sde.size, generator=generator, device=generator.device)
        return {**drawn, "code_uniform": uniform}

    def loss(model: Model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return batch_loss(model.denoiser, sde, batch, decoder)

    return Objective(optimizer, loss, draw, accept=accept, after=draws.after)


def batch_loss(
    denoiser: DenoiserLike, sde: MultivariateVP, batch: dict[str, Tensor], decoder: Decoder
) -> tuple[Tensor, dict[str, Tensor]]:
    """`mulan_loss` of a batch as `objective` draws it."""
    cond = {name: value for name, value in batch.items() if name not in (*DRAWN, "start_eps", "code_uniform")}
    return mulan_loss(
        denoiser, sde, batch["x0"], batch["times"], batch["eps"], batch["start_eps"], batch["code_uniform"],
        decoder=decoder, importance=batch.get("importance"), cond=cond,
    )  # fmt: skip
