"""CIFAR-10 with published hyper-parameters.

- ncsn: Song and Ermon 2019. ncsnv2: Song and Ermon 2020.
- ddpm: Ho et al. 2020. vp, subvp, ve: its network and optimiser on the continuous paths, with our parameterisations.
- NETWORK_PATH: Song et al. 2021 (score_sde_pytorch). The networks are ddpm, ddpmpp, ddpmpp_deep, ncsnpp and
  ncsnpp_deep, the paths ve, vp and subvp, in the published pairs. Without a path, ddpmpp and ddpmpp_deep are on vp,
  ncsnpp and ncsnpp_deep on ve.
- vdm, vdm_aug: Kingma et al. 2021, without and with augmentation (configs/cifar10.py and cifar10_aug_paper.py of their
  code). Of their augmentation we have only the flip, without its conditioning.
- scoreflow: Song, Durkan et al. 2021. idode: Zheng et al. 2023. mulan: Sahoo et al. 2024.
- edm, edm_ncsnpp: Karras et al. 2022, DDPM++ and NCSN++ (their configurations vp and ve), unconditional. adm: the same
  training with ADM's network, which their code offers without published results.
"""

from collections.abc import Callable
from functools import partial

import ml_collections

from scorefield.configs.build import DATASETS, GRIDS, NETWORKS, PRECONDITIONS, SDES, SOLVERS, TIMES, WEIGHTINGS, spec
from scorefield.configs.defaults import along, check_variant, defaults
from scorefield.configs.papers import (
    DDPMPP,
    ddpm,
    edm,
    idode,
    mulan,
    ncsnv2,
    optimise,
    scoreflow,
    song_ve,
    song_vp,
    vdm,
)

Setup = Callable[[ml_collections.ConfigDict], None]


def _ho(config: ml_collections.ConfigDict) -> None:
    """Ho et al. 2020, Appendix B."""
    config.net = spec(NETWORKS, "unet", dropout=0.1, frequencies="timesteps", smallest_group=1)
    optimise(config, 800_000, 128, 2e-4, warmup=5_000, clip=1.0)
    ddpm(config)


def _ours(config: ml_collections.ConfigDict, sde: str) -> None:
    _ho(config)
    config.net = spec(NETWORKS, "unet", dropout=0.1)
    config.precondition = spec(PRECONDITIONS, "eps")
    along(config, spec(SDES, sde))
    config.sampling.solver, config.sampling.grid = spec(SOLVERS, "ddim", eta=1.0), spec(GRIDS, "uniform")
    config.sampling.steps = 999  # and the last denoising: 1000 evaluations


def _song(config: ml_collections.ConfigDict, network: str, path: str) -> None:
    """Song et al. 2021, Appendix C, G and H."""
    kind, _, deep = network.partition("_")
    ve = path == "ve"
    if kind == "ddpm":
        config.net = spec(NETWORKS, "unet", dropout=0.1, frequencies="timesteps", smallest_group=1)
        config.net.attention_up = "last"
    else:
        switches = DDPMPP if kind == "ddpmpp" else {"frequencies": "gaussian" if ve else "timesteps"}
        config.net = spec(NETWORKS, "ncsnpp", blocks=8 if deep else 4, dropout=0.1, **switches)
    steps = 950_000 if deep else 1_300_000
    optimise(config, steps, 128, 2e-4, warmup=5_000, clip=1.0, ema=0.999 if ve else 0.9999)
    if ve:
        song_ve(config, discrete=kind == "ddpm")
    else:
        song_vp(config, path)


def _ncsn(config: ml_collections.ConfigDict) -> None:
    """Song and Ermon 2019, Section 5 and Appendix B."""
    levels = tuple(0.01 ** (i / 9) for i in range(10))
    config.transform.update(low=0.0, flip=True)  # images in 0 .. 1
    config.sde = spec(SDES, "ve", sigma_min=levels[-1], sigma_max=levels[0])
    config.net = spec(NETWORKS, "ncsn", sigmas=levels)
    config.precondition = spec(PRECONDITIONS, "score")
    optimise(config, 200_000, 128, 1e-3, ema=0.0)
    config.training.weight = spec(WEIGHTINGS, "ncsn")
    config.training.times = spec(TIMES, "discrete", sigmas=levels)
    # As in their code, where epsilon = 2e-5 is half of a step; in the paper's Algorithm 1 it is a full step.
    config.sampling.solver = spec(SOLVERS, "langevin", steps=100, step_size=4e-5, denoise=False)
    config.sampling.grid = spec(GRIDS, "geometric")
    config.sampling.steps = len(levels)
    config.sampling.denoise = False


def _ncsnv2(config: ml_collections.ConfigDict) -> None:
    ncsnv2(config, sigma_max=50.0, levels=232, steps=5, epsilon=6.2e-6)
    optimise(config, 300_000, 128, 1e-4, ema=0.999)


def _vdm(config: ml_collections.ConfigDict) -> None:
    """Kingma et al. 2021, Appendix B."""
    vdm(config)
    config.net = spec(NETWORKS, "vdm")
    optimise(config, 10_000_000, 128, 2e-4, warmup=100, weight_decay=0.01)


def _vdm_aug(config: ml_collections.ConfigDict) -> None:
    """Kingma et al. 2021, Appendix B, with augmentation."""
    vdm(config, "monotone")
    config.transform.flip = True
    config.net = spec(NETWORKS, "vdm", width=256, dropout=0.05, attention=True)
    optimise(config, 100_000_000, 1024, 2e-4, warmup=100, weight_decay=0.01)


def _scoreflow(config: ml_collections.ConfigDict) -> None:
    """Song, Durkan et al. 2021, Appendix F, and the configuration in their code."""
    scoreflow(config)
    config.net.dropout = 0.1


def _idode(config: ml_collections.ConfigDict) -> None:
    """Zheng et al. 2023, Appendix F, and the configuration in their code."""
    idode(config)
    config.net = spec(NETWORKS, "vdm")
    optimise(config, 6_000_000, 128, 2e-4, warmup=100, weight_decay=0.01)


def _mulan(config: ml_collections.ConfigDict) -> None:
    """Sahoo et al. 2024, Appendix B, and the configuration in their code."""
    mulan(config)
    config.net = spec(NETWORKS, "vdm")
    optimise(config, 10_000_000, 128, 2e-4, warmup=100, weight_decay=0.01)


def _edm(config: ml_collections.ConfigDict, network: str) -> None:
    """Karras et al. 2022, Appendix F.2."""
    edm(config, 200, 512, 1e-3)
    if network == "adm":
        config.net = spec(NETWORKS, "adm", attention=(0, 1, 2), dropout=0.13, frequencies="open_timesteps")
    else:
        switches = DDPMPP if network == "ddpmpp" else {}
        config.net = spec(NETWORKS, "ncsnpp", multipliers=(2, 2, 2), dropout=0.13, label_first=True, **switches)
    config.training.label_dropout = 0.0


VARIANTS: dict[str, Setup] = {
    "ddpm": _ho,
    **{sde: partial(_ours, sde=sde) for sde in ("vp", "subvp", "ve")},
    "ncsn": _ncsn,
    "ncsnv2": _ncsnv2,
    "vdm": _vdm,
    "vdm_aug": _vdm_aug,
    "scoreflow": _scoreflow,
    "idode": _idode,
    "mulan": _mulan,
    "edm": partial(_edm, network="ddpmpp"),
    "edm_ncsnpp": partial(_edm, network="ncsnpp"),
    "adm": partial(_edm, network="adm"),
}
for _network, _paths in {"ddpm": "ve vp subvp", "ddpmpp": "vp subvp", "ncsnpp": "ve vp subvp"}.items():
    for _path in _paths.split():
        VARIANTS[f"{_network}_{_path}"] = partial(_song, network=_network, path=_path)
        if _network != "ddpm":
            VARIANTS[f"{_network}_deep_{_path}"] = partial(_song, network=f"{_network}_deep", path=_path)
for _short, _path in {"ddpmpp": "vp", "ddpmpp_deep": "vp", "ncsnpp": "ve", "ncsnpp_deep": "ve"}.items():
    VARIANTS[_short] = VARIANTS[f"{_short}_{_path}"]


def get_config(variant: str = "ddpm") -> ml_collections.ConfigDict:
    """The configuration of a variant.

    Raises:
        ValueError: if there is no such variant.
    """
    check_variant(variant, VARIANTS, "cifar10")
    config = defaults()
    config.data = spec(DATASETS, "cifar10")
    VARIANTS[variant](config)
    return config
