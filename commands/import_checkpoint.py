"""Make a run of somebody else's checkpoint: sampled, encoded and scored like one that was trained here.

Of an autoencoder it makes the directory that `--mode=train_autoencoder` makes.
"""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
import torch

from scorefield.commands.autoencoder_files import (
    StoredAutoencoder,
    has_autoencoder,
    read_autoencoder,
    write_autoencoder,
)
from scorefield.commands.captions import FILE as TOKENIZER
from scorefield.commands.captions import takes_captions
from scorefield.commands.codes import accepted
from scorefield.commands.data_facts import DataFacts
from scorefield.commands.data_places import make_absolute, open_split
from scorefield.commands.outputs import write_json
from scorefield.commands.progress_bar import tell
from scorefield.commands.run import Run, device_of
from scorefield.configs import build
from scorefield.configs.defaults import defaults
from scorefield.configs.specs import FROM_DATA
from scorefield.models.checkpoints.autoencoders import SOURCES as AUTOENCODERS
from scorefield.models.checkpoints.autoencoders import OpenedAutoencoder, holds_autoencoder, load_autoencoder_checkpoint
from scorefield.models.checkpoints.load import SOURCES, open_checkpoint
from scorefield.models.checkpoints.spec import CheckpointSpec, FirstStage
from scorefield.models.conditioned import ConditionedNetwork
from scorefield.models.denoiser import Denoiser
from scorefield.models.hyperparameters import settings_of
from scorefield.models.text_tokens import WordPieces
from scorefield.training.checkpoints.atomic import atomic_dir, write_tensors

# The data sets that a shape and a range of values suggest.
DATASETS: dict[tuple[int, ...], str] = {(3, 32, 32): "cifar10", (1, 28, 28): "mnist", (1, 8, 8): "digits"}

ALL_SOURCES = tuple(dict.fromkeys((*SOURCES, *AUTOENCODERS)))
LONGEST = 120  # letters of a spec that is printed


def import_checkpoint(
    workdir: Path,
    *,
    file: str,
    source: str = "",
    architecture: str | None = None,
    data: str | None = None,
) -> dict[str, Any]:
    """Write a run to `workdir` from a checkpoint: its configuration, its weights (averaged and raw) and import.json.

    Of an autoencoder's checkpoint, write its two files and import.json.

    Args:
        workdir: of the run, which must not hold one yet.
        file: the checkpoint, or a folder for diffusers and for our own.
        source: whose, see `models.checkpoints`.
        architecture: what the weights do not tell, as key=value,key=value by the source's own names.
        data: the data set it is scored on, as cifar10 or folder:path='images'; by default the one of its shape. An
            autoencoder's codes are measured on it.

    Raises:
        ValueError: if the file does not read or does not fit, or the directory holds a run; nothing is written then.
    """
    if not source:
        raise ValueError(f"expected --from with the format of {file}, one of {', '.join(ALL_SOURCES)}")
    if has_autoencoder(workdir):
        raise ValueError(f"{workdir} holds an autoencoder already: choose another --workdir")
    if (workdir / "config.json").exists() or (workdir.exists() and not workdir.is_dir()):
        raise ValueError(f"{workdir} holds a run already, or is no folder: choose another --workdir")
    tell(f"reads {file}")
    keywords = build.parse(f"architecture:{architecture or ''}")
    del keywords["name"]
    if holds_autoencoder(file, source):
        return _import_autoencoder(workdir, file, source, keywords, data)
    if source not in SOURCES:
        raise ValueError(f"expected --from with the format of {file}, one of {', '.join(ALL_SOURCES)}, got {source!r}")
    opened = open_checkpoint(Path(file), source, keywords, both=True)
    spec, denoiser, report = opened.spec, opened.denoiser, opened.report
    classes = (spec.class_names, spec.class_counts)
    first_stage = None if spec.first_stage is None else _stored(spec.first_stage, f"{source}: {file}")
    if source == "scorefield" and has_autoencoder(Path(file)):
        first_stage = read_autoencoder(Path(file))
    shape, levels = spec.shape, spec.levels
    if first_stage is not None:
        shape, levels = first_stage.image_shape(spec.shape), first_stage.levels
    config = _configuration(spec, denoiser, data, shape)
    facts = DataFacts(Path(file).stem, shape, levels, spec.num_classes, "", *classes)
    run = Run(workdir, config, facts, device_of("cpu"))
    if first_stage is not None:
        config.autoencoder = str(workdir.absolute())
        run.autoencoder = first_stage  # its files are written with the rest
    if takes_captions(config):
        config.tokenizer = str(_tokenizer_with(Path(file), config.conditioner))
    weights = denoiser.state_dict()
    with torch.device("meta"):  # its names and shapes alone
        inputs = getattr(spec.precondition, "inputs", 1)
        rebuilt = build.network(config, spec.shape, run.num_classes, inputs).state_dict()
    if {f"net.{k}": v.shape for k, v in rebuilt.items()} != {k: v.shape for k, v in weights.items()}:
        raise ValueError(f"{file} was read, but its network cannot be described as a configuration: load it in Python")

    if data is not None:
        run.dataset("test")  # a mistake in it comes now
        make_absolute(config.data)

    checkpoint = workdir / "checkpoints" / f"{0:010d}"
    shutil.rmtree(checkpoint, ignore_errors=True)  # of an import that was interrupted: there is no config.json
    with atomic_dir(checkpoint) as part:
        for name, tensors in (("ema", weights), ("model", opened.raw or weights)):
            write_tensors(part / f"{name}.safetensors", tensors)
    file_written = write_json(
        workdir / "import.json", {"file": str(file), "source": source, **dataclasses.asdict(report)}
    )
    run.save()
    outside = "; its context is made outside, so commands sample without one" if spec.tokens else ""
    return {
        "verdict": f"{report}{outside}",
        "path": _short(build.unparse(config.sde)),
        "predicts": _short(build.unparse(config.precondition)),
        "files": [str(path) for path in (run.workdir / "config.json", checkpoint, file_written)],
    }


def _import_autoencoder(
    workdir: Path, file: str, source: str, architecture: Mapping[str, Any], data: str | None
) -> dict[str, Any]:
    opened = load_autoencoder_checkpoint(file, source, **architecture)
    known = opened.scale is not None
    stored = _stored(opened, f"{source}: {file}")
    if data is not None:
        stored = dataclasses.replace(stored, data=build.spec(build.DATASETS, data))
        make_absolute(stored.data)
        accepted(stored, open_split(stored.data, "test"))  # a mistake in it comes now
    written = write_autoencoder(workdir, stored)
    facts = {"file": str(file), "source": source, **dataclasses.asdict(opened.report)}
    written.append(write_json(workdir / "import.json", facts))
    measure = f"--mode=codes --workdir={workdir}{'' if data else ' --data=DATA'} measures them"
    return {
        "verdict": str(opened.report),
        "autoencoder": _short(build.unparse(stored.net)),
        "codes": f"{stored.code_channels} channels, images smaller by {stored.factor}",
        "scale and shift of the codes": f"as in the checkpoint; {measure}" if known else f"not known; {measure}",
        "files": [str(path) for path in written],
    }


def _tokenizer_with(file: Path, conditioner: ml_collections.ConfigDict) -> Path:
    """The tokeniser of a text model: in its folder, or beside its file.

    Raises:
        ValueError: if there is none, or it has more tokens than the model.
    """
    folder = (file if file.is_dir() else file.parent).absolute()
    found = next((folder / name for name in (TOKENIZER, "vocab.txt") if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(
            f"expected the tokeniser of a text model in {folder}, as {TOKENIZER} or BERT's vocab.txt, found none: put "
            "it there"
        )
    size = WordPieces.read(found, conditioner.length).size
    if size > conditioner.vocabulary:
        raise ValueError(
            f"expected a tokeniser of at most {conditioner.vocabulary} tokens, as this model was trained with, got "
            f"{size} in {found}: put the right one there"
        )
    return found


def _by_channel(value: float | tuple[float, ...] | None, otherwise: float) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (otherwise if value is None else value,)


def _stored(opened: OpenedAutoencoder | FirstStage, source: str) -> StoredAutoencoder:
    return StoredAutoencoder(
        module=opened.module,
        net=build.autoencoder_spec(opened.module),
        shape=opened.shape,
        scale=_by_channel(opened.scale, 1.0),
        shift=_by_channel(opened.shift, 0.0),
        source=source,
    )


def _short(text: str) -> str:
    """The text, of which hundreds of numbers are left out."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _configuration(
    spec: CheckpointSpec, denoiser: Denoiser, data: str | None, shape: tuple[int, ...]
) -> ml_collections.ConfigDict:
    """The configuration of a run, of data of this shape."""
    config, net = defaults(), denoiser.net
    name = DATASETS.get(shape, "folder" if len(shape) == 3 else "array")
    config.data = build.spec(build.DATASETS, data or (name if name in DATASETS.values() else f"{name}:path=''"))
    if isinstance(net, ConditionedNetwork):
        config.conditioner = _spec_of(build.CONDITIONERS, net.conditioner)
        net = net.net
    config.net = _spec_of(build.NETWORKS, net)
    config.sde = build.sde_spec(spec.sde)
    config.precondition = build.precondition_spec(spec.precondition, spec.sde)
    config.training.labels = spec.num_classes is not None
    config.training.label_dropout = 0.1 if spec.unlabelled else 0.0
    if spec.levels is not None:
        config.transform.update(low=spec.low, high=spec.high)
    return config


def _spec_of(table: build.Table, part: Any) -> ml_collections.ConfigDict:
    """The spec of a network or conditioner as it was made."""
    settings = {key: value for key, value in settings_of(part).items() if key not in FROM_DATA}
    return build.spec(table, build.name_of(table, type(part)), **settings)
