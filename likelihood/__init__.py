"""Numbers that say what they are: `(denoiser, sde, x0) -> nats`, and from them bits/dim."""

from likelihood.bounds import dsm_bound, elbo, vlb
from likelihood.decoders import Decoder, DiscretisedDecoder, GaussianDecoder, LevelDecoder
from likelihood.density import Density, log_likelihood
from likelihood.dequantisation import Dequantisation, TruncatedNormal, Uniform, Variational
from likelihood.divergence import Divergence, Exact, Hutchinson, HutchPlusPlus
from likelihood.pilot import Plan, plan_for
from likelihood.prior import GaussianPrior, Moments, mismatch
from likelihood.quantised import bits_per_dim, dequantise, mean_and_error, quantise

__all__ = [
    "Decoder",
    "Density",
    "Dequantisation",
    "DiscretisedDecoder",
    "Divergence",
    "Exact",
    "GaussianDecoder",
    "GaussianPrior",
    "HutchPlusPlus",
    "Hutchinson",
    "LevelDecoder",
    "Moments",
    "Plan",
    "TruncatedNormal",
    "Uniform",
    "Variational",
    "bits_per_dim",
    "dequantise",
    "dsm_bound",
    "elbo",
    "log_likelihood",
    "mean_and_error",
    "mismatch",
    "plan_for",
    "quantise",
    "vlb",
]
