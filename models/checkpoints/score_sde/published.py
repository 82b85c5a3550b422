"""The published configurations of score_sde_pytorch, by the names of their files."""

from typing import Any

Values = dict[str, Any]

# What their configurations hold, by their own names, with the values that nearly all have.
DEFAULTS: Values = {
    "config": None,
    "name": "ncsnpp",
    "sde": "vpsde",
    "continuous": True,
    "centered": None,
    "image_size": 32,
    "num_channels": 3,
    "beta_min": 0.1,
    "beta_max": 20.0,
    "sigma_min": 0.01,
    "sigma_max": 50.0,
    "num_scales": 1000,
    "nf": 128,
    "ch_mult": (1, 2, 2, 2),
    "num_res_blocks": 4,
    "attn_resolutions": (16,),
    "dropout": 0.1,
    "resamp_with_conv": True,
    "conditional": True,
    "scale_by_sigma": None,
    "fir": True,
    "fir_kernel": (1, 3, 3, 1),
    "skip_rescale": True,
    "resblock_type": "biggan",
    "progressive": "none",
    "progressive_input": "none",
    "progressive_combine": "sum",
    "embedding_type": "positional",
    # Read by their code, and of no consequence here.
    "fourier_scale": 16.0,
    "init_scale": 0.0,
    "normalization": "GroupNorm",
    "nonlinearity": "swish",
    "attention_type": "ddpm",
    "conv_size": 3,
}
IDLE: Values = {"normalization": "GroupNorm", "nonlinearity": "swish", "attention_type": "ddpm", "conv_size": 3}
NETWORKS: dict[str, Values] = {
    "ddpm": {"name": "ddpm", "num_res_blocks": 2},
    "ddpmpp": {"name": "ncsnpp", "fir": False, "num_res_blocks": 4, "progressive_input": "none"},
    "ncsnpp": {"name": "ncsnpp", "fir": True, "num_res_blocks": 4, "progressive_input": "residual"},
}
LARGE: Values = {
    **NETWORKS["ncsnpp"],
    "sde": "vesde",
    "embedding_type": "fourier",
    "progressive": "output_skip",
    "progressive_input": "input_skip",
    "dropout": 0.0,
    "num_scales": 2000,
}
AT_256: Values = {**LARGE, "image_size": 256, "ch_mult": (1, 1, 2, 2, 2, 2, 2), "num_res_blocks": 2}
AT_1024: Values = {
    **LARGE,
    "image_size": 1024,
    "nf": 16,
    "ch_mult": (1, 2, 4, 8, 16, 32, 32, 32),
    "num_res_blocks": 1,
    "sigma_max": 1348.0,
}
DDPM_256: Values = {
    **NETWORKS["ddpm"],
    "sde": "vpsde",
    "continuous": False,
    "image_size": 256,
    "ch_mult": (1, 1, 2, 2, 4, 4),
    "dropout": 0.0,
}


def _cifar10() -> dict[str, Values]:
    found: dict[str, Values] = {}
    for sde in ("vp", "subvp", "ve"):
        for name, network in NETWORKS.items():
            for continuous in (True, False):
                values = {**network, "sde": f"{sde}sde", "continuous": continuous}
                if sde == "ve" and continuous:
                    values["embedding_type"] = "fourier"
                suffix = "_continuous" if continuous else ""
                found[f"{sde}/cifar10_{name}{suffix}"] = values
                found[f"{sde}/cifar10_{name}_deep{suffix}"] = {**values, "num_res_blocks": 8}
    published = (
        [f"{sde}/cifar10_ncsnpp{deep}_continuous" for sde in ("ve", "vp", "subvp") for deep in ("", "_deep")]
        + [f"{sde}/cifar10_ddpmpp{deep}_continuous" for sde in ("vp", "subvp") for deep in ("", "_deep")]
        + ["ve/cifar10_ddpm", "ve/cifar10_ncsnpp", "vp/cifar10_ddpmpp", "vp/cifar10_ncsnpp"]
        + ["subvp/cifar10_ddpm_continuous"]
    )
    ddpm = {"vp/ddpm/cifar10": "vp/cifar10_ddpm", "vp/ddpm/cifar10_continuous": "vp/cifar10_ddpm_continuous"}
    ddpm["vp/ddpm/cifar10_unconditional"] = "vp/cifar10_ddpm"
    return {name: found[name] for name in published} | {name: found[like] for name, like in ddpm.items()}


SCORE_SDE: dict[str, Values] = {
    **_cifar10(),
    "ve/celeba_ncsnpp": {
        **NETWORKS["ncsnpp"], "sde": "vesde", "continuous": False, "image_size": 64, "sigma_max": 90.0,
    },
    "ve/bedroom_ncsnpp_continuous": {**AT_256, "sigma_max": 378.0},
    "ve/church_ncsnpp_continuous": {**AT_256, "sigma_max": 380.0},
    "ve/celebahq_256_ncsnpp_continuous": {**AT_256, "sigma_max": 348.0},
    "ve/ffhq_256_ncsnpp_continuous": {**AT_256, "sigma_max": 348.0},
    "ve/celebahq_ncsnpp_continuous": AT_1024,
    "ve/ffhq_ncsnpp_continuous": AT_1024,
    "vp/ddpm/bedroom": DDPM_256,
    "vp/ddpm/church": DDPM_256,
    "vp/ddpm/celebahq": DDPM_256,
}  # fmt: skip
