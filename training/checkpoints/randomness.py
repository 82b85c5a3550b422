"""The random states of a process, so that training goes on with the numbers it would have drawn."""

import random
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Generator


def random_states(generator: Generator) -> dict[str, Any]:
    """The state's generator, and the global ones of Python, NumPy, torch and the generator's CUDA device.

    Plain numbers and tensors alone, which load with `weights_only=True`.
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
    """Put back what `random_states` gave; what an earlier version did not keep is left as it is."""
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


def of_every_rank(own: dict[str, Any]) -> list[dict[str, Any]]:
    """The states of all processes in the order of their ranks; every one of them must ask."""
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, own)
    return states


def rank() -> int:
    """Of this process, 0 where there is only one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def processes() -> int:
    """How many train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
