"""The experiments of the DDIM paper on the demo's digits: the tables and pictures of docs/ddim.md.

Run `make demo`, then `python -m scorefield.benchmarks.ddim --workdir=runs/demo/vp --output=docs/ddim`.

Song, Meng and Ermon 2021: Table 1 (quality by steps and eta), Table 2 (reconstruction), Fig. 5 (one latent, many
lengths), Fig. 6 (interpolation).
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scorefield.commands.flow import along_flow, rms
from scorefield.commands.generate import generate
from scorefield.commands.interpolate import spherical
from scorefield.commands.run import stored_tensor
from scorefield.commands.trained import Trained, open_trained
from scorefield.evaluation import DigitProbe, plot_rows
from scorefield.training.data import digits

STEPS = (5, 10, 20, 50, 100)
LONG = 500


def samples(trained: Trained, num: int, steps: int, eta: float) -> Tensor:
    sampling = {"solver": {"name": "ddim", "eta": eta}, "grid": "uniform", "steps": steps, "denoise": True}
    return generate(trained.run, trained.denoiser, num, sampling=sampling, seed=0, batch=500, show=False)


def frechet(x: Tensor, y: Tensor) -> float:
    """The Frechet distance of two Gaussians fitted to pixels, as FID does with features."""
    (m, s), (n, t) = ((np.mean(a, 0), np.cov(a, rowvar=False)) for a in (x.flatten(1).numpy(), y.flatten(1).numpy()))
    root = np.sqrt(np.linalg.eigvals(s @ t).real.clip(min=0)).sum()  # of products of covariances these are real
    return float(((m - n) ** 2).sum() + np.trace(s + t) - 2 * root)


def quality(trained: Trained, real: Tensor, num: int) -> None:
    """Table 1: eta = 1 needs many steps, eta = 0 few."""
    run = trained.run
    print(f"### Quality of {num} samples: Frechet distance of pixels to the training digits, in thousandths\n")
    print("| eta | " + " | ".join(f"{n} steps" for n in STEPS) + " |\n|---|" + "---|" * len(STEPS))
    for eta in (0.0, 0.5, 1.0):
        cells = []
        for steps in STEPS:
            x = run.to_stored(samples(trained, num, steps, eta))
            cells.append(f"{1000 * frechet(x.double() / 16, real):.0f}")
        print(f"| {eta} | " + " | ".join(cells) + " |")
    first, second = real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))].chunk(2)
    print(f"\nOne half of the training digits against the other: {1000 * frechet(first, second):.0f}.\n")


def one_latent(trained: Trained, probe: DigitProbe, output: Path, num: int) -> None:
    """Fig. 5: without noise the latent decides the image, and the number of steps only its details."""
    run, rows = trained.run, dict[str, Tensor]()
    print("### One latent at every length\n")
    print(f"| eta | agrees with {LONG} steps of its own eta | " + " | ".join(f"{n} steps" for n in STEPS) + " |")
    print("|---|---|" + "---|" * len(STEPS))
    for eta in (0.0, 1.0):
        long = samples(trained, num, LONG, eta)
        cells = []
        for steps in (*STEPS, LONG):
            x = samples(trained, num, steps, eta)
            same = float((probe.classes(run.to_stored(x).numpy()) == probe.classes(run.to_stored(long).numpy())).mean())
            together = torch.corrcoef(torch.stack([x.flatten(), long.flatten()]))[0, 1]
            cells.append(f"{same:.1%}, {float(together):.3f}")
            rows[f"eta = {eta:g}, {steps} steps"] = run.viewable(run.to_stored(x[:16]))
        print(f"| {eta} | class, correlation | " + " | ".join(cells[:-1]) + " |")
    print(f"\n![one latent, many lengths]({output.name}/lengths.png)\n")
    plot_rows(rows, output / "lengths.png")


def reconstruction(trained: Trained, output: Path, num: int) -> None:
    """Table 2: the error of encoding and decoding falls with the steps."""
    run = trained.run
    stored = stored_tensor(run.dataset("test"))[:num]
    x0, rows = run.centred(stored).to(run.device), {"held-out digits": run.viewable(stored[:16])}
    lengths = (*STEPS, 200, 500)
    print(f"### Reconstruction of {len(stored)} held-out digits, rms error per pixel of [-1, 1]\n")
    print("| solver | " + " | ".join(f"{n} steps" for n in lengths) + " |\n|---|" + "---|" * len(lengths))
    for solver in ("ddim", "unipc:order=2", "belm"):
        errors = []
        for steps in lengths:
            options = {"solver": solver, "grid": "log_snr", "steps": steps}
            z, before = along_flow(run, trained.denoiser, x0, options, up=True, show=False)
            back, _ = along_flow(run, trained.denoiser, z, options, up=False, before=before, show=False)
            errors.append(rms(back, x0.cpu()))
            if solver == "ddim" and steps <= 100:
                rows[f"ddim, {steps} steps"] = run.viewable(run.to_stored(back[:16]))
        print(f"| {solver} | " + " | ".join(f"{e:.1e}" for e in errors) + " |")
    print(f"\n![held-out digits and their reconstructions]({output.name}/reconstruction.png)\n")
    plot_rows(rows, output / "reconstruction.png")


def interpolation(trained: Trained, probe: DigitProbe, output: Path, num: int) -> None:
    """Fig. 6: images between two latents are sharp on the sphere, and fade in the middle of the chord."""
    run, weights = trained.run, torch.linspace(0, 1, 11)
    options = {"solver": "ddim", "grid": "log_snr", "steps": 50}
    shape = (2 * num, *run.data.shape)
    ends = run.sde.prior(shape, noise=lambda x: torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    pairs, rows = list(zip(ends[:num], ends[num:], strict=True)), dict[str, Tensor]()
    print(f"### Interpolation between {num} pairs of latents: deviation of pixels, confidence of the classifier\n")
    print("| way | " + " | ".join(f"{w:.1f}" for w in weights.tolist()) + " |\n|---|" + "---|" * len(weights))
    for name in ("sphere", "chord"):
        along = spherical if name == "sphere" else chord
        between = torch.stack([along(a, b, weights) for a, b in pairs])
        x, _ = along_flow(run, trained.denoiser, between.flatten(0, 1), options, up=False, show=False)
        images = run.to_stored(x).reshape(num, len(weights), *run.data.shape)
        contrast = x.reshape(num, len(weights), -1).std(2).mean(0)
        sure = [probe.confidence(images[:, i].numpy()) for i in range(len(weights))]
        cells = [f"{c:.2f}, {p:.2f}" for c, p in zip(contrast.tolist(), sure, strict=True)]
        print(f"| {name} | " + " | ".join(cells) + " |")
        rows |= {f"{name}, pair {i}": run.viewable(images[i]) for i in range(3)}
    print(f"\n![between latents]({output.name}/interpolation.png)\n")
    plot_rows(rows, output / "interpolation.png")


def chord(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    return torch.lerp(a, b, weights.reshape(-1, *(1,) * a.ndim))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo/vp"))
    parser.add_argument("--output", type=Path, default=Path("docs/ddim"))
    parser.add_argument("--num", type=int, default=1000)
    arguments = parser.parse_args()
    trained, data = open_trained(arguments.workdir), digits("train")
    assert data.label is not None
    probe, real = DigitProbe(data.x, data.label), torch.as_tensor(data.x).double() / 16
    quality(trained, real, arguments.num)
    one_latent(trained, probe, arguments.output, max(arguments.num // 8, 16))
    reconstruction(trained, arguments.output, max(arguments.num // 8, 16))
    interpolation(trained, probe, arguments.output, max(arguments.num // 40, 3))


if __name__ == "__main__":
    main()
