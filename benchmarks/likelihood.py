"""The evaluations that a likelihood needs: this library beside the recipe of score_sde_pytorch, in one run.

    python -m scorefield.benchmarks.likelihood [--vp=WORKDIR] [--vdm=WORKDIR] [--quick]

The recipe is scipy's RK45 with rtol = atol = 1e-5, in time from t_min to t_max, with all images and their log-densities
in one float64 state. One Rademacher probe serves the trajectory. Every evaluation runs the flow without a graph, and a
second time with one for the product with the probe. This library: `choose_solver`, `AdamsMoulton`, and fresh probes.

One evaluation here is one forward pass and one product. Errors and deviations are in bits/dim, of one image.
"""

import argparse
import platform
import time
from datetime import date
from pathlib import Path

import scipy
import torch

from scorefield.benchmarks.likelihood_mixtures import PATHS, PROBLEMS, agrees, analytic_tables
from scorefield.benchmarks.likelihood_trained import (
    MAX_PROBE_NFE,
    Case,
    Part,
    dequantisation_table,
    trained_tables,
)
from scorefield.likelihood import TruncatedNormal, Uniform


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vp", type=Path, help="a run of configs/mnist.py:vp")
    parser.add_argument("--vdm", type=Path, help="a run of configs/mnist.py:vdm")
    parser.add_argument("--only", choices=("analytic", "vp", "vdm"), help="one part")
    parser.add_argument("--quick", action="store_true", help="a smoke run of two minutes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    machine = f"{platform.processor() or platform.machine()}, 1 thread"
    print(f"{date.today()}, {machine}, torch {torch.__version__}, scipy {scipy.__version__}")
    started, quick = time.perf_counter(), args.quick
    if args.only in (None, "analytic"):
        torch.set_default_dtype(torch.float64)
        agrees()
        analytic_tables(PROBLEMS[:2] if quick else PROBLEMS, ("vp",) if quick else tuple(PATHS), 32 if quick else 64)
        torch.set_default_dtype(torch.float32)
    seeds = 8 if quick else 20
    parts: dict[str, Part] = {
        "vp": Part(args.vp, Uniform(), 16, (15, 20, 25, 30, 40, 60), 300, 25),
        "vdm": Part(args.vdm, TruncatedNormal(), 4, (39, MAX_PROBE_NFE, 203, 403), 800, None),
    }
    for name, (workdir, dequantisation, count, evaluations, fine, coarse) in parts.items():
        if workdir is None:
            print(f"\n{name}: left out, no --{name}=WORKDIR")
        elif args.only in (None, name):
            print(f"\n## {name}, trained, by {dequantisation}")
            if quick:
                count, evaluations, fine, coarse = 2, evaluations[:2], fine // 4, None
            plan = trained_tables(case := Case(workdir, dequantisation, count, count), evaluations, fine, seeds, coarse)
            dequantisation_table(case, plan)
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
