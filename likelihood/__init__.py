"""Log-likelihoods and their bounds, `(denoiser, sde, x0) -> nats`, and from them bits/dim."""

from scorefield.likelihood.bounds import dsm_bound, elbo, vlb
from scorefield.likelihood.certificate import Certificate, certify
from scorefield.likelihood.choose_solver import choose_solver
from scorefield.likelihood.dataset import DatasetScorer
from scorefield.likelihood.decoders import Decoder, DiscretisedDecoder, GaussianDecoder, LevelDecoder
from scorefield.likelihood.density import Density, log_likelihood
from scorefield.likelihood.dequantisation import Dequantisation, TruncatedNormal, Uniform, Variational
from scorefield.likelihood.divergence import Divergence, Exact, Hutchinson, HutchPlusPlus
from scorefield.likelihood.image_dataset import ImageScorer
from scorefield.likelihood.pixels import PixelDistribution, fit_pixels
from scorefield.likelihood.plan import Plan
from scorefield.likelihood.prior import GaussianPrior, Moments, prior_kl
from scorefield.likelihood.summary import bits_per_dim, mean_and_error
from scorefield.likelihood.through_autoencoder import ImageTerms, image_bound
from scorefield.sde_lib.quantise import dequantise, quantise

__all__ = [
    "Certificate",
    "DatasetScorer",
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
    "ImageScorer",
    "ImageTerms",
    "LevelDecoder",
    "Moments",
    "PixelDistribution",
    "Plan",
    "TruncatedNormal",
    "Uniform",
    "Variational",
    "bits_per_dim",
    "certify",
    "choose_solver",
    "dequantise",
    "dsm_bound",
    "elbo",
    "fit_pixels",
    "image_bound",
    "log_likelihood",
    "mean_and_error",
    "prior_kl",
    "quantise",
    "vlb",
]
