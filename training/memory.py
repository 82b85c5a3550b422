"""The memory that training takes."""

import os
from pathlib import Path

import torch

STATM = Path("/proc/self/statm")


def memory(device: torch.device) -> dict[str, float]:
    """This process's resident memory, and the largest that its tensors on a CUDA device took, in MiB.

    Resident memory is absent where the system has no /proc.
    """
    sizes = {}
    if STATM.is_file():
        sizes["memory_mib"] = int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    if device.type == "cuda":
        sizes["cuda_memory_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    return sizes
