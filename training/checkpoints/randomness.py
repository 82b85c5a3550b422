"""The random states of a process, so that resumed training draws the same numbers."""

import random
from typing import Any

import numpy as np
import torch
from torch import Generator


def random_states(generator: Generator) -> dict[str, Any]:
    """The state's generator, and the global ones of Python, NumPy, torch and the generator's CUDA device.

    They are plain numbers and tensors, which load with `weights_only=True`.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)
    on_cuda = generator.device.type == "cuda"
    return {
        "generator": generator.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(generator.device) if on_cuda else None,
        "python": (version, torch.tensor(words, dtype=torch.int64), gauss),
        "numpy": (str(name), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)),
    }


def restore(states: dict[str, Any], generator: Generator) -> None:
    """Restore what `random_states` returned; generators that an earlier version did not save keep their state."""
    generator.set_state(states["generator"])
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and generator.device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], generator.device)
    if "python" in states:
        version, words, gauss = states["python"]
        random.setstate((version, tuple(words.tolist()), gauss))
    if "numpy" in states:
        name, keys, position, has_gauss, cached = states["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
