"""The trade-off of latent diffusion: how many pixels f of a side make a code, at equal time.

python -m scorefield.benchmarks.f_sweep --folder=runs/f_sweep [--data=fashion_mnist] [--seconds=60] [--factors 1 2 4 8]

Rombach et al. 2022, Figs. 6 and 7, on small images. For each f an autoencoder and a diffusion in its codes share the
same seconds of training; f = 1 has pixels, and all of them for the diffusion. The U-Net is the same everywhere. Short
trainings in a temporary folder measure the speed, from which the number of images follows. Then samples by DDIM are
compared with the test images, in 64 features of a classifier. Results are kept in the folder, and the same command
continues an interrupted one.

Seconds are those of the processor, divided by the number of threads: other work of the machine does not count.

Writes f_sweep.md, f_sweep.json and f_sweep.png.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ml_collections
import torch
from torch import Tensor

from scorefield.benchmarks.classifier import DATA, Classifier, classifier, features_of, images_of
from scorefield.benchmarks.f_sweep_report import Results, picture, table
from scorefield.commands.autoencoder_files import read_autoencoder
from scorefield.commands.code_cache import encoded
from scorefield.commands.generate import generate
from scorefield.commands.outputs import write_json
from scorefield.commands.run import Run, stored_tensor
from scorefield.commands.train.command import train
from scorefield.commands.train_autoencoder.command import train_autoencoder
from scorefield.commands.trained import open_trained
from scorefield.configs import autoencoder, build, latent
from scorefield.evaluation.metrics.frechet import frechet_distance
from scorefield.training import latest
from scorefield.training.data import Dataset

SIDE = 32  # of the images, with their border of zeros
UNET = "unet:width=32,multipliers=(1,2,2),blocks=1,attention=(2,)"
PILOT = 64, 128, 384  # images of short trainings; the first one prepares, and the difference of the others is timed
ENCODED = 512  # images whose encoding is timed
BATCH = 250  # of sampling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--data", choices=list(DATA), default="fashion_mnist")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training, for each f")
    parser.add_argument("--share", type=float, default=0.5, help="of the seconds, for the autoencoder")
    parser.add_argument("--factors", type=int, nargs="+", choices=(1, 2, 4, 8), default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 50, 100], help="of DDIM")
    parser.add_argument("--samples", type=int, default=500)
    args = parser.parse_args()
    place = Kept(args.folder, {key: getattr(args, key) for key in ("data", "seconds", "share", "samples")})
    judge = Judge.of(args.data, args.folder, args.samples)
    place.results.update(accuracy=judge.model.accuracy, real=judge.distance(images_of(DATA[args.data](), args.samples)))
    for factor in args.factors:
        trained(place, factor, args.seconds, args.share)
        measured(place, factor, judge, args.steps, args.samples)
    text = table(place.results, args.factors, args.steps)
    (args.folder / "f_sweep.md").write_text(text)
    picture(place.results, args.factors, args.steps, args.folder / "f_sweep.png")
    print(text)


class Kept:
    """The folder and its results, by f; f_sweep.json is written after each of them.

    Raises:
        ValueError: if the folder has results of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.file = folder, folder / "f_sweep.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.results: Results = {**settings, "net": UNET, "threads": torch.get_num_threads(), "factors": {}}
        if self.file.is_file():
            self.results = json.loads(self.file.read_text())
            odd = [key for key in settings if self.results[key] != settings[key]]
            if odd:
                raise ValueError(
                    f"expected --{odd[0]} of {self.results[odd[0]]} in {folder}, got {settings[odd[0]]}: take another "
                    "--folder"
                )

    def of(self, factor: int) -> Results:
        kept: Results = self.results["factors"].setdefault(str(factor), {"frechet": {}, "images_per_second": {}})
        return kept

    def once(self, factor: int, key: str, make: Callable[[], Any]) -> Any:
        """A result of an f, made if it is not there."""
        if key not in self.of(factor):
            self.of(factor)[key] = make()
            write_json(self.file, self.results)
        return self.of(factor)[key]

    @contextmanager
    def timed(self, factor: int, key: str) -> Iterator[None]:
        """Add the seconds within to those of this name; an interrupted training keeps its own."""
        before = clock()
        try:
            yield
        finally:
            self.of(factor)[key] = self.of(factor).get(key, 0.0) + clock() - before
            write_json(self.file, self.results)


def trained(place: Kept, factor: int, seconds: float, share: float) -> None:
    """Train what an f needs: an autoencoder if f is above 1, and the diffusion in the time that is left."""
    folder, data = place.folder / f"f{factor}", place.results["data"]
    if factor > 1:
        config = autoencoder_config(data, factor)
        images = place.once(factor, "autoencoder_images", lambda: count(seconds * share, pilot(config)))
        if not finished(folder / "autoencoder", images):
            with place.timed(factor, "autoencoder_seconds"):
                train_autoencoder(folder / "autoencoder", of_length(config, images))
        share_left = 1 - share
    else:
        share_left = 1.0
    config = diffusion_config(data, folder / "autoencoder" if factor > 1 else None)

    def plan() -> Results:
        each = pilot(config)
        if factor == 1:
            return {"images": count(seconds, each), "codes": "none"}
        of_all = encoding(folder / "autoencoder", DATA[data](size=SIDE))
        online = count(seconds * share_left, each)
        cached = count(seconds * share_left - of_all, each - of_all / len(DATA[data]()))
        return {"images": max(online, cached), "codes": "cached" if cached > online else "online"}

    planned = place.once(factor, "diffusion", plan)
    config.training.codes = "cached" if planned["codes"] == "cached" else "online"
    if not finished(folder / "diffusion", planned["images"]):
        with place.timed(factor, "diffusion_seconds"):
            train(folder / "diffusion", of_length(config, planned["images"]))


def finished(place: Path, images: int) -> bool:
    """Whether a training has its last checkpoint."""
    newest = latest(place / "checkpoints")
    return newest is not None and int(newest.name) >= images


def autoencoder_config(data: str, factor: int) -> ml_collections.ConfigDict:
    config = autoencoder.get_config(f"fashion_f{factor}")
    config.data = build.spec(build.DATASETS, data, size=SIDE)
    config.training.update(evaluate_every=0, sample_every=0, checkpoint_every=0, measure_images=2_000)
    return config


def diffusion_config(data: str, place: Path | None) -> ml_collections.ConfigDict:
    config = latent.get_config("fashion_f4")
    config.data = build.spec(build.DATASETS, data, size=SIDE)
    config.net = build.spec(build.NETWORKS, UNET)
    config.autoencoder = "" if place is None else str(place)
    config.training.update(sample_every=0, checkpoint_every=0, codes="online")
    return config


def of_length(config: ml_collections.ConfigDict, images: int) -> ml_collections.ConfigDict:
    """The configuration for this number of images, of which at most a tenth is warm-up."""
    config = config.copy_and_resolve_references()
    config.training.update(images=images, warmup=min(config.training.warmup, images // 10))
    return config


def pilot(config: ml_collections.ConfigDict) -> float:
    """Seconds of an image in training, without what a training does once."""
    seconds = []
    for images in PILOT:
        short = of_length(config, images)
        with TemporaryDirectory() as folder:
            before = clock()
            if build.is_autoencoder(short):
                short.training.update(evaluate_images=2, measure_images=2)
                train_autoencoder(Path(folder) / "pilot", short)
            else:
                train(Path(folder) / "pilot", short)
            seconds.append(clock() - before)
    return (seconds[2] - seconds[1]) / (PILOT[2] - PILOT[1])


def encoding(place: Path, dataset: Dataset) -> float:
    """Seconds to encode all images of a set."""
    stored, before = read_autoencoder(place), clock()
    for _ in encoded(stored, dataset, range(ENCODED)):
        pass
    return (clock() - before) / ENCODED * len(dataset)


def count(seconds: float, each: float) -> int:
    """The number of images in these seconds, at least ten batches."""
    return max(640, int(seconds / max(each, 1e-6)))


def clock() -> float:
    """Seconds of the processor for each thread."""
    return time.process_time() / torch.get_num_threads()


class Judge:
    """A classifier, in whose features images are compared with the test images."""

    def __init__(self, model: Classifier, real: Tensor) -> None:
        self.model, self.real = model, real

    @classmethod
    def of(cls, data: str, folder: Path, samples: int) -> "Judge":
        test = DATA[data](split="test")
        model = classifier(DATA[data](), test, folder)
        return cls(model, features_of(model, images_of(test)))

    def distance(self, images: Tensor) -> float:
        """The Frechet distance of images in -1 .. 1 to the test images."""
        return frechet_distance(features_of(self.model, images), self.real)


def measured(place: Kept, factor: int, judge: Judge, steps: list[int], samples: int) -> None:
    """The distance and the speed of samples by DDIM; of an autoencoder, the distance of its reconstructions."""
    model = open_trained(place.folder / f"f{factor}" / "diffusion")
    run, of_f = model.run, place.of(factor)
    place.once(factor, "shape", lambda: list(run.shape))
    if run.autoencoder is not None:
        report = json.loads((place.folder / f"f{factor}" / "autoencoder" / "autoencoder_report.json").read_text())
        of_f["psnr"] = report["held_out"].get("psnr")
        some = stored_tensor(run.dataset("train"))[:samples]
        place.once(factor, "reconstructed", lambda: judge.distance(viewed(run, run.to_stored(run.centred(some)))))
    for count_of_steps in steps:
        if str(count_of_steps) in of_f["frechet"]:
            continue
        sampling = {"solver": "ddim", "grid": "uniform", "steps": count_of_steps, "denoise": True}
        generate(run, model.denoiser, 2, sampling=sampling, seed=1, show=False)  # the first call prepares
        before = clock()
        x = generate(run, model.denoiser, samples, sampling=sampling, seed=0, batch=BATCH)
        images = run.to_stored(x)
        of_f["images_per_second"][str(count_of_steps)] = samples / (clock() - before)
        of_f["frechet"][str(count_of_steps)] = judge.distance(viewed(run, images))
        write_json(place.file, place.results)


def viewed(run: Run, stored: Tensor) -> Tensor:
    """Stored images in -1 .. 1, as the classifier takes them."""
    return 2 * (stored.float() + 0.5) / (run.data.levels or 256) - 1


if __name__ == "__main__":
    main()
