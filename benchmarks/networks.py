"""docs/networks.md, from the configurations: which network for what, and how many parameters each has.

python -m scorefield.benchmarks.networks > docs/networks.md
"""

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

from scorefield.configs import build
from scorefield.configs.latent_papers import LATENT_PAPERS, latent_net

HEAD = """# Networks

Every network is `F(x, c_noise, label)`, made of plain keywords; `Denoiser(F, precondition)` makes a denoiser of it.
With `label_required=True` the denoiser refuses to be called without a class: for networks that were always given one.

| to | take |
|---|---|
| learn, or train on a small data set | `UNet`, narrow: `configs/digits.py`, `configs/mnist.py` |
| model vectors, or arrays that are no images | `MLP`: `configs/own.py` |
| get good pictures at 32 to 64 pixels | `NCSNpp`, trained as EDM: `configs/cifar10.py:edm`, `configs/ffhq.py:edm_64` |
| make pictures of 256 to 1024 pixels | `NCSNpp` with pyramids: `configs/{lsun,celebahq,ffhq}.py` |
| get good likelihoods | `VDM`: `configs/cifar10.py:vdm`; smaller, `UNet` with `levels`: `configs/mnist.py:vdm` |
| condition on classes at 64 to 512 pixels | `ADM`: `configs/imagenet.py` |
| work in an autoencoder's codes, or scale | `DiT`: `configs/imagenet.py:dit_xl` |
| condition on text, boxes or images, in an autoencoder's codes | `ADM` with `context`, `concat`: `configs/latent.py` |
| anneal by Langevin dynamics as it was first done | `NCSN`, `NCSNv2`: `configs/cifar10.py:ncsn`, `:ncsnv2` |
| repeat a paper | the row of its table below |

| network | paper | input for the noise | images it takes |
|---|---|---|---|
| `UNet` | Ho et al. 2020 | `c_noise`, or a timestep (`frequencies`) | sides divisible by 2^(levels - 1) |
| `NCSNpp` | Song et al. 2021: NCSN++, and as DDPM++; Karras et al. 2022 | log sigma, a timestep, `c_noise` | likewise |
| `ADM` | Dhariwal and Nichol 2021; Karras et al. 2022; Rombach et al. 2022 | a timestep, or `c_noise` | likewise |
| `NCSN` | Song and Ermon 2019 | `c_noise`, as a row of tables a level | sides divisible by 2, 4 or 8, by `depth` |
| `NCSNv2` | Song and Ermon 2020 | nothing | likewise |
| `VDM` | Kingma et al. 2021 | `c_noise`, as timesteps over its `span` | any |
| `DiT` | Peebles and Xie 2023 | a timestep, or `c_noise` | sides divisible by `patch` |
| `MLP` | | `c_noise` | any shape, one shape a network |

`c_noise = log(sigma / alpha) / 4`. The precondition chooses what stands for the noise (`models/precondition.py`).
`time_conditioned:scale=999.0` and `time_conditioned:unit=log_sigma` give the units of a paper, all others `c_noise`.
All but `NCSNv2` take classes, and have a row for "unknown" where `label` is left out. All take any number of channels.

## Tokens, and images beside x

The U-Net of latent diffusion (Rombach et al. 2022) is `ADM` with three more settings:

| keyword of the network | keyword of `cond` | what it does |
|---|---|---|
| `context=d` | `context (B, M, d)`, `context_mask (B, M)` | pixels attend to the tokens, in spatial transformers |
| `transformer_depth=1` | | blocks of each spatial transformer |
| `concat=c` | `concat (B, c, H, W)` | images beside x, in the first convolution; `UNet` has it too |

A spatial transformer is `x + W_out blocks(W_in GN(x))`, in the place of attention. A block has attention to pixels,
attention to the context, and a gated perceptron, each after a LayerNorm and as a residual. It starts as nothing, as
`W_out` is zero at first.

- A token whose mask is false has exactly no influence, and its gradient is exactly 0.
- Without a context, and where all tokens of a sample are masked, the context adds exactly nothing.
- Without `concat` the images beside x are zeros.
- A context of another width, and images of another size, are refused in one line.

`scale_shift=False` adds the embedding before the norms; all but `churches` have it. `resample_blocks=False` resamples
with a convolution; all but `churches` and `inpainting_big` have it. `configs/latent_papers.py` has each published U-Net
with its path, loss, optimiser and sampler: `latent_net("txt2img_large")` is the spec of one.

## Conditioners

A network is trained with a conditioner, which makes tokens or images beside x of raw keywords:
`ConditionedNetwork(net, conditioner)`. In a configuration it is `--config.conditioner=NAME:...`. The width of its \
tokens
and the channels of its images flow to the network.

| conditioner | raw keywords of `cond` | what it makes | its "nothing" |
|---|---|---|---|
| `class_tokens` | `label (B,)` | a token, by a table | one more row of the table |
| `text` | `tokens (B, L)` of captions | tokens, by a transformer | the empty caption: padding alone |
| `boxes` | `boxes (B, K, 5)`: class, x0, y0, x1, y1 in 0 .. 1; class -1 is no box | 3 tokens a box, by a transformer \
| no boxes |
| `map` | `map (B, H, W)` of classes; -1 is none | one channel a class, halved, then a 1x1 kernel | zeros |
| `low` | `low (B, c, h, w)`, a small image | the image, resized if it must be | zeros |
| `masked` | `masked (B, c, h, w)`, codes of the image without its hole, and `mask (B, 1, H, W)`, 1 in the hole | \
codes and mask | zero codes, all of it a hole |

- A keyword that is absent means "nothing", and so does `known (B,)` where it is false. Training draws `known` with
  `training.label_dropout`. A network that was trained with 0 there refuses to be called without its conditioning.
- `conditioner.prepare(cond, size)` makes `context`, `context_mask` and `concat` once, for all steps of a solver.
  The result is the same to the bit. `size` is the height and width of the codes.
- `text` and `boxes` are the transformer of Rombach et al. 2022: normalised first, without a causal mask. With
  `masked=True` padding has no influence. `text` has it off and `boxes` on; both are off in the published ones.
- `text:width=1280,layers=32,vocabulary=30522,empty=(101,102)` is the published text encoder, 543 million parameters.
  `boxes:classes=182,sections=90,vocabulary=8192,crop=True,masked=False,width=512,layers=16` is that of layouts.

`models/text_tokens.py` makes tokens of captions. `WordPieces.of_captions` has the letters and the most frequent \
words of
a data set. `WordPieces.read` reads a tokenizer.json, or BERT's vocab.txt. An unknown word is said once.

**Guidance.** `ClassifierFree(denoiser, scale, without, interval)` is `D = (1 - scale) D(x) + scale D(x, \
cond)`.
`without` are the keywords that D(x) does not get: `network.conditioning` has all of them. `cond={"guidance": scales}`
gives each sample a scale (B,). `interval=(low, high)` guides at those noise levels sigma / alpha alone (Kynkaanniemi et
al. 2024); elsewhere there is one call.

## Autoencoders

`models.KLAutoencoder`, `VQAutoencoder` and `TinyAutoencoder` map images in -1 .. 1 to codes z (B, c, H / f, W / f) and
back. They take any number of channels, and any height and width that f divides.

| network | name | paper | codes |
|---|---|---|---|
| `KLAutoencoder` | `kl` | Rombach et al. 2022 | normal given the image, with a small KL term to N(0, 1) |
| `VQAutoencoder` | `vq` | Esser et al. 2021, Rombach et al. 2022 | before quantisation, which is the decoder's first \
layer |
| `TinyAutoencoder` | `tiny` | Bohan 2023 (TAESD) | deterministic |

```python
import torch

from scorefield.configs import build
from scorefield.models import KLAutoencoder

autoencoder = KLAutoencoder(3, code_channels=4, width=32, multipliers=(1, 2, 2), blocks=1)  # f = 4
images = torch.rand(2, 3, 32, 48) * 2 - 1
moments = autoencoder.moments(images)  # .mean, .log_var, .sample(noise), .kl() in nats, .log_prob(z)
z = autoencoder.encode(images)  # the mean, (2, 4, 8, 12)
again = autoencoder.decode(z)

quantised = build.autoencoder("vq:quantiser='fsq:levels=(8,5,5,5)',code_channels=4,width=32,blocks=1", 3)
```

`quantiser` is the spec of one: `codebook`, `fsq` or `lfq`. f is 2^(levels - 1), where `multipliers` has a number for \
each
level. `--mode=train_autoencoder` trains one, and `--mode=import` opens other people's ([weights.md](weights.md)).

| published as | configuration | codes | encoder | decoder | all, with 1x1 convolutions and codebook |
|---|---|---|---:|---:|---:|
{autoencoders}

The widths of the first level are 128, and 64 in the tiny ones. TAESD3 and TAEF1 are TAESD with 16 channels a code.

## Parameters

Ours are counted from the configuration, the originals' were by running their code at the commits below. They are equal
but for these, which the tests expect to the last weight:

- A network with classes has a row for "unknown" here, which some do not have there.
- EDM's have 1,152 (DDPM++) or 2,304 (NCSN++) weights there for their augmentation, which is not here.
- VDM's has a column there for a conditioning number, which is 0 but for augmented data.

Frequencies of Fourier features are random and not trained. They are kept with the weights and not counted, here and
there (score_sde_pytorch has them among its parameters, 128 or 16).
"""
TAIL = """
| source | commit |
|---|---|
{commits}

Written by `python -m scorefield.benchmarks.networks > docs/networks.md`. `tests/configs` checks the counts.
"""
COMMITS = {
    "score_sde_pytorch": ("yang-song/score_sde_pytorch", "cb1f359"),
    "ncsnv2": ("ermongroup/ncsnv2", "1bcea03"),
    "ddim": ("ermongroup/ddim", "e8df66c"),
    "edm": ("NVlabs/edm", "008a4e5"),
    "guided-diffusion": ("openai/guided-diffusion", "22e0df8"),
    "DiT": ("facebookresearch/DiT", "ed81ce2"),
    "vdm": ("google-research/vdm", "dc27b98"),
    "latent-diffusion": ("CompVis/latent-diffusion", "a506df5"),
}


class Row(NamedTuple):
    """A published network, and the configuration that is ours.

    `theirs` are the trained parameters that its code makes, of which `frozen` Fourier features are none; `stated` is
    what the paper says. `given` are settings of `config.net` beside the configuration's, `classes` how many it is made
    for, `more` the parameters that ours has beyond theirs.
    """

    config: str
    original: str
    theirs: int
    stated: str = ""
    given: Mapping[str, Any] = MappingProxyType({})
    classes: int | None = None
    frozen: int = 0
    more: int = 0


ROWS = (
    Row("cifar10:ncsn", "ncsnv2: NCSN", 30_117_635),
    Row("cifar10:ncsnv2", "ncsnv2: cifar10", 29_694_083),
    Row("celeba:ncsnv2", "ncsnv2: celeba", 29_694_083),
    Row("lsun:bedroom_ncsnv2", "ncsnv2: bedroom", 83_445_379),
    Row("lsun:church_ncsnv2", "ncsnv2: church", 83_445_379),
    Row("lsun:tower_ncsnv2", "ncsnv2: tower", 83_445_379),
    Row("ffhq:ncsnv2_256", "ncsnv2: ffhq", 94_132_611),
    Row("cifar10:ddpm", "ddim: cifar10", 35_746_307, "35.7M"),
    Row("celeba:ddpm", "ddim: celeba", 78_700_803),
    Row("lsun:bedroom_ddpm", "ddim: bedroom", 113_673_219, "114M"),
    Row("lsun:church_ddpm", "ddim: church", 113_673_219, "114M"),
    Row("cifar10:ddpm_vp", "score_sde_pytorch: vp/ddpm/cifar10_continuous", 35_218_947),
    Row("cifar10:ddpm_subvp", "score_sde_pytorch: subvp/cifar10_ddpm_continuous", 35_218_947),
    Row("cifar10:ddpm_ve", "score_sde_pytorch: ve/cifar10_ddpm", 35_218_947),
    Row("cifar10:ddpmpp_vp", "score_sde_pytorch: vp/cifar10_ddpmpp_continuous", 61_804_419),
    Row("cifar10:ddpmpp_subvp", "score_sde_pytorch: subvp/cifar10_ddpmpp_continuous", 61_804_419),
    Row("cifar10:ddpmpp_deep_vp", "score_sde_pytorch: vp/cifar10_ddpmpp_deep_continuous", 106_632_579),
    Row("cifar10:ddpmpp_deep_subvp", "score_sde_pytorch: subvp/cifar10_ddpmpp_deep_continuous", 106_632_579),
    Row("cifar10:ncsnpp_ve", "score_sde_pytorch: ve/cifar10_ncsnpp_continuous", 62_758_787, frozen=128),
    Row("cifar10:ncsnpp_vp", "score_sde_pytorch: vp/cifar10_ncsnpp_continuous", 62_693_251),
    Row("cifar10:ncsnpp_subvp", "score_sde_pytorch: subvp/cifar10_ncsnpp_continuous", 62_693_251),
    Row("cifar10:ncsnpp_deep_ve", "score_sde_pytorch: ve/cifar10_ncsnpp_deep_continuous", 107_586_947, frozen=128),
    Row("cifar10:ncsnpp_deep_vp", "score_sde_pytorch: vp/cifar10_ncsnpp_deep_continuous", 107_521_411),
    Row("cifar10:ncsnpp_deep_subvp", "score_sde_pytorch: subvp/cifar10_ncsnpp_deep_continuous", 107_521_411),
    Row("celeba:ncsnpp", "score_sde_pytorch: ve/celeba_ncsnpp", 62_693_251),
    Row("lsun:bedroom_ncsnpp", "score_sde_pytorch: ve/bedroom_ncsnpp_continuous", 65_574_421, frozen=128),
    Row("lsun:church_ncsnpp", "score_sde_pytorch: ve/church_ncsnpp_continuous", 65_574_421, frozen=128),
    Row("celebahq:ncsnpp_256", "score_sde_pytorch: ve/celebahq_256_ncsnpp_continuous", 65_574_421, frozen=128),
    Row("celebahq:ncsnpp_1024", "score_sde_pytorch: ve/celebahq_ncsnpp_continuous", 105_785_880, frozen=16),
    Row("ffhq:ncsnpp_256", "score_sde_pytorch: ve/ffhq_256_ncsnpp_continuous", 65_574_421, frozen=128),
    Row("ffhq:ncsnpp_1024", "score_sde_pytorch: ve/ffhq_ncsnpp_continuous", 105_785_880, frozen=16),
    *(
        Row(config, f"score_sde_pytorch: vp/ddpm/{name}", 111_569_923, given={"attention_up": "last"})
        for config, name in (
            ("celebahq:ddpm_256", "celebahq"), ("lsun:bedroom_ddpm", "bedroom"), ("lsun:church_ddpm", "church"),
        )
    ),
    Row("cifar10:vdm", "vdm: cifar10", 30_578_179, more=-512),
    Row("cifar10:edm", "edm: CIFAR-10, ddpmpp", 55_733_891, more=-1152),
    Row("cifar10:edm", "edm: CIFAR-10, ddpmpp, classes", 55_735_299, classes=10, more=-1152),
    Row("cifar10:edm_ncsnpp", "edm: CIFAR-10, ncsnpp", 56_397_827, frozen=128, more=-2304),
    Row("cifar10:edm_ncsnpp", "edm: CIFAR-10, ncsnpp, classes", 56_400_643, classes=10, frozen=128, more=-2304),
    Row("ffhq:edm_64", "edm: FFHQ, ddpmpp", 61_805_571, more=-1152),
    Row("ffhq:edm_ncsnpp_64", "edm: FFHQ, ncsnpp", 62_761_091, frozen=128, more=-2304),
    Row("imagenet:edm_64", "edm: ImageNet-64, adm", 295_899_267, classes=1000, more=768),
    *(
        Row(f"imagenet:adm_{size}", f"guided-diffusion: {size}", count, stated, {"variances": True}, 1000, 0, row)
        for size, count, stated, row in (
            (64, 295_904_454, "296M", 768), (128, 421_529_606, "422M", 1024),
            (256, 553_838_086, "554M", 1024), (512, 558_997_638, "559M", 1024),
        )
    ),
    Row("imagenet:adm_256", "guided-diffusion: 256, without classes", 552_814_086, given={"variances": True}),
    *(
        Row(f"imagenet:dit_{size.lower()}", f"DiT: {size}/{patch}", count, stated if patch == 2 else "",
            {"variances": True} | ({} if patch == 2 else {"patch": patch}), 1000)
        for size, stated, counts in (
            ("S", "33M", (32_865_056, 32_920_448, 33_142_016)), ("B", "130M", (130_315_808, 130_426_496, 130_869_248)),
            ("L", "458M", (457_840_672, 457_988_224, 458_578_432)),
            ("XL", "675M", (674_834_720, 675_000_704, 675_664_640)),
        )
        for patch, count in zip((2, 4, 8), counts, strict=True)
    ),
    *(
        Row(f"latent_papers:{name}", f"latent-diffusion: {theirs}", count, stated)
        for name, theirs, count, stated in (
            ("celeba_hq", "celebahq, ffhq, lsun_bedrooms", 274_056_163, "274M"),
            ("churches", "lsun_churches-ldm-kl-8", 294_966_916, "294M"),
            ("cin256", "cin-ldm-vq-f8", 394_984_196, "395M"), ("cin256_v2", "cin256-v2", 400_920_579, "400M"),
            ("text2img256", "text2img256", 403_623_939, ""), ("txt2img_large", "txt2img-1p4B", 872_300_484, ""),
            ("layout", "layout2img-openimages256", 246_277_379, ""),
            ("semantic", "semantic_synthesis256", 215_229_315, "215M"), ("bsr_sr", "bsr_sr", 113_622_563, ""),
            ("inpainting_big", "inpainting_big", 387_245_827, "387M"),
        )
    ),
)  # fmt: skip


# Published autoencoders: the name there, the configuration, and settings beside it; of the tiny ones the spec.
AUTOENCODERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("kl-f4", "kl_f4", {}),
    ("kl-f8, Stable Diffusion", "kl_f8", {}),
    ("kl-f16", "kl_f16", {}),
    ("kl-f32", "kl_f32", {}),
    ("vq-f4", "vq_f4", {}),
    ("vq-f4-noattn", "vq_f4", {"middle_attention": False}),
    ("vq-f8", "vq_f8", {}),
    ("vq-f8-n256", "vq_f8", {"quantiser": "codebook:size=256,decay=None"}),
    ("vq-f16", "vq_f16", {}),
    ("TAESD, TAESDXL", "tiny", {}),
    ("TAEF2", "tiny", {"code_channels": 32, "pool": True}),
    ("TAESANA", "tiny", {"code_channels": 32, "early": (32,), "decoder_widths": (256, 128, 64, 64, 64, 64)}),
)


def autoencoder_row(name: str, configuration: str, given: Mapping[str, Any]) -> str:
    """The line of a published autoencoder, made without memory for its weights."""
    if configuration == "tiny":
        spec, shown = build.spec(build.AUTOENCODERS, {"name": "tiny", **given}), "`tiny`"
    else:
        config = importlib.import_module("scorefield.configs.autoencoder").get_config(configuration)
        spec, shown = config.net, f"`autoencoder.py:{configuration}`"
        spec.update(given)
    with torch.device("meta"):
        made: Any = build.autoencoder(spec, 3)
    parts = (made.encoder, made.decoder, made)
    encoder, decoder, total = (count(part)[0] for part in parts)
    if configuration == "tiny":
        decoder = total - encoder  # the last layer stands apart
    settings = "".join(f", {key}={value}" for key, value in given.items())
    codes = f"{made.code_channels} channels, f = {made.factor}"
    return f"| {name} | {shown}{settings} | {codes} | {encoder:,} | {decoder:,} | {total:,} |"


def network(row: Row) -> nn.Module:
    """Ours, without memory for its weights."""
    file, variant = row.config.split(":")
    if file == "latent_papers":
        spec, channels = latent_net(variant), LATENT_PAPERS[variant].codes[0]
    else:
        spec = importlib.import_module(f"scorefield.configs.{file}").get_config(variant).net
        channels = 4 if spec.name == "dit" else 3
    spec.update(row.given)
    with torch.device("meta"):
        net: nn.Module = build.build(build.NETWORKS, spec, channels=channels, num_classes=row.classes)
    return net


def count(net: nn.Module) -> tuple[int, int]:
    """The parameters, and what else is kept with them."""
    parameters = sum(p.numel() for p in net.parameters())
    return parameters, sum(tensor.numel() for tensor in net.state_dict().values()) - parameters


def main() -> None:
    print(HEAD.replace("{autoencoders}", "\n".join(autoencoder_row(*row) for row in AUTOENCODERS)))
    print("| network | configuration | parameters | the original's | more | original | the paper states |")
    print("|---|---|---:|---:|---:|---|---:|")
    for row in ROWS:
        net = network(row)
        settings = {**row.given} | ({} if row.classes is None else {"num_classes": row.classes})
        ours = f"`{row.config.replace(':', '.py:')}`" + "".join(f", {key}={value}" for key, value in settings.items())
        more = format(row.more, "+,") if row.more else ""
        print(
            f"| `{type(net).__name__}` | {ours} | {count(net)[0]:,} | {row.theirs:,} | {more} | "
            f"{row.original} | {row.stated} |"
        )
    commits = (f"| {name}: github.com/{repo} | {at} |" for name, (repo, at) in COMMITS.items())
    print(TAIL.format(commits="\n".join(commits)))


if __name__ == "__main__":
    main()
