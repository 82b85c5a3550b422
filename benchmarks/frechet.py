"""How much quicker the Frechet distance is by singular values than by the eigenvalues of a product of covariances.

    python -m scorefield.benchmarks.frechet [--rows=500] [--width=2048] [--repeats=3]

Both ways on the same random features, in turn; the median of the repeats.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

from scorefield.evaluation.metrics.frechet import frechet_distance


def by_eigenvalues(a: torch.Tensor, b: torch.Tensor) -> float:
    """As torch-fidelity and dgm-eval take it: the eigenvalues of the product of both covariances."""
    x, y = a.double().numpy(), b.double().numpy()
    shift, of_a, of_b = x.mean(0) - y.mean(0), np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    shared = np.sqrt(np.linalg.eigvals(of_a @ of_b).astype(np.complex128)).real.sum()
    return float(shift @ shift + np.trace(of_a) + np.trace(of_b) - 2 * shared)


def seconds(call: Callable[[], float]) -> tuple[float, float]:
    start = time.process_time()
    value = call()
    return time.process_time() - start, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("rows", 500), ("width", 2048), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(args.rows, args.width, generator=generator) * scale for scale in (1.0, 1.2))
    ours, theirs = [], []
    for _ in range(args.repeats):
        ours.append(seconds(lambda: frechet_distance(a, b)))
        theirs.append(seconds(lambda: by_eigenvalues(a, b)))
    quick, slow = median(each[0] for each in ours), median(each[0] for each in theirs)
    print("way | seconds of CPU | distance\n---|---|---")
    print(f"singular values | {quick:.3f} | {ours[0][1]:.10g}")
    print(f"eigenvalues of the product | {slow:.3f} | {theirs[0][1]:.10g}")
    print(f"\n{slow / quick:.0f} times quicker at {args.rows} rows, {args.width} features.")


if __name__ == "__main__":
    main()
