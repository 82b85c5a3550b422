"""The table and the picture of benchmarks/f_sweep.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scorefield.evaluation.curves import plot_panels

BETTER, FASTER = 3.0, 8.0  # what f = 4 is held to against f = 1: the distance, and images a second
SPEED_STEPS = 20  # where the latter counts; with fewer steps decoding takes a larger share

Results = dict[str, Any]


def table(results: Results, factors: Sequence[int], steps: Sequence[int]) -> str:
    """Markdown: what was trained, the distances, the speeds, and f = 4 against f = 1."""
    of = {f: results["factors"][str(f)] for f in factors}
    lines = [
        f"{results['data']}, {results['seconds']:g} seconds of training for each f ({results['threads']} threads), "
        f"{results['samples']} samples; classifier right on {results['accuracy']:.1%} of the test images. Frechet "
        f"distance of {results['samples']} training images to the test images: {results['real']:.1f}.",
        "",
        "| f | codes | seconds: autoencoder, diffusion | images: autoencoder, diffusion | PSNR, dB | reconstructions | "
        + " | ".join(f"{n} steps" for n in steps)
        + " |",
        "|---" * (6 + len(steps)) + "|",
    ]
    for f, found in of.items():
        own = f > 1
        seconds = f"{found['autoencoder_seconds']:.0f}, " if own else ""
        images = f"{found['autoencoder_images']:,}, " if own else ""
        psnr, again = (f"{found[key]:.1f}" if own else "" for key in ("psnr", "reconstructed"))
        distances = " | ".join(f"{found['frechet'][str(n)]:.1f}" for n in steps)
        lines.append(
            f"| {f} | {'x'.join(map(str, found['shape']))} | {seconds}{found['diffusion_seconds']:.0f} | "
            f"{images}{found['diffusion']['images']:,} | {psnr} | {again} | {distances} |"
        )
    lines += ["", "Images a second:", "", "| f | " + " | ".join(f"{n} steps" for n in steps) + " |"]
    lines.append("|---" * (1 + len(steps)) + "|")
    for f, found in of.items():
        lines.append(f"| {f} | " + " | ".join(f"{found['images_per_second'][str(n)]:.1f}" for n in steps) + " |")
    return "\n".join([*lines, *verdict(of, steps), ""])


def verdict(of: dict[int, Results], steps: Sequence[int]) -> list[str]:
    """Whether f = 4 is as much better than f = 1 as it must be: at every number of steps, and as fast at 20."""
    if not {1, 4} <= of.keys():
        return []
    better = [of[1]["frechet"][str(n)] / of[4]["frechet"][str(n)] for n in steps]
    faster = [of[4]["images_per_second"][str(n)] / of[1]["images_per_second"][str(n)] for n in steps]
    speed = faster[min(range(len(steps)), key=lambda i: abs(steps[i] - SPEED_STEPS))]
    return [
        "",
        f"f = 4 against f = 1: a distance {_times(better)} times smaller; at least {BETTER:g} is "
        f"{_held(min(better) >= BETTER)}. {_times(faster)} times the images a second; at least {FASTER:g} at "
        f"{SPEED_STEPS} steps is {_held(speed >= FASTER)}.",
    ]


def _times(ratios: Sequence[float]) -> str:
    return ", ".join(f"{ratio:.1f}" for ratio in ratios)


def _held(well: bool) -> str:
    return "held" if well else "NOT held"


def picture(results: Results, factors: Sequence[int], steps: Sequence[int], path: Path) -> None:
    """Distances and speeds along the number of steps, a curve for each f."""

    def curves(key: str) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
        of = {f: results["factors"][str(f)][key] for f in factors}
        return {f"f = {f}": (steps, [found[str(n)] for n in steps]) for f, found in of.items()}

    plot_panels(
        {"Frechet distance to test images": curves("frechet"), "images a second": curves("images_per_second")},
        path, x="steps of DDIM", log="xy",
    )  # fmt: skip
