"""The shared configuration of MNIST and Fashion-MNIST."""

import ml_collections

from scorefield.configs.build import DATASETS, NETWORKS, SDES, TIMES, spec
from scorefield.configs.defaults import along, check_variant, defaults

# A dequantised cell is 2 / 256 wide: the paths end at a noise of 0.002 to 0.01.
PATHS = {
    "vp": {"t_min": 1e-4},
    "ve": {},
    "subvp": {"t_min": 0.02},
    "edm": {},
    "cosine": {"t_min": 2e-3},
    "flow": {"t_min": 2e-3},
    "vdm": {"t_min": 1.67e-5},  # VP to a log-SNR of 13.3
}


def greyscale(name: str, variant: str) -> ml_collections.ConfigDict:
    """The configuration of a data set of 28x28 images.

    "vdm" follows Kingma et al. 2021: trained with the ELBO on the cells' centres, down to a noise of a sixth of their
    distance, with Fourier features of the input.

    Raises:
        ValueError: if there is no such variant.
    """
    check_variant(variant, PATHS, name)
    config = defaults()
    config.data = spec(DATASETS, name)
    config.net = spec(NETWORKS, "unet", width=32, multipliers=(1, 2, 2), blocks=1, attention=(2,))
    config.training.update(
        images=6_000_000, learning_rate=1e-3, warmup=50_000, decay=True, ema=0.999,
        sample_every=500_000, checkpoint_every=250_000,
    )  # fmt: skip
    if variant == "vdm":
        config.transform.dequantise = False
        config.net.fourier = (6, 7)
    if variant in ("vp", "vdm"):
        config.training.times = spec(TIMES, "log_snr")
    along(config, spec(SDES, "vp" if variant == "vdm" else variant, **PATHS[variant]))
    return config
