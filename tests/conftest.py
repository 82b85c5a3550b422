"""One thread a worker: the tests are many small computations, and as many workers as cores share the machine."""

import os

import torch

threads = os.environ.setdefault("SCOREFIELD_TEST_THREADS", "1")  # more for a study of rounding
os.environ["OMP_NUM_THREADS"] = threads  # for the processes that tests start
torch.set_num_threads(int(threads))
