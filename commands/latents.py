"""A file of latents, which holds what made them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorefield.commands.outputs import report_beside, write_arrays

COND = "cond_"  # before the names of arrays in the file


@dataclass(frozen=True)
class Latents:
    """What `encode` writes and `decode` reads.

    Args:
        latent: (N, *D).
        made_by: solver, grid, steps, checkpoint, weights and checkpoint_sha256 of the encoding.
        t: the falling times of its grid, (T,); not in files of older versions.
        before: the states before the latents, of the solver belm, (N, *D).
        x: the images, as they are stored, (N, *D).
        label: their classes, (N,).
        index: their places in the data set, (N,).
        cond: what else they are conditioned on, by the denoiser's keywords, (N, ...) each.
    """

    latent: Tensor
    made_by: dict[str, Any]
    t: Tensor | None = None
    before: Tensor | None = None
    x: Tensor | None = None
    label: Tensor | None = None
    index: NDArray[np.int64] | None = field(default=None, repr=False)
    cond: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def conditioning(self) -> dict[str, Tensor]:
        """The keywords of the denoiser with a row for each latent, the class among them."""
        return {**self.cond, **({} if self.label is None else {"label": self.label})}

    def write(self, path: Path) -> Path:
        """Write an .npz of the arrays, with `made_by` as JSON."""
        arrays = {key: value for key, value in vars(self).items() if key not in ("made_by", "cond")}
        others = {f"{COND}{key}": value for key, value in self.cond.items()}
        return write_arrays(path, **arrays, **others, made_by=json.dumps(self.made_by))

    @classmethod
    def read(cls, path: Path, shape: tuple[int, ...]) -> "Latents":
        """The latents of items of a shape. What made those of an older version is in the report beside them.

        Raises:
            ValueError: if there is no such file, it does not read, or the latents have another shape.
        """
        if not path.is_file():
            raise ValueError(
                f"expected latents in {path}, found no file: make them with --mode=encode, or give --input"
            )
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            made_by = json.loads(str(arrays.pop("made_by"))) if "made_by" in arrays else report_beside(path)
        except Exception:  # numpy and zipfile raise anything for a damaged file
            raise ValueError(f"{path} cannot be read: it is damaged, or no .npz of arrays; encode again") from None
        latent = arrays.get("latent")
        if latent is None or latent.shape[1:] != shape:
            got = "none" if latent is None else str(latent.shape)
            raise ValueError(
                f"expected an array `latent` of shape (N, {', '.join(map(str, shape))}) in {path}, got {got}"
            )
        tensors = {key: torch.as_tensor(arrays[key]) for key in ("t", "before", "x", "label") if key in arrays}
        cond = {key.removeprefix(COND): torch.as_tensor(a) for key, a in arrays.items() if key.startswith(COND)}
        return cls(torch.as_tensor(latent).float(), made_by, **tensors, index=arrays.get("index"), cond=cond)
