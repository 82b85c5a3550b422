"""One thread a worker: the tests are many small computations, and as many workers as cores share the machine."""

import os

import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)
