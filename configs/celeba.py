"""CelebA at 64x64 (under DATA_ROOT, or --config.data.root=PATH), with published hyper-parameters.

- ncsnv2: Song and Ermon 2020.
- ddpm: Song, Meng and Ermon 2021, "Denoising Diffusion Implicit Models". The length of training is ours; the paper has
  none.
- ncsnpp: Song et al. 2021 on VE, with discrete noise levels; the test split is the validation part.

Images are the middle 140x140, scaled, as in the code of NCSNv2 and of Song et al. 2021. The code of DDIM crops 128x128
around row 121 and column 89, closer to the face.
"""

import ml_collections

from scorefield.configs.build import DATASETS, NETWORKS, spec
from scorefield.configs.defaults import check_variant, defaults
from scorefield.configs.papers import ddpm, ncsnv2, optimise, song_ve

VARIANTS = ("ncsnpp", "ddpm", "ncsnv2")


def get_config(variant: str = "ncsnpp") -> ml_collections.ConfigDict:
    """The configuration of a variant.

    Raises:
        ValueError: if there is no such variant.
    """
    check_variant(variant, VARIANTS, "celeba")
    config = defaults()
    config.data = spec(DATASETS, "celeba")
    if variant == "ncsnpp":
        config.data.test = "valid"
        config.net = spec(NETWORKS, "ncsnpp", attention=(2,), dropout=0.1, frequencies="timesteps")
        song_ve(config, 90.0, snr=0.17, discrete=True)
        optimise(config, 1_300_000, 128, 2e-4, warmup=5_000, clip=1.0, ema=0.999)
    if variant == "ddpm":
        config.net = spec(
            NETWORKS, "unet", multipliers=(1, 2, 2, 2, 4), attention=(2,), dropout=0.1, frequencies="timesteps",
            smallest_group=1,
        )  # fmt: skip
        ddpm(config)
        optimise(config, 500_000, 128, 2e-4, clip=1.0)
    if variant == "ncsnv2":
        ncsnv2(config, sigma_max=90.0, levels=500, steps=5, epsilon=3.3e-6)
        optimise(config, 210_000, 128, 1e-4, ema=0.999)
    return config
