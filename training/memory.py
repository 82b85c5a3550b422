"""How much memory training takes."""

import os
from pathlib import Path

import torch

STATM = Path("/proc/self/statm")


def memory(device: torch.device) -> dict[str, float]:
    """This process's resident memory, and the most its tensors on a CUDA device ever took, in MiB.

    Where the system does not say (Linux does, in /proc), it is left out.
    """
    found = {}
    if STATM.is_file():
        found["memory_mib"] = int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    if device.type == "cuda":
        found["cuda_memory_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    return found
