"""The tables of names: every part that a configuration or a command line can name.

`--mode=list` prints them. Installed packages add names by entry points, and a name with a dot is imported: see
`configs.specs.Table`. Parts that are made of other named parts have their constructors here.
"""

from torch import nn

from scorefield import likelihood, models, sde_lib, solvers
from scorefield.configs import constructors, methods
from scorefield.configs.specs import Table, build
from scorefield.evaluation import features
from scorefield.models import conditioners, measurements, precondition
from scorefield.models.checkpoints.diffusers.modules import DiffusersUNet
from scorefield.models.networks.autoencoder import ImageAutoencoder
from scorefield.models.networks.quantisers import FSQ, LFQ, Codebook, Quantiser
from scorefield.models.perceptual import LPIPS, LaplacianPyramid
from scorefield.solvers import grids
from scorefield.training import data, times, weighting


def _time_conditioned(
    sde: sde_lib.SDE,
    predicts: str = "eps",
    unit: str = "time",
    scale: float = 1.0,
    shift: float = 0.0,
    integer_timesteps: bool = False,
    along: str = "",
) -> precondition.TimeConditioned:
    """A network conditioned on the time of its path. `along` is the spec of another path than the run's."""
    return precondition.TimeConditioned(
        build(SDES, along) if along else sde, predicts, unit, scale, shift, integer_timesteps
    )


def _predictor_corrector(
    predictor: str = "euler_maruyama",
    snr: float = 0.16,
    steps: int = 1,
    norms: str = "expected",
    order: str = "predict_first",
) -> solvers.Solver:
    """A solver, and Langevin steps at each of its times (Song et al. 2021, Algorithms 2 and 3)."""
    corrector = solvers.AnnealedLangevin(snr=snr, steps=steps, norms=norms)
    return solvers.PredictorCorrector(build(SOLVERS, predictor), corrector, order)


def _churn(
    solver: str = "heun:variable=sigma",
    amount: float = 40.0,
    low: float = 0.05,
    high: float = 50.0,
    noise: float = 1.003,
) -> solvers.Solver:
    """A deterministic solver with noise added before each step (Karras et al. 2022, Algorithm 2)."""
    return solvers.Churn(amount, low, high, noise, build(SOLVERS, solver))


def _vq(
    channels: int,
    quantiser: str = "codebook:size=512",
    code_channels: int = 3,
    width: int = 128,
    multipliers: tuple[float, ...] = (1, 2, 4),
    blocks: int = 2,
    attention: tuple[int, ...] = (),
    middle_attention: bool = True,
    features: int | None = None,
    code_convolutions: bool | None = None,
    groups: int = 32,
    smallest_group: int = 4,
) -> models.VQAutoencoder:
    """An autoencoder whose decoder reads quantised codes; `quantiser` is the spec of what quantises them."""
    return models.VQAutoencoder(
        channels, build(QUANTISERS, quantiser, width=code_channels), code_channels, width, multipliers, blocks,
        attention, middle_attention, features, code_convolutions, groups, smallest_group,
    )  # fmt: skip


SDES = Table(
    "sdes",
    {
        "vp": sde_lib.VPSDE,
        "subvp": sde_lib.SubVPSDE,
        "ve": sde_lib.VESDE,
        "edm": sde_lib.EDMSDE,
        "cosine": sde_lib.CosineSDE,
        "flow": sde_lib.RectifiedSDE,
        "ddpm": sde_lib.DiscreteVPSDE,
        "learned": sde_lib.LearnedVP,
        "frozen": sde_lib.FrozenVP,
        "mulan": constructors.mulan,
    },
    base=sde_lib.SDE,
)
NETWORKS = Table(
    "networks",
    {
        "unet": models.UNet,
        "ncsn": models.NCSN,
        "ncsnv2": models.NCSNv2,
        "ncsnpp": models.NCSNpp,
        "adm": models.ADM,
        "vdm": models.VDM,
        "dit": models.DiT,
        "mlp": models.MLP,
        "diffusers": DiffusersUNet,
    },
    base=nn.Module,
)
CONDITIONERS = Table(
    "conditioners",
    {
        "class_tokens": conditioners.ClassTokens,
        "text": conditioners.TextTransformer,
        "boxes": conditioners.Boxes,
        "map": conditioners.SemanticMap,
        "low": conditioners.LowResolution,
        "masked": conditioners.MaskedImage,
    },
    base=conditioners.Conditioner,
)
PRECONDITIONS = Table(
    "preconditions",
    {
        **precondition.PREDICTS,
        "edm": precondition.edm,
        "levels": constructors.levels,
        "time_conditioned": _time_conditioned,
    },
    functions=True,
)
WEIGHTINGS = Table(
    "weightings",
    {
        "simple": weighting.simple,
        "ncsn": weighting.ncsn,
        "likelihood": weighting.likelihood,
        "elbo": weighting.elbo,
        "edm": weighting.edm,
        "min_snr": weighting.min_snr,
    },
    functions=True,
)
TIMES = Table(
    "times",
    {
        "uniform": times.uniform,
        "stratified": times.stratified,
        "log_snr": times.LogSNR,
        "scoreflow": times.LogSNR,
        "idode": times.IDODE,
        "measured": times.Measured,
        "log_normal": times.log_normal,
        "discrete": times.discrete,
    },
    functions=True,
)
DATASETS = Table(
    "datasets",
    {
        "digits": data.digits,
        "mnist": data.mnist,
        "fashion_mnist": data.fashion_mnist,
        "canvas": data.canvas,
        "cifar10": data.cifar10,
        "celeba": data.celeba,
        "imagenet": data.imagenet,
        "imagenet32": data.imagenet32,
        "folder": data.folder,
        "archive": data.archive,
        "shards": data.shards,
        "huggingface": data.huggingface,
        "array": data.array,
        "toy": data.toy,
    },
)
SOLVERS = Table(
    "solvers",
    {
        "ddim": solvers.DDIM,
        "euler": solvers.Euler,
        "midpoint": solvers.Midpoint,
        "heun": solvers.Heun,
        "rk4": solvers.RK4,
        "dpm": solvers.DPMSolver,
        "unipc": solvers.UniPC,
        "deis": solvers.DEIS,
        "adams": solvers.Adams,
        "adams_moulton": constructors.adams_moulton,
        "belm": solvers.BELM,
        "adaptive": solvers.Adaptive,
        "ancestral": solvers.Ancestral,
        "euler_maruyama": solvers.EulerMaruyama,
        "reverse_diffusion": solvers.ReverseDiffusion,
        "stochastic_dpm": solvers.StochasticDPMSolver,
        "sa_solver": solvers.SASolver,
        "churn": _churn,
        "adaptive_sde": solvers.AdaptiveSDE,
        "langevin": solvers.AnnealedLangevin,
        "consistent": solvers.ConsistentAnnealed,
        "pc": _predictor_corrector,
    },
    base=solvers.Solver,
)
GRIDS = Table(
    "grids",
    {
        "uniform": grids.uniform,
        "quadratic": grids.quadratic,
        "log_snr": grids.log_snr,
        "soft_clipped": grids.soft_clipped,
        "geometric": grids.geometric,
        "karras": grids.karras,
        "leading": grids.leading,
        "trailing": grids.trailing,
        "linspace": grids.linspace,
        "sigmas": grids.sigmas,
        "optimal": constructors.optimal,
    },
)
DIVERGENCES = Table(
    "divergences",
    {"exact": likelihood.Exact, "hutchinson": likelihood.Hutchinson, "hutchpp": likelihood.HutchPlusPlus},
)
DEQUANTISATIONS = Table(
    "dequantisations",
    {
        "uniform": likelihood.Uniform,
        "importance": constructors.importance,
        "truncated_normal": likelihood.TruncatedNormal,
        "variational": likelihood.Variational,
    },
)
QUANTISERS = Table("quantisers", {"codebook": Codebook, "fsq": FSQ, "lfq": LFQ}, base=Quantiser)
AUTOENCODERS = Table(
    "autoencoders",
    {"kl": models.KLAutoencoder, "vq": _vq, "tiny": models.TinyAutoencoder},
    base=ImageAutoencoder,
)
PERCEPTUAL = Table("perceptual", {"laplacian": LaplacianPyramid, "lpips": LPIPS, "none": constructors.no_distance})
TASKS = Table(
    "tasks",
    {
        "inpaint": measurements.tasks.inpaint,
        "half": measurements.tasks.half,
        "outpaint": measurements.tasks.outpaint,
        "sense": measurements.tasks.sense,
        "colourise": measurements.tasks.colourise,
        "super_resolve": measurements.tasks.super_resolve,
        "deblur": measurements.tasks.deblur,
        "fourier": measurements.Fourier,
        "phase": measurements.tasks.phase,
        "clip": measurements.tasks.clip,
        "gamma": measurements.tasks.gamma,
        "quantise": measurements.tasks.quantise,
        "matrix": measurements.tasks.matrix,
    },
    base=measurements.Measurement,
)
METHODS = Table(
    "methods",
    {
        "twisted": methods.twisted,
        "mmps": methods.mmps,
        "pigdm": methods.pigdm,
        "dps": methods.dps,
        "tmpd": methods.tmpd,
        "jacobian_free": methods.jacobian_free,
        "diffpir": methods.diffpir,
        "ddnm": methods.ddnm,
        "ddrm": methods.ddrm,
        "repaint": methods.repaint,
        "replacement": methods.replacement,
        "daps": methods.daps,
        "split_gibbs": methods.split_gibbs,
    },
    base=methods.Method,
)
# A dotted name may also be a module or a function of samples: see `commands.features`.
FEATURES = Table(
    "features",
    {
        "own": features.Own,
        "classifier": features.ByClassifier,
        "random": features.Random,
        "pixels": features.Pixels,
        "pca": features.PrincipalComponents,
        "inception": constructors.inception,
        "dino": constructors.dino,
        "clip": constructors.clip,
    },
)
# The specs in a configuration, by their keys.
PARTS = {
    "data": DATASETS,
    "sde": SDES,
    "net": NETWORKS,
    "conditioner": CONDITIONERS,
    "precondition": PRECONDITIONS,
    "training.weight": WEIGHTINGS,
    "training.times": TIMES,
    "sampling.solver": SOLVERS,
    "sampling.grid": GRIDS,
}
AUTOENCODER_PARTS = {"data": DATASETS, "net": AUTOENCODERS}
OPTIONAL = ("conditioner",)  # Parts that may be None.
TABLES = (*PARTS.values(), DIVERGENCES, DEQUANTISATIONS, AUTOENCODERS, QUANTISERS, PERCEPTUAL, TASKS, METHODS, FEATURES)
