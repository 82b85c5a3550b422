"""Wrong command lines and inputs: each ends with status 2 and one line that names its cause, and writes nothing."""

import hashlib
import io
import json
import re
import resource
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from said import without_progress

from scorefield.commands.command_line import run
from scorefield.commands.modes import MODES, OPTIONS
from scorefield.commands.train.command import train
from scorefield.configs import build, digits

LONGEST = 300  # characters of a line


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write_arrays(folder: Path) -> None:
    x = np.zeros((3, 1, 8, 8), np.uint8)
    save = {
        "empty": {"x": x[:0]}, "five": {"x": np.repeat(x, 5, 1)}, "wide": {"x": np.zeros((3, 1, 9, 9), np.uint8)},
        "nan": {"x": np.full(x.shape, np.nan, np.float32)}, "high": {"x": x + 200}, "half": {"x": x + np.float32(0.5)},
        "complex": {"x": x.astype(np.complex64)}, "objects": {"x": np.array([{}] * 3)},
        "grey": {"x": np.zeros((3, 28, 20), np.uint8)}, "last": {"x": np.zeros((3, 28, 20, 3), np.uint8)},
        "latents_nan": {"latent": np.full(x.shape, np.nan, np.float32)},
        "latents_wide": {"latent": np.zeros((3, 1, 9, 9), np.float32)},
        "latents_classes": {"latent": x.astype(np.float32), "label": np.array([1, 2, 99])},
    }  # fmt: skip
    np.save(folder / "objects.npy", np.array([{}]))
    np.save(folder / "complex.npy", x.astype(np.complex64))
    np.save(folder / "scalar.npy", np.float32(3))
    for name, arrays in save.items():
        np.savez(folder / f"{name}.npz", allow_pickle=True, **arrays)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run of two steps, damaged copies of it, and damaged files. Nothing in it may change."""
    folder = tmp_path_factory.mktemp("wrong")
    config = digits.get_config("vp")
    config.net = build.spec(build.NETWORKS, "mlp", width=4, blocks=1)
    config.training.update(images=32, batch=16, labels=True, sample_every=0)
    train(folder / "vp", config, device="cpu")
    write_arrays(folder)
    (folder / "torn.npz").write_bytes(b"PK\x03\x04 not much of an archive")
    (folder / "torn.zip").write_bytes(b"PK\x03\x04")
    (folder / "text.txt").write_text("hello")
    (folder / "three.py").write_text("def get_config(variant): return 3")
    for name in ("no_run", "no_images", "torn_images", "wide_images", "one_image"):
        (folder / name).mkdir()
    (folder / "torn_images" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.new("L", (8, 8)).save(folder / "one_image" / "0.png")
    for i, size in enumerate([(12, 8), (8, 8)]):
        Image.new("L", size).save(folder / "wide_images" / f"{i}.png")
    for name in ("no_checkpoint", "torn_config", "torn_weights", "wider", "other_path", "no_data"):
        shutil.copytree(folder / "vp", folder / name)
    shutil.rmtree(folder / "no_checkpoint" / "checkpoints")
    (folder / "torn_config" / "config.json").write_text("{")
    weights = next((folder / "torn_weights").glob("checkpoints/*/ema.safetensors"))
    save_file({name: weight + 1 for name, weight in load_file(weights).items()}, weights)
    for name, part, key, value in (
        ("wider", "net", "width", 16), ("other_path", "sde", "beta_max", 9.0),
        ("no_data", "data", "name", "folder"), ("no_data", "data", "path", ""),
    ):  # fmt: skip
        saved = json.loads((folder / name / "config.json").read_text())
        saved["config"][part][key] = value
        (folder / name / "config.json").write_text(json.dumps(saved))
    before = contents(folder)
    yield folder
    assert contents(folder) == before


# A command line, and the words that name the cause. The mode stands as a word, as --mode=sample does too.
ROWS = """
dance                                            | expected a mode .*got 'dance' \\(see --help\\)
tarin --workdir=vp                               | got 'tarin': did you mean 'train'
--workdir=vp                                     | ^error: expected a mode, as --mode=sample
sample                                           | ^error: expected the directory of the run beside --mode=sample
--mode=sample --mode=encode --workdir=vp         | expected --mode once, got sample and encode
--mode=                                          | expected a value of --mode, got none
sample --workdir                                 | expected a value of --workdir, got none
sample --workdir=vp extra                        | expected flags such as --num=64, got 'extra'
sample --workdir=vp --numm=3                     | got --numm: did you mean '--num'
sample --workdir=vp --xyzzy=3                    | expected an option of --help, got --xyzzy$
sample --workdir=vp --split=test                 | --split is not an option of --mode=sample
demo --workdir=new --num=3                       | --num is not an option of --mode=demo
list --num=3                                     | --num is not an option of --mode=list
sample --workdir=vp --config=digits:vp           | expected no --config in --mode=sample
sample --workdir=vp --config.sde.beta_max=3      | expected no --config.sde.beta_max=3 in --mode=sample
sample --workdir=vp --num=abc                    | expected --num to be a whole number, got 'abc'
sample --workdir=vp --num=2.5                    | expected --num to be a whole number, got '2.5'
sample --workdir=vp --num --seed=3               | expected a value of --num, got none
sample --workdir=vp --nonum                      | expected --num=VALUE, got --nonum
sample --workdir=vp --noema=true                 | expected --noema without a value
sample --workdir=vp --ema=maybe                  | expected --ema to be true or false, got 'maybe'
sample --workdir=vp --seed=1 --seed=2            | expected --seed once, got 1 and 2
sample --workdir=vp --num -1                     | expected --num of at least 1, got -1$
sample --workdir=vp --num=0 --batch=3            | expected --num of at least 1, got 0$
sample --workdir=vp --num=3 --batch=0            | expected --batch of at least 1, got 0$
sample --workdir=vp --num=1e15                   | does not: give a smaller --batch or --num
sample --workdir=vp --seed=-1                    | expected --seed of at least 0, got -1
sample --workdir=vp --steps=abc                  | expected --steps to be a whole number, got 'abc'
sample --workdir=vp --steps=0                    | expected --steps of at least 1, got 0
sample --workdir=vp --steps=3 --steps=4          | expected --steps once, got 3 and 4: --mode=sample takes one
sample --workdir=vp --solver=ddim --solver=dpm   | expected --solver once, got ddim and dpm
sample --workdir=vp --trajectory=0               | expected --trajectory of at least 1, got 0
sample --workdir=vp --trajectory=8 --batch=4     | expected --trajectory within one batch, got 8
sample --workdir=vp --solver=adaptive --trajectory=2 | a solver on a fixed grid
sample --workdir=vp --guidance=nan               | expected --guidance to be a finite number, got 'nan'
sample --workdir=vp --guide=32                   | expected --guidance beside --guide, got none or 1
sample --workdir=vp --guide=wider --guidance=2   | of another architecture: .*\\(4,\\) there and \\(16,\\) here
sample --workdir=vp --guide=other_path --guidance=2 | expected --guide to be a run with the same path as vp
sample --workdir=vp --guide=77 --guidance=2      | got '77': the newest are 0000000032
sample --workdir=vp --guidance=0.5 --guidance_rescale=2 | expected rescale to be a share within \\[0, 1\\], got 2
sample --workdir=vp --guidance=0.5 --guidance_norm=0 | a norm above 0, got 1.0 and 0.0: APG takes
sample --workdir=vp --guidance_parallel=0        | expected --guidance beside --guidance_parallel
sample --workdir=vp --label=3 --classifier=1     | expected a classifier in vp, found no classifier.safetensors
evaluate --workdir=vp --metrics=fidd             | expected --metrics among fid, kid
evaluate --workdir=no_run                        | expected a run in no_run
evaluate --input=absent.npz --data=digits        | expected samples in absent.npz, which is not there
evaluate --input=vp --data=digits                | vp/loss.png: not an image that can be read
statistics --data=absent                         | expected one of .*, got 'absent'
statistics --workdir=no_run                      | expected a run in no_run
tune --workdir=vp --budget=0                     | expected --budget of at least
report --workdir=no_run                          | expected a run in no_run
train_classifier --workdir=vp --num=0            | expected --num of at least 1, got 0
edit --workdir=vp --strength=1.5                 | expected --strength within 0 .. 1, got 1.5
edit --workdir=vp --samples=0                    | expected --samples of at least 1, got 0
edit --workdir=vp --from_label=3                 | expected --to_label beside --from_label
edit --workdir=vp --to_label=3 --strength=0.5    | expected no --strength beside --to_label
edit --workdir=vp --to_label=flower              | class of this run .*got 'flower'
edit --workdir=vp --to_label=3 --solver=ancestral | adds noise and cannot encode
edit --workdir=vp --input=nowhere.png            | expected nowhere.png, which is not there
sample --workdir=vp --label=                     | expected a value of --label, got none
sample --workdir=vp --label=10                   | 0 \\.\\. 9.*10
sample --workdir=vp --label=flower               | class of this run .*got 'flower'
sample --workdir=vp --device=cuda:99             | expected a device of this machine .*got 'cuda:99': PyTorch sees
sample --workdir=vp --device=abacus              | got 'abacus': PyTorch sees \\d+ GPUs here$
sample --workdir=vpp                             | found no config.json: did you mean 'vp'
sample --workdir=text.txt                        | expected a run in text.txt, found no config.json
sample --workdir=no_run                          | expected a run in no_run, found no config.json
sample --workdir=no_checkpoint                   | expected a checkpoint in no_checkpoint/checkpoints, found none
sample --workdir=torn_config                     | cannot read torn_config/config.json
sample --workdir=wider                           | of another architecture: .*\\(4,\\) there and \\(16,\\) here
sample --workdir=torn_weights                    | ema.safetensors does not match its checksum
sample --workdir=vp --checkpoint=77              | got '77': the newest are 0000000032
sample --workdir=vp --checkpoint=no_run          | got 'no_run': the newest are 0000000032
sample --workdir=vp --checkpoint=torn_weights/checkpoints/0000000032 | does not match its checksum: restore it
sample --workdir=vp --checkpoint=other_path/checkpoints/0000000032   | of a run with another sde than vp: use --workdir=
sample --workdir=vp --output=x.png               | expected --output to name a .npz file, got 'x.png'
sample --workdir=vp --num=1 --steps=1 --output=text.txt/x.npz | expected text.txt to be .*'File exists'
sample --workdir=vp --solver=                    | expected a value of --solver, got none
sample --workdir=vp --solver=ddmi                | got 'ddmi': did you mean 'ddim'
sample --workdir=vp --solver=DDIM                | got 'DDIM': did you mean 'ddim'
sample --workdir=vp --solver=ddim:0.5            | '0.5' is no key=value
sample --workdir=vp --solver=ddim:eta            | 'eta' is no key=value
sample --workdir=vp --solver=ddim:ete=1          | did you mean 'eta'
sample --workdir=vp --solver=ddim:eta=abc        | expected eta of ddim to be a number, got 'abc'
sample --workdir=vp --solver=ddim:eta=nan        | expected eta within \\[0, 1\\], got nan
sample --workdir=vp --solver=ddim:eta=2          | expected eta within \\[0, 1\\], got 2
sample --workdir=vp --solver=nowhere.Solver      | cannot import nowhere.Solver
sample --workdir=vp --solver=os.system           | a class derived from scorefield.solvers
sample --workdir=vp --solver=dpm:released=True   | order 3 only
sample --workdir=vp --solver=unipc:order=4       | order 1 to 3
sample --workdir=vp --solver=heun:variable=sundial | time, sigma, log_snr, soft_clipped
sample --workdir=vp --solver=pc:predictor=unipc  | corrector=False
sample --workdir=vp --solver=churn:solver=dpm    | one-step solver to churn
sample --workdir=vp --grid=uniformly             | did you mean 'uniform'
sample --workdir=vp --grid=karras:rho=0          | positive rho, got 0
sample --workdir=vp --grid=sigmas:levels=abc     | levels=\\(10,1,0.1\\)
sample --workdir=vp --grid=optimal               | measure one with --mode=grid
compare --workdir=vp --steps=0                   | expected --steps of at least 1, got 0
compare --workdir=vp --solver=ddim --solver=dppm | did you mean 'dpm'
restore --workdir=vp                             | expected a --task, as inpaint
restore --workdir=vp --task=inpant               | got 'inpant': did you mean 'inpaint'
restore --workdir=vp --task=inpaint:box=(0,0,9,9) | expected a box .*inside of 8 x 8
restore --workdir=vp --task=inpaint:box=3            | inside of 8 x 8 pixels, got 3: write
restore --workdir=vp --task=fourier --measured --input=objects.npy | expected a picture or an array .npy in objects.npy
restore --workdir=vp --task=fourier --measured --input=complex.npy | finite real numbers in complex.npy, got complex64
restore --workdir=vp --task=fourier --measured --input=scalar.npy | measurements \\(N, .*in scalar.npy, got \\(\\)
restore --workdir=no_data --task=half                | expected images beside a run without a data set.*got no --input
restore --workdir=vp --task=half --method=daps:steps=0 | got 0 and 100: use
restore --workdir=vp --task=inpaint --noise=-1   | expected --noise of 0 or more, got -1
restore --workdir=vp --task=inpaint --samples=0  | expected --samples of at least 1, got 0
restore --workdir=vp --task=inpaint --method=twistd | got 'twistd': did you mean 'twisted'
restore --workdir=vp --task=inpaint --method=twisted:guide=no | expected a guide of jacobian_free
restore --workdir=vp --task=inpaint --method=tmpd --noise=0 | expected a noise_std above 0 for TMPD
restore --workdir=vp --task=phase --method=ddnm  | expected a linear measurement with an adjoint for DDNM
restore --workdir=vp --task=deblur --method=repaint | expected a mask for RePaint
restore --workdir=vp --task=inpaint --solver=ddim | expected no --solver for a method with a run of its own
restore --workdir=vp --task=inpaint --certify    | expected a method that guides a flow beside --certify
restore --workdir=vp --task=inpaint --measured   | expected --input beside --measured
restore --workdir=vp --task=deblur --mask=0.png  | expected --mask with --task=inpaint
restore --workdir=vp --mask=wide_images/0.png --input=one_image | expected a mask of shape \\(8, 8\\)
compare --workdir=vp --task=inpaint --solver=ddim | expected no --solver beside --method
grid --workdir=vp --order=9                      | expected --order of 1 to 4, got 9
grid --workdir=vp --for=fun                      | expected --for of sampling or training, got 'fun'
likelihood --workdir=vp --times=fast             | expected --times of log_snr or measured, got 'fast'
likelihood --workdir=vp --estimators=elbo --times=measured | measure them with --mode=grid --for=training
grid --workdir=vp --num=0                        | expected --num of at least 1, got 0
grid --workdir=vp --output=x.npz                 | expected --output to name a .json file
tune --workdir=vp --budget=0                     | expected --budget of at least 1, got 0
tune --workdir=vp --metric=fid                   | expected --metric of distance or kid, got 'fid'
sample --workdir=vp --solver=tuned               | found none: make it with --mode=tune --budget=10
encode --workdir=vp --num=-1                     | expected --num of at least 1, got -1
encode --workdir=vp --batch=0                    | expected --batch of at least 1, got 0
encode --workdir=vp --split=tset                 | got 'tset'
encode --workdir=vp --solver=ddim:eta=1.0        | adds noise
encode --workdir=vp --solver=churn               | belm to invert exactly
encode --workdir=vp --input=vp --split=test      | expected --input or --split, got both
encode --workdir=vp --data=foldr:path=x          | got 'foldr': did you mean 'folder'
encode --workdir=vp --data=/data/photos          | write folder:path=/data/photos for a path
encode --workdir=vp --data=folder:/data/photos   | '/data/photos' is no key=value
encode --workdir=vp --data=folder                | folder needs path, as in folder:path=VALUE
encode --workdir=vp "--data=folder:path=~/my photos (1),size=8" | /my photos \\(1\\), which is not there
encode --workdir=vp --input=nowhere.npz          | nowhere.npz, which is not there: give an image, a folder
encode --workdir=vp --input=nowhere.png          | nowhere.png, which is not there: give an image, a folder
encode --workdir=vp --input=nowhere/here         | nowhere/here, which is not there: give an image, a folder
encode --workdir=vp --input=torn.npz             | torn.npz: .*cannot be read
encode --workdir=vp --input=text.txt             | text.txt: .*cannot be read
encode --workdir=vp --input=objects.npz          | objects.npz: .*cannot be read
encode --workdir=vp --input=empty.npz            | empty: expected at least one item
encode --workdir=vp --input=wide.npz             | got \\(1, 9, 9\\)
encode --workdir=vp --input=five.npz             | got \\(5, 8, 8\\)
encode --workdir=vp --input=nan.npz              | nan.npz: .*(NaN|fractions)
encode --workdir=vp --input=half.npz             | half.npz: .*fractions
encode --workdir=vp --input=high.npz             | high.*200
encode --workdir=vp --input=complex.npz          | complex
encode --workdir=vp --input=no_images            | expected images in no_images .*, found none
encode --workdir=vp --input=wide_images          | got 256 levels .* in wide_images
encode --workdir=vp --input=torn_images          | torn_images/a.png: not an image that can be read
decode --workdir=vp                              | expected latents in vp/latents.npz, found no file
decode --workdir=vp --input=torn.npz             | torn.npz cannot be read: it is damaged
decode --workdir=vp --input=five.npz             | expected an array `latent` .* in five.npz, got none
decode --workdir=vp --input=latents_wide.npz     | in latents_wide.npz, got \\(3, 1, 9, 9\\)
decode --workdir=vp --input=latents_nan.npz      | NaN
decode --workdir=vp --input=latents_classes.npz  | 0 \\.\\. 9.* 99
compress --workdir=vp --chain=0                  | expected --chain of at least 1
compress --workdir=vp --input=five.npz           | \\(1, 8, 8\\).*\\(5, 8, 8\\)
compress --workdir=vp --output=x.npz             | expected --output to name a .scorefield file
decompress --workdir=vp                          | expected a file of --mode=compress in .*, found none
decompress --workdir=vp --input=torn.npz         | expected a file of --mode=compress in torn.npz, got another
interpolate --workdir=vp --pair=0                | expected --pair of two numbers, as 0,1, got '0'
interpolate --workdir=vp --pair=0,99999          | expected --pair of images 0 .. 359
interpolate --workdir=vp --num=1                 | expected --num of at least 2
likelihood --workdir=vp --tolerance=nan          | expected --tolerance to be a finite number, got 'nan'
likelihood --workdir=vp --tolerance=0            | expected --tolerance above 0
score --workdir=vp --against=array:path=wide.npz,levels=17 | expected data of shape \\(1, 8, 8\\).*got \\(1, 9, 9\\)
score --workdir=vp --against=nothing             | expected one of .*got 'nothing'
score --workdir=vp --estimators=vlb              | expected --estimators of one bound, elbo or dsm.*got 'vlb'
score --workdir=vp --training_images=3           | expected --training_images of at least 10, got 3$
score --workdir=vp --draws=2                     | expected --draws of at least 8, got 2$
score --workdir=vp --tolerance=0.1               | expected a --tolerance above 0 for the solver of ode
likelihood --workdir=vp --num=0                  | expected --num of at least 1, got 0$
likelihood --workdir=vp --draws=1                | expected --draws of at least 2, got 1$
likelihood --workdir=vp --estimators=ode,dms     | --estimators among ode, dsm, vlb, elbo, each once
likelihood --workdir=vp --divergence=huchinson   | did you mean 'hutchinson'
likelihood --workdir=vp --dequantisation=variational | train one with --mode=train_dequantiser
likelihood --workdir=vp --prior=normal           | expected --prior of standard or data, got 'normal'
likelihood --workdir=vp --solver=ddim            | adams_moulton, heun, euler or adaptive
likelihood --workdir=vp --data=array:path=nan.npz | nan: expected finite data
train_dequantiser --workdir=vp --num=0           | expected --num of at least 1, got 0
posthoc_ema --workdir=vp                         | expected --sigma_rel
posthoc_ema --workdir=vp --sigma_rel=0.1         | expected snapshots of the averages, found none
export --workdir=vp --to=onnx                    | --to to be one of scorefield, diffusers, got 'onnx'
export --workdir=vp --output=wide_images         | there is something in wide_images
export --workdir=vp --to=diffusers --output=new  | got MLP
import --workdir=new                             | expected one FILE to import
import --workdir=new nowhere.pt                  | expected --from with the format of nowhere.pt
import --workdir=new --from=edn nowhere.pt       | expected --from with the format .*, got 'edn'
import --workdir=new --from=edm text.txt         | text.txt does not read
import --workdir=vp --from=edm text.txt          | vp holds a run already
import --workdir=new --from=diffusers no_run     | expected a folder of diffusers in no_run
check_data --config=own:folder --config.data.path=nowhere    | path=nowhere was looked for below the current folder, /
check_data --config=own:folder --config.data.path=one_image  | expected at least two items, .* got 1: add items, or
check_data --workdir=no_run                      | expected a run in no_run
check_data --config=own:folder                   | expected a path to the data, got an empty one
check_data --config own:folder --config.data.path no_images | expected images in no_images
check_data --config=own:folder --config.data=folder:path=/x/y,size=32 | expected a folder /x/y, which is not there
check_data --config=own:folder --config.data.path=wide_images --num=1 | expected --num of at least 2, got 1
check_data --config=own:archive --config.data.path=torn.zip | torn.zip: not a zip or tar that can be read
check_data --config=own:array --config.data.path=torn.npz   | torn.npz: .*cannot be read
check_data --config=own:array --config.data.path=nan.npz    | nan: expected finite data
check_data --config=own:toy --config.data.kind=mons         | got 'mons'
check_data --config=mnist:vp                     | expected /\\S+, which is not there: .*DATA_ROOT
train --workdir=new                              | expected --config beside --workdir=new, which holds no run yet
train --workdir=new --config                     | expected a value of --config, got none
train --workdir=new --config=digits --config=mnist | expected --config once, got digits and mnist
train --workdir=new --config=digit:vp            | got 'digit': did you mean 'digits'
train --workdir=new --config=digits:vpp          | got 'vpp': did you mean
train --workdir=new --config=text.txt            | expected text.txt to define get_config
train --workdir=new --config=three.py:x          | to return a ConfigDict, got int
train --workdir=new --config=digits:vp --config.trainng.batch=3       | did you mean 'training'
train --workdir=new --config=digits:vp --config.training.bach=3       | did you mean 'batch'
train --workdir=new --config=digits:vp --config.training=3            | expected a key within training
train --workdir=new --config=digits:vp --config.training.batch=abc    | --config.training.batch to be a whole number
train --workdir=new --config=digits:vp --config.training.batch=0      | expected training.batch to be at least 1, got 0
train --workdir=new --config=digits:vp --config.sde.beta_max=nan      | --config.sde.beta_max to be a finite number
train --workdir=new --config=digits:vp --config.sde.beta_max=-1       | whose log-SNR falls, .*got vp:beta_max=-1
train --workdir=new --config=digits:vp --config.sde.bta=3             | there is beta_max, beta_min
train --workdir=new --config=digits:vp --config.sde=ve:sgma_max=20    | did you mean 'sigma_max'
train --workdir=new --config=digits:vp --config.net=unet:widht=3      | did you mean 'width'
train --workdir=new --config=digits:vp --config.data.name=array       | array needs path, as in array:path=VALUE
train --workdir=new --config=digits:vp --config.training.weight=min_snr:gamma=x | gamma of min_snr to be a number
train --workdir=new --config=digits:vp --config.training.betas=1,2    | two numbers within \\[0, 1\\), got \\(1, 2\\)
train --workdir=new --config=digits:vp --config.training.precision=f8 | float32 or bfloat16, got f8
train --workdir=new --config=digits:vp --config.training.second_order=-1 | training.second_order to be 0 or more, got -1
train --workdir=new --config=digits:vp --config.training.second_order=1 --config.training.compile=true | False with
train --workdir=new --config=digits:vp --config.training.second_order=1 --config.training.sharding=fsdp | ddp with
train --workdir=new --config=digits:vp --ema                          | expected --ema or --noema in --mode=train only
train --workdir=new --config=digits:vp --checkpoint=3                 | expected --checkpoint in --mode=train only
train --workdir=new --config=digits:vp --fork_from=no_run             | expected a run in \\S+no_run
train --workdir=new --config=digits:vp --fork_from=vp                 | cannot fork from \\S+: net.name is 'mlp' there
train --workdir=new --config=digits:vp --fork_from=vp --checkpoint=77 | got '77': the newest are 0000000032
train --workdir=new --config=own:array --config.net=unet --config.data.path=grey.npz | in grey: for grey .*:, None
train --workdir=new --config=own:array --config.net=unet --config.data.path=last.npz | in last: .*0, 3, 1, 2\\)
train --workdir=new --config=latent --config.autoencoder=no_run --config.data=digits | autoencoder in \\S+no_run
codes --workdir=vp                               | expected the directory of an autoencoder, got a run in vp
codes --workdir=no_run --num=1                   | num
train_autoencoder --workdir=new --config=digits:vp | expected the configuration of an autoencoder
train_autoencoder --workdir=new --config=autoencoder:digits --config.loss.norm=l3 | norm
sample --workdir=vp --caption=three              | expected no --caption
sample --workdir=vp --tile=4                     | expected --tile of at least 2 for a latent run
train --workdir=text.txt --config=digits:vp      | expected --workdir to be a folder, got the file text.txt
train --workdir=vp --config=digits:ve            | config.sde.name is 'vp' there and 've' here
train --workdir=vp --config.training.batch=64    | config.training.batch is 16 there and 64 here
"""
TABLE = [[part.strip() for part in line.split("|", 1)] for line in ROWS.strip().splitlines()]


def refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that is refused."""
    status = run(["scorefield", *command])
    said = capsys.readouterr()
    assert status == 2, said.out + said.err
    *notes, line = without_progress(said.err).splitlines()  # a note: which defaults are used, which folder is new
    assert len(notes) <= 1 and not any("error" in note.lower() or "Traceback" in note for note in notes), said.err
    assert line.startswith("error: ") and len(line) <= LONGEST, line
    return line


@pytest.mark.parametrize(("command", "words"), TABLE, ids=[command for command, _ in TABLE])
def test_a_mistake_gets_one_line_that_names_it(
    command: str, words: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("DATA_ROOT", str(place / "no_run"))
    line = refused(shlex.split(command), capsys)
    assert re.search(words, line), line


def test_a_long_value_is_cut_in_the_message(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    solver = f"dpm:order={(1,) * 3000}".replace(" ", "")
    assert run(["scorefield", "sample", f"--workdir={place / 'vp'}", f"--solver={solver}"]) == 2
    assert len(line := capsys.readouterr().err) < 650 and "expected DPMSolver of order 1 to 3" in line


def test_the_table_is_long_and_meets_every_mode() -> None:
    assert len(TABLE) >= 100
    assert {command.split()[0] for command, _ in TABLE} >= {*MODES}


def test_a_full_disk_is_named(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        status = run(
            ["scorefield", "sample", f"--workdir={place / 'vp'}", "--steps=1", f"--output={tmp_path / 'x.npz'}"]
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = without_progress(capsys.readouterr().err)
    assert status == 2 and "expected room for" in error and error.count("\n") == 1, error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["", "--help", "-h", "sample --help", "--mode=sample --num=3 -h", "--version"])
def test_help_and_the_version_are_no_mistakes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["scorefield", *command.split()]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    if command == "--version":
        assert re.fullmatch(r"scorefield \d+\.\d+\.\d+\n", said.out)
    elif "sample" in command:
        assert re.search(r"--num +number of samples.* \[64\]", said.out)
        assert re.search(r"--ema .* \[true\]", said.out) and "--tolerance" not in said.out
    else:
        assert all(f"--mode={mode}" in said.out for mode in MODES) and all(f"--{name}" in said.out for name in OPTIONS)


def test_values_may_stand_as_the_next_word_and_a_run_is_resumed_by_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = (
        "train --workdir {} --config digits:vp --config.sde ve:sigma_max=20 --config.net mlp:width=4,blocks=1 "
        "--config.training.images 32 --config.training.batch 16 --config.training.sample_every 0"
        " --noconfig.training.decay"
    )
    assert run(["scorefield", *first.format(tmp_path / "run").split()]) == 0
    saved = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (saved["sde"]["name"], saved["sde"]["sigma_max"], saved["training"]["images"]) == ("ve", 20, 32)
    capsys.readouterr()
    assert run(["scorefield", "--mode=train", f"--workdir={tmp_path / 'run'}"]) == 0
    assert "has been trained to its end" in capsys.readouterr().out
    longer = ["--config.training.images=64", "--config.training.learning_rate=1e-3"]
    assert run(["scorefield", "--mode=train", f"--workdir={tmp_path / 'run'}", *longer]) == 0
    assert (tmp_path / "run" / "checkpoints" / "0000000064").is_dir()
