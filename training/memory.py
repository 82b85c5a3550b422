"""How much memory training takes, and keeping what it has."""

import ctypes
import os
from pathlib import Path

import torch

# Of glibc's mallopt.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
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


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed for what is asked for next; whether it took the hint (glibc does).

    A step on the CPU frees and asks for its activations over and over. By default large ones go back to the system,
    which clears each page anew: 4% of the time of a training step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1)) and bool(mallopt(M_MMAP_THRESHOLD, 2**25))
