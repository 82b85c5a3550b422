"""The codec of a trained run, and what it takes to run it again to the bit."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorefield.commands.generate import of_rows
from scorefield.commands.on_stderr import on_stderr
from scorefield.commands.progress_bar import progress_bar
from scorefield.commands.trained import Trained
from scorefield.compression import BitsBack, ChainPlan, Codec, Coded, choose_plan
from scorefield.likelihood import vlb
from scorefield.likelihood.progress import part_of
from scorefield.sde_lib.denoiser import take_rows
from scorefield.solvers import PerSampleNoise

PLAN_VALUES = 2**14  # about as many values of images choose the chain, of one batch
LEAST_IMAGES = 16  # that choose it
BOUND_STREAM, PLAN_STREAM = 8, 9  # of random numbers, beside the other streams of the seed
CHAIN, TOGETHER, DRAWS = 100, 64, 32  # defaults: steps, images coded together, evaluations of the bound
RATE_IMAGES = 100  # whose rate a likelihood reports
NOT_THE_SAME = (
    "expected the file to decode to its images, got others: the network's answers are not the same twice on this "
    "device, so give --device=cpu"
)
MACHINE = ("torch", "threads", "device")  # what the bits of a network depend on, beside its weights


@dataclass(frozen=True)
class RunCodec:
    """The codec of a run.

    Args:
        trained: the run with its weights.
        plan: its chain.
        batch: the most images that are coded together.
    """

    trained: Trained
    plan: ChainPlan
    batch: int

    @classmethod
    def chosen(cls, trained: Trained, stored: Tensor, cond: Mapping[str, Any], steps: int, batch: int) -> "RunCodec":
        """With the chain of `steps` steps that suits some images (N, *D) best; see `choose_plan`."""
        run = trained.run
        dims = math.prod(run.shape)
        count = min(len(stored), batch, max(LEAST_IMAGES, PLAN_VALUES // dims))
        some = take_rows(cond, slice(0, count), len(stored))
        with progress_bar("choosing the chain", count, unit="image", leave=False) as bar:
            plan = choose_plan(
                trained.denoiser, run.sde, run.centred(stored[:count]).to(run.device), steps, run.levels or 0, run.low,
                run.high, cond=of_rows(some, run.device), noise=PerSampleNoise(0, range(count), (PLAN_STREAM,)),
                progress=bar.part(count),
            )  # fmt: skip
        return cls(trained, plan, batch)

    @property
    def described(self) -> str:
        """The chain and its last decoder, in words."""
        run, plan = self.trained.run, self.plan
        with torch.no_grad():
            noise = math.exp(-float(run.sde.log_snr(plan.start)) / 2)
        cell = (run.high - run.low) / (run.levels or 1)
        last = "a softmax over the levels" if plan.std is None else f"a Gaussian of {plan.std / cell:.2g} cells"
        return f"{plan.steps} steps from a noise of {noise / cell:.2g} cells, ended by {last}"

    @property
    def codec(self) -> Codec:
        """Of levels (N, *D)."""
        run, plan = self.trained.run, self.plan
        decoder = plan.decoder(run.sde, run.levels or 0, run.low, run.high)
        coder = BitsBack(
            self.trained.denoiser, plan.chain(run.sde), decoder, tuple(run.shape), torch.float32, run.device
        )
        return Codec(coder, self.batch)

    def compress(self, stored: Tensor, cond: Mapping[str, Any]) -> Coded:
        """The bits of stored values (N, *D)."""
        with progress_bar("compress", len(stored), unit="image") as bar:
            on_device = of_rows(cond, self.trained.run.device)
            return self.codec.compress(stored.numpy().astype(np.int64), on_device, bar.part(len(stored)))

    def decompress(self, coded: Coded, cond: Mapping[str, Any], name: str = "decompress") -> NDArray[np.int64]:
        """The stored values (N, *D) again.

        Raises:
            ValueError: if the bits were not written by the same arithmetic.
        """
        count = coded.plain + sum(coded.batches)
        with progress_bar(name, count, unit="image") as bar:
            return self.codec.decompress(coded, of_rows(cond, self.trained.run.device), bar.part(count))

    def bound(self, stored: Tensor, cond: Mapping[str, Any], draws: int, seed: int) -> tuple[float, float | None]:
        """The chain's bound of stored values in bits/dim by `likelihood.vlb`, and its error, None for a single draw.

        More draws than steps are taken as several passes over all steps; what remains is left out.
        """
        run, values, variances = self.trained.run, list[Tensor](), list[Tensor]()
        passes = max(1, draws // self.plan.steps)
        coder, unit = self.codec.coder, math.prod(run.shape) * math.log(2)
        with progress_bar("bound", len(stored), unit="image") as bar:
            for first in range(0, len(stored), self.batch):
                rows = slice(first, min(first + self.batch, len(stored)))
                noise = PerSampleNoise(seed, range(rows.start, rows.stop), (BOUND_STREAM,))
                x0, progress = run.centred(stored[rows]).to(run.device), bar.part(rows.stop - rows.start)
                for i in range(passes):
                    bound = vlb(
                        self.trained.denoiser, run.sde, x0, cond=of_rows(cond, run.device, rows), draws=draws,
                        decoder=coder.decoder.decoder, ts=coder.chain.ts, noise=noise, uniform=noise.uniform,
                        progress=part_of(progress, i / passes, (i + 1) / passes),
                    )  # fmt: skip
                    values.append(-bound.log_prob.double().cpu() / unit)
                    error = torch.tensor([math.nan]) if bound.std_error is None else bound.std_error
                    variances.append((error.double().cpu() / unit).square())
        error_of_mean = float(torch.cat(variances).sum().sqrt()) / (passes * len(stored))
        return float(torch.cat(values).mean()), error_of_mean if math.isfinite(error_of_mean) else None


def rate_of(trained: Trained, stored: Tensor, cond: Mapping[str, Any], seed: int, batch: int) -> dict[str, Any]:
    """What the codec makes of the first 100 stored values (N, *D): its rate without initial bits, and its bound.

    At most `batch` images are coded together.

    Raises:
        ValueError: if they do not come back to the bit.
    """
    few = slice(0, RATE_IMAGES)
    stored, cond = stored[few], take_rows(cond, few, len(stored))
    codec = RunCodec.chosen(trained, stored, cond, CHAIN, min(TOGETHER, batch))
    coded = codec.compress(stored, cond)
    if not np.array_equal(codec.decompress(coded, cond, name="verify"), stored.numpy()):
        raise ValueError(NOT_THE_SAME)
    rest = slice(coded.plain % len(stored), None)
    bound, error = codec.bound(stored[rest], take_rows(cond, rest, len(stored)), DRAWS, seed)
    net = coded.net_bits / math.prod(trained.run.shape) if coded.batches else None
    return {"net": net, "bound": bound, "bound_error": error, "chain": CHAIN, "n": sum(coded.batches)}


def rate_line(rate: Mapping[str, Any]) -> str:
    """A rate as it is printed."""
    if rate["net"] is None:
        return "none: too few images to lend the first bits; give a larger --num"
    error = "" if rate["bound_error"] is None else f" +- {rate['bound_error']:.4f}"
    return (
        f"{rate['net']:.4f} net of {rate['n']} images, decoded to the bit; the bound of its {rate['chain']} steps for "
        f"them is {rate['bound']:.4f}{error}"
    )


def check_codec(trained: Trained, mode: str) -> None:
    """Raises ValueError for a run whose data a lossless code by one chain of levels does not take."""
    run = trained.run
    if run.autoencoder is not None:
        raise ValueError(
            f"expected a run without an autoencoder for --mode={mode}, got a latent run, whose codes lose bits of the "
            "images: train without --config.autoencoder"
        )
    if run.levels is None:
        raise ValueError(
            f"expected a run on integers for --mode={mode}, got continuous data, which no finite file holds: quantise "
            "it to levels and train on these"
        )
    trained.check_one_level(mode)


def model_sha256(trained: Trained) -> str:
    """The hash of all that decides the network's answers and the chain: weights, network, path and range."""
    described = trained.run.described()
    parts = {key: described["config"].get(key) for key in ("net", "precondition", "sde", "transform", "conditioner")}
    decides = {**parts, "shape": described["data"]["shape"], "levels": described["data"]["levels"]}
    text = trained.described["checkpoint_sha256"] + json.dumps(decides, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def images_sha256(k: NDArray[np.int64]) -> str:
    """A short hash of levels, by which a decoded file is checked."""
    return hashlib.sha256(np.ascontiguousarray(k, "<i8").tobytes()).hexdigest()[:16]


def machine_of(device: torch.device) -> dict[str, Any]:
    """What the last bits of a network depend on, beside its weights and batches."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": name}


@contextmanager
def same_arithmetic(header: Mapping[str, Any], device: torch.device) -> Iterator[None]:
    """The threads of a file's header within; a line on stderr says what else is not the same here."""
    threads = torch.get_num_threads()
    deterministic, benchmark = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.set_num_threads(int(header["threads"]))
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        here = machine_of(device)
        others = [f"{key} {header[key]}, not {here[key]}" for key in MACHINE if header[key] != here[key]]
        if others:
            on_stderr(f"this file was compressed with {', '.join(others)}: the network's last bits may differ")
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, benchmark
