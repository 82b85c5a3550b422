"""The papers' settings: path, parameterisation, loss, optimiser and sampler. The files of the data sets use these.

Four things differ from the papers. Where a paper trains on a list of noise levels, we also draw times between them, so
that any solver may stop there. Losses are means over values; the code of NCSNv2 and of Song et al. 2021 on VE has sums,
so its clipping acts at every step, and ours seldom. Integers become the centres of cells, (k + 1/2) / 256; most codes
have k / 255. A denoising at the end replaces a last step without noise.
"""

import math

import ml_collections

from scorefield.configs.build import GRIDS, NETWORKS, PRECONDITIONS, SDES, SOLVERS, TIMES, WEIGHTINGS, spec

# Switches of NCSN++ (Song et al. 2021, Appendix H) that make it the other networks.
DDPMPP = {"fir": (1, 1), "pyramid_in": "none", "frequencies": "timesteps"}
LARGE = {"pyramid_in": "skip", "pyramid_out": "skip"}  # NCSN++ at 256x256 and above


def optimise(
    config: ml_collections.ConfigDict,
    steps: int,
    batch: int,
    learning_rate: float,
    *,
    warmup: int = 0,
    clip: float = 0.0,
    ema: float = 0.9999,
    adam_eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """The length of training and of the warm-up, in steps of a batch, and Adam's settings."""
    config.training.update(
        images=steps * batch, batch=batch, learning_rate=learning_rate, warmup=warmup * batch, clip=clip, ema=ema,
        adam_eps=adam_eps, weight_decay=weight_decay, sample_every=10_000 * batch, checkpoint_every=5_000 * batch,
    )  # fmt: skip


def ddpm(config: ml_collections.ConfigDict, *, betas: str = "linear", variance: str = "large") -> None:
    """Ho et al. 2020, Section 3 and Appendix B: 1000 timesteps, |eps_hat - eps|^2, ancestral sampling."""
    config.transform.update(dequantise=False, flip=True)
    config.sde = spec(SDES, "ddpm", betas=betas)
    config.precondition = spec(PRECONDITIONS, "time_conditioned", predicts="eps", scale=1000.0, shift=-1.0)
    config.training.times = spec(TIMES, "uniform")
    _sample(config, spec(SOLVERS, "ancestral", variance=variance), spec(GRIDS, "trailing"), 1000)


def ncsnv2(
    config: ml_collections.ConfigDict, sigma_max: float, levels: int, steps: int, epsilon: float, depth: int = 4
) -> None:
    """Song and Ermon 2020, Techniques 1 to 5 and Appendix B: `levels` noise levels, `steps` Langevin steps at each.

    Their epsilon is half of our step size. They start sampling from uniform noise, we from the prior.
    """
    config.transform.update(low=0.0, dequantise=False, flip=True)
    config.sde = spec(SDES, "ve", sigma_max=sigma_max)
    config.net = spec(NETWORKS, "ncsnv2", depth=depth)
    config.precondition = spec(PRECONDITIONS, "scaled_score")
    config.training.weight = spec(WEIGHTINGS, "ncsn")
    config.training.times = spec(TIMES, "uniform")
    langevin = spec(SOLVERS, "langevin", steps=steps, step_size=2 * epsilon)
    _sample(config, langevin, spec(GRIDS, "geometric"), levels)


def song_vp(config: ml_collections.ConfigDict, sde: str = "vp") -> None:
    """Song et al. 2021 on VP or sub-VP (Appendix C): conditioned on 999 t, t from 1e-5, 1000 Euler-Maruyama steps."""
    config.transform.update(dequantise=False, flip=True)
    config.sde = spec(SDES, sde, t_min=1e-5)
    config.precondition = spec(PRECONDITIONS, "time_conditioned", predicts="eps", scale=999.0)
    config.training.times = spec(TIMES, "uniform")
    # Sampling ends at t = 1e-3.
    _sample(config, spec(SOLVERS, "euler_maruyama"), spec(GRIDS, "trailing"), 1000)


def song_ve(
    config: ml_collections.ConfigDict,
    sigma_max: float = 50.0,
    *,
    levels: int = 1000,
    snr: float = 0.16,
    discrete: bool = False,
) -> None:
    """Song et al. 2021 on VE (Appendix C and G): conditioned on log sigma, or on the level's index from the largest.

    Sampling corrects with a Langevin step at each level (norms of each sample, Alg. 4), then predicts the next level
    with reverse diffusion.
    """
    config.transform.update(low=0.0, dequantise=False, flip=True)
    config.sde = spec(SDES, "ve", sigma_max=sigma_max)
    config.net.unit_range = True
    time = {"scale": 1.0 - levels, "shift": levels - 1.0} if discrete else {"unit": "log_sigma"}
    config.precondition = spec(PRECONDITIONS, "time_conditioned", predicts="scaled_score", **time)
    config.training.times = spec(TIMES, "uniform")
    pc = spec(SOLVERS, "pc", predictor="reverse_diffusion", snr=snr, norms="sample", order="correct_first")
    _sample(config, pc, spec(GRIDS, "geometric"), levels)


def edm(
    config: ml_collections.ConfigDict,
    million: int,
    batch: int,
    learning_rate: float,
    *,
    half_life: float = 0.5,
    intervals: int = 17,
) -> None:
    """Karras et al. 2022, Table 1: sigma from 0.002 to 80, Heun's method with rho = 7; 18 steps with the last to zero.

    Appendix F.2: `million` million images, a warm-up of ten million, and an average with `half_life` in millions of
    images. Of their augmentation we have only the flip.
    """
    config.transform.update(dequantise=False, flip=True)
    config.sde = spec(SDES, "edm")
    config.precondition = spec(PRECONDITIONS, "edm")
    config.training.weight = spec(WEIGHTINGS, "edm")
    config.training.times = spec(TIMES, "log_normal")
    _sample(config, spec(SOLVERS, "heun", variable="sigma"), spec(GRIDS, "karras"), intervals)
    steps = math.ceil(million * 1e6 / batch)
    optimise(config, steps, batch, learning_rate, ema=0.5 ** (batch / (half_life * 1e6)))
    config.training.warmup = 10_000_000


def vdm(config: ml_collections.ConfigDict, interior: str = "linear") -> None:
    """Kingma et al. 2021: a learned path from 13.3 to -5 in log-SNR at first, by the bound; AdamW without biases.

    "linear" is learnable_scalar of their code, "monotone" its learnable_nnet. Theirs learns the second by the bound's
    mean, ours by its variance, as in the paper (Appendix I.2).
    """
    config.transform.update(dequantise=False, flip=False)
    config.sde = spec(SDES, "learned", interior=interior)
    config.precondition = spec(PRECONDITIONS, "eps")
    config.training.update(loss="elbo", betas=(0.9, 0.99), decay_biases=False)
    config.training.times = spec(TIMES, "stratified")
    _sample(config, spec(SOLVERS, "ancestral"), spec(GRIDS, "log_snr"), 1000)
    config.sampling.denoise = False  # the remaining noise is a sixth of the distance of two levels


def idode(config: ml_collections.ConfigDict) -> None:
    """Zheng et al. 2023 on VP: velocity prediction on VDM's first path, which stays; times proportional to alpha^2.

    Their second stage continues a run with `training.second_order=0.1`, for 200,000 steps on CIFAR-10. They evaluate
    with truncated-normal dequantisation (--dequantisation=truncated_normal).
    """
    vdm(config)
    config.sde = spec(SDES, "frozen")
    config.precondition = spec(PRECONDITIONS, "v")
    config.training.times = spec(TIMES, "idode")
    _sample(config, spec(SOLVERS, "adaptive"), spec(GRIDS, "log_snr"), 50)


def scoreflow(config: ml_collections.ConfigDict) -> None:
    """Song, Durkan et al. 2021 on sub-VP: deep DDPM++, likelihood weighting with importance sampling, t from 1e-2.

    Their variational dequantiser is trained afterwards, for 300,000 steps (--mode=train_dequantiser).
    """
    config.net = spec(NETWORKS, "ncsnpp", blocks=8, **DDPMPP)
    song_vp(config, "subvp")
    config.sde.t_min = 1e-2
    config.training.times = spec(TIMES, "scoreflow")
    _sample(config, spec(SOLVERS, "adaptive"), spec(GRIDS, "uniform"), 50)
    optimise(config, 950_000, 128, 2e-4, warmup=5_000, clip=1.0)


def mulan(config: ml_collections.ConfigDict) -> None:
    """Sahoo et al. 2024: a learned noise level for each pixel, by the bound; v-prediction; log-SNR from 13.3 to -5.

    Their code perturbs the logits of the code by noise, and samples with one fixed code. Ours draws codes exactly, and
    samples with codes as likely as the bound takes them to be.
    """
    config.transform.update(dequantise=False, flip=False)
    config.sde = spec(SDES, "mulan", width=3072, encoder_width=128, encoder_blocks=4)
    config.precondition = spec(PRECONDITIONS, "v")
    config.training.update(loss="elbo", betas=(0.9, 0.99), decay_biases=False)
    config.training.times = spec(TIMES, "stratified")
    _sample(config, spec(SOLVERS, "euler_maruyama"), spec(GRIDS, "uniform"), 1000)
    config.sampling.denoise = False  # as for vdm


def ncsnpp_256(config: ml_collections.ConfigDict, sigma_max: float) -> None:
    """Song et al. 2021, Appendix H, at 256x256: image pyramids that skip, 2000 noise levels."""
    config.net = spec(NETWORKS, "ncsnpp", multipliers=(1, 1, 2, 2, 2, 2, 2), blocks=2, attention=(4,), **LARGE)
    song_ve(config, sigma_max, levels=2000, snr=0.075)
    optimise(config, 2_400_000, 64, 2e-4, warmup=5_000, clip=1.0, ema=0.999)


def ddpm_256(config: ml_collections.ConfigDict, steps: int) -> None:
    """Ho et al. 2020, Appendix B, at 256x256."""
    config.net = spec(
        NETWORKS, "unet", multipliers=(1, 1, 2, 2, 4, 4), attention=(4,), frequencies="timesteps", smallest_group=1
    )
    ddpm(config, variance="small")
    optimise(config, steps, 64, 2e-5, warmup=5_000, clip=1.0)


def ncsnpp_1024(config: ml_collections.ConfigDict) -> None:
    """Song et al. 2021, Appendix H, at 1024x1024: eight levels from 16 to 512 channels wide, batches of 8."""
    multipliers = (1, 2, 4, 8, 16, 32, 32, 32)
    config.net = spec(NETWORKS, "ncsnpp", width=16, multipliers=multipliers, blocks=1, attention=(6,), **LARGE)
    song_ve(config, 1348.0, levels=2000, snr=0.15)
    optimise(config, 2_400_000, 8, 2e-4, warmup=5_000, clip=1.0)


def _sample(
    config: ml_collections.ConfigDict, solver: ml_collections.ConfigDict, grid: ml_collections.ConfigDict, steps: int
) -> None:
    config.sampling.solver, config.sampling.grid, config.sampling.steps = solver, grid, steps
