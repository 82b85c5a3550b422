"""Numbers that say what they are: `(denoiser, sde, x0) -> nats`, and from them bits/dim."""

from likelihood.density import Density, log_likelihood
from likelihood.divergence import Divergence, Exact, Hutchinson, HutchPlusPlus
from likelihood.quantised import bits_per_dim, dequantise, mean_and_error, quantise

__all__ = [
    "Density",
    "Divergence",
    "Exact",
    "HutchPlusPlus",
    "Hutchinson",
    "bits_per_dim",
    "dequantise",
    "log_likelihood",
    "mean_and_error",
    "quantise",
]
