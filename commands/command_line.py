"""Flags to a call: a mode is a function of a working directory and keywords."""

import errno
import importlib
import inspect
import json
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scorefield.commands.arguments import sort
from scorefield.configs.text import few, suggestion

Command = Callable[..., dict[str, Any]]
LONGEST = 600  # characters of an error

# Of each mode: the file below `commands`, the function in it, and what it does.
MODES = {
    "train": ("train.command", "train", "train a run, or resume it"),
    "train_autoencoder": (
        "train_autoencoder.command",
        "train_autoencoder",
        "train an autoencoder, for runs in its codes, or resume it",
    ),
    "sample": ("sample", "sample", "draw samples"),
    "compare": ("compare", "compare", "compare solvers and numbers of steps on the same noise"),
    "restore": ("restore", "restore", "restore images from measurements: posterior samples, with their error"),
    "grid": ("grid", "grid", "measure the grid of steps that suits a run, for --grid=optimal"),
    "encode": ("encode", "encode", "images to latents"),
    "decode": ("encode", "decode", "latents to images"),
    "edit": ("edit", "edit", "edit images: noise and denoise them, or change their class"),
    "interpolate": ("interpolate", "interpolate", "interpolate between two images in latent space"),
    "likelihood": ("likelihood.command", "likelihood", "score a data set in bits/dim, or nats/dim if it is continuous"),
    "score": ("score", "score", "anomaly scores of a data set, and how well they tell a second one from it"),
    "compress": ("compress", "compress", "compress images to a file, without a loss"),
    "decompress": ("compress", "decompress", "restore the images of a compressed file"),
    "train_dequantiser": ("train_dequantiser", "train_dequantiser", "train the flow of variational dequantisation"),
    "train_classifier": ("train_classifier", "train_classifier", "train a classifier of noisy images, for guidance"),
    "codes": ("codes", "codes", "encode a data set with an autoencoder once, and measure the scale of its codes"),
    "posthoc_ema": ("posthoc_ema", "posthoc_ema", "average the weights after training, with another length"),
    "check_data": ("check_data", "check_data", "describe a data set before training on it"),
    "import": ("import_checkpoint", "import_checkpoint", "make a run of a published checkpoint"),
    "export": ("export_run", "export_run", "write the weights of a run for others"),
    "demo": ("demo", "demo", "train on the embedded digits, sample, encode, interpolate and score"),
    "list": ("list_names", "list_names", "print every configuration, solver, network and other name"),
}
# Keywords that a flag cannot have as its name.
KEYWORDS = {"from": "source", "for": "purpose"}
TRAINING = ("train", "train_autoencoder")  # resume a run that --workdir alone names
SEVERAL = ("solver", "steps", "method")  # may be given several times
ALWAYS = {"mode": str, "workdir": str, "config": str}
OPTIONS: dict[str, tuple[type, str]] = {
    "num": (int, "number of samples, of interpolated images, or of images of a data set"),
    "solver": (
        str,
        "ddim, dpm, unipc, adams, heun, ancestral, pc, ... (--mode=list), with settings as in ddim:eta=1.0",
    ),
    "grid": (
        str,
        "uniform, log_snr, karras, ... (--mode=list), with settings as in karras:rho=5.0, or optimal (see --mode=grid)",
    ),
    "steps": (int, "number of steps of the grid"),
    "order": (int, "order of the solver for which a grid is measured"),
    "trajectory": (int, "keep the trajectories of the first N samples"),
    "compile": (bool, "compile the network with torch.compile: a slow start, then faster"),
    "denoise": (bool, "end sampling with the denoiser's estimate of x0"),
    "seed": (
        int,
        "seed of the noise and of the images drawn from a data set; for training use --config.seed",
    ),
    "batch": (int, "samples in one batch; it changes memory and speed, never the result"),
    "label": (
        str,
        "class by number or name: of all samples (by default each in turn), or of all images in place of their own",
    ),
    "caption": (str, "caption of all samples, for a run that is trained with captions"),
    "guidance": (float, "scale of classifier-free guidance"),
    "guidance_interval": (list, "noise levels sigma / alpha that are guided, as 0.2,5; all by default"),
    "guidance_rescale": (float, "share of the deviation that guidance added which is taken back, 0 to 1; 0.7 is usual"),
    "guidance_parallel": (float, "factor of guidance along the conditional estimate; projected guidance takes 0"),
    "guidance_norm": (float, "largest norm of the difference that guides a sample, in the model's values"),
    "guide": (str, "worse run for autoguidance by --guidance: a workdir, RUN/checkpoints/NAME, or a checkpoint's name"),
    "classifier": (float, "scale of guidance by the run's noisy classifier (see --mode=train_classifier)"),
    "strength": (float, "how much --mode=edit forgets, 0 to 1 in log-SNR; 0.5 is as much noise as signal"),
    "samples": (int, "samples of each image, for restore of its posterior"),
    "from_label": (str, "class under which --mode=edit encodes, by number or name; by default the images' own"),
    "to_label": (str, "class under which --mode=edit decodes, by number or name"),
    "split": (str, "split of the data set: train or test"),
    "pair": (list, "the two images to interpolate between, as 0,1"),
    "estimators": (list, "estimators of the likelihood: ode, dsm, vlb, elbo"),
    "tolerance": (float, "largest error of the ODE solver in one value, in bits/dim or nats/dim"),
    "divergence": (str, "exact, hutchinson or hutchpp, with settings as in hutchinson:probes=4"),
    "dequantisation": (
        str,
        "uniform, importance:samples=8, truncated_normal, or variational (see --mode=train_dequantiser)",
    ),
    "prior": (str, "standard, or data: a Gaussian with the mean and variance of the training data"),
    "draws": (int, "network evaluations of a bound for each image"),
    "code_draws": (int, "codes of each image of a latent run, over which its likelihood is averaged"),
    "chain": (int, "number of steps of the variational bound, or of the chain that compresses"),
    "codec": (bool, "also compress up to 100 of the images, and report the rate"),
    "verify": (bool, "decode a compressed file once, and compare"),
    "variance": (str, "variance of the steps of the variational bound: small or large"),
    "times": (str, "times at which elbo and dsm are evaluated: log_snr, or measured (see --mode=grid --for=training)"),
    "for": (str, "what is measured: the steps of sampling, or the times of training"),
    "from": (str, "format of the checkpoint: score_sde_pytorch, ncsnv2, ddim, edm, diffusers, ..."),
    "architecture": (
        str,
        "settings that the weights do not show, with the names of their code, as nf=64,ch_mult=(1,2)",
    ),
    "data": (str, "data set in place of the run's own, as folder:path=/data/images"),
    "against": (str, "second data set, which the anomaly scores should tell from the first; written as --data"),
    "training_images": (int, "training images from which anomaly scores learn what is typical"),
    "to": (str, "format to export to: scorefield or diffusers"),
    "input": (
        str,
        "images to encode or compress (folder, .npy, .npz), latents to decode (.npz), or a compressed file",
    ),
    "output": (str, "file to write; the picture and the report go beside it"),
    "task": (
        str,
        "what is measured, as inpaint:box='(8,8,20,20)', colourise, super_resolve:factor=4, deblur, ... (--mode=list)",
    ),
    "noise": (float, "standard deviation of the measurement's noise, in the model's values; 0 for none"),
    "method": (str, "twisted, mmps, pigdm, dps, ... (--mode=list), with settings as in twisted:particles=20"),
    "mask": (str, "image that is white where pixels of --input are unknown: the other pixels are the measurement"),
    "measured": (bool, "--input is the measurement itself, and no noise is added to it"),
    "certify": (bool, "exact weights, for vectors: the effective sample size and the evidence of a guided flow"),
    "tile": (int, "decode codes in square tiles of this side, for large images; 0 for none"),
    "flip": (bool, "also the mirrored images, for runs with transform.flip"),
    "ema": (bool, "use the averaged weights (default) or the raw ones"),
    "checkpoint": (str, "checkpoint by name, as 0000006208, or by path; by default the newest"),
    "fork_from": (str, "run whose weights a new run starts from"),
    "sigma_rel": (float, "length of an average after training, relative to the length of training"),
    "device": (str, "cpu, cuda or cuda:1; by default cuda where there is one"),
}


def run(arguments: list[str]) -> int:
    """Run one command and print its summary.

    Returns:
        The exit status: 0, 2 for an error that one line on stderr explains, or 130 or 143 after a signal.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a user's own packages; installed packages come before them
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            _print(_call(arguments[1:]))
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        if os.environ.get("RANK", "0") == "0":  # the first process of torchrun
            print(getattr(error, "line", "interrupted"), file=sys.stderr)
        return 128 + int(getattr(error, "signal", signal.SIGINT))
    except BrokenPipeError:  # the reader of our output has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, OSError) as error:
        print(f"error: {_short(_text(error))}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search("out of memory|allocate memory", str(error)):
            raise
        print("error: expected to fit into memory, and it does not: give a smaller --batch or --num", file=sys.stderr)
        return 2
    return 0


def _text(error: ValueError | OSError) -> str:
    """The message of an error. One of the system names the file, and what to do."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"expected room for {error.filename or 'the files'}, got {error.strerror!r}: make room, or write elsewhere"
        )
    if not isinstance(error, OSError) or error.filename is None or error.strerror is None:
        return str(error)
    return f"expected {error.filename} to be read or written, got {error.strerror!r}: choose another place"


def _short(text: str) -> str:
    """One line, whose middle is left out if it is too long to be read."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST * 2 // 3]} ... {line[-LONGEST // 3 :]}"


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    """One line, without the place in the code."""
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {_short(str(message))}", file=sys.stderr)


def _print(summary: dict[str, Any]) -> None:
    for key, value in summary.items():
        for line in (
            value if isinstance(value, list) else [f"{key}: {json.dumps(value) if isinstance(value, dict) else value}"]
        ):
            print(f"wrote {line}" if isinstance(value, list) else line)


def _call(arguments: list[str]) -> dict[str, Any]:
    given = sort(arguments, {**ALWAYS, **{name: kind for name, (kind, _) in OPTIONS.items()}}, SEVERAL)
    values, words = given.values, given.words
    mode = values.pop("mode", None) or (words.pop(0) if words else None)
    workdir, config = values.pop("workdir", None), values.pop("config", "")
    if mode is not None and mode not in MODES:
        raise ValueError(f"expected a mode ({few(mode, MODES)}), got {mode!r}{suggestion(mode, MODES)} (see --help)")
    if "version" in given.switches:
        print(f"scorefield {importlib.import_module('scorefield').__version__}")
        return {}
    if given.switches or not arguments:
        print(_help(mode))
        return {}
    if mode is None:
        raise ValueError("expected a mode, as --mode=sample (see --help)")
    if workdir is None and mode != "list" and not (mode == "check_data" and config):
        raise ValueError(f"expected the directory of the run beside --mode={mode}, as --workdir=runs/vp")
    if mode != "list" and os.environ.get("RANK", "0") == "0":  # before torch is imported, which takes seconds
        print(f"{mode}{'' if workdir is None else f' {workdir}'}: {MODES[mode][2]}", flush=True)
    command = _command(mode)
    takes = inspect.signature(command).parameters
    options = _options(mode, takes, values)
    if mode == "import":
        if len(words) != 1:
            raise ValueError(f"expected one FILE to import, got {words}: --mode=import --from=edm FILE --workdir=RUN")
        options["file"] = words[0]
    elif words:
        raise ValueError(f"expected flags such as --num=64, got {words[0]!r}")
    if "config" not in takes and (config or given.changes):
        raise ValueError(
            f"expected no {given.changes[0] if given.changes else '--config'} in --mode={mode}, which reads the "
            "config.json of the run: only train, train_autoencoder and check_data take it"
        )
    if "config" in takes and (config or given.changes or mode in TRAINING):
        # Imported here, because it imports torch.
        from scorefield.commands.configuration import load, of_run, override

        own = load(config) if config else of_run(Path(workdir or "."))
        options["config"] = override(own, given.changes)
    return command(Path(workdir or "."), **options)


def _help(mode: str | None) -> str:
    """The text of --help: of one mode, or of all."""
    if mode is None:
        lines = ["scorefield --mode=MODE --workdir=DIRECTORY [--config=NAME:VARIANT --config.KEY=VALUE] [options]", ""]
        lines += [f"  --mode={name:18} {text}" for name, (_, _, text) in MODES.items()]
        lines += ["", "Options. --mode=MODE --help prints those of one mode, with their defaults.", ""]
        return "\n".join([*lines, *(f"  --{name:18} {text}" for name, (_, text) in OPTIONS.items())])
    command = _command(mode)
    lines = [(inspect.getdoc(command) or "").partition("\n\nArgs:")[0].partition("\n\nRaises:")[0], "", "Options:", ""]
    for key, parameter in inspect.signature(command).parameters.items():
        name = {of: flag for flag, of in KEYWORDS.items()}.get(key, key)
        if name in OPTIONS:
            lines.append(f"  --{name:18} {OPTIONS[name][1]}{_default(parameter.default)}")
    return "\n".join(lines)


def _default(value: object) -> str:
    """A default value as it is written on a command line."""
    if value is None or value is inspect.Parameter.empty:
        return ""
    if isinstance(value, tuple | list):
        return f" [{' '.join(map(str, value))}]"
    return f" [{str(value).lower() if isinstance(value, bool) else value}]"


def _command(mode: str) -> Command:
    # Imported here, so that --help and mistakes do not wait for torch.
    file, function, _ = MODES[mode]
    command: Command = getattr(importlib.import_module(f"scorefield.commands.{file}"), function)
    return command


def _options(mode: str, takes: Mapping[str, inspect.Parameter], values: dict[str, Any]) -> dict[str, Any]:
    """The values of the flags, by the keywords of the command.

    Raises:
        ValueError: if the mode does not take one of them.
    """
    options: dict[str, Any] = {KEYWORDS.get(name, name): value for name, value in values.items()}
    for name in values:
        if KEYWORDS.get(name, name) not in takes:
            raise ValueError(
                f"--{name} is not an option of --mode={mode}: leave it out, or see `scorefield {mode} --help`"
            )
    for name in SEVERAL:
        if name in options and not isinstance(takes[name].default, tuple):
            if len(options[name]) > 1:
                several = " and ".join(map(str, options[name]))
                raise ValueError(f"expected --{name} once, got {several}: only --mode=compare takes several")
            options[name] = options[name][0]
    if "pair" in options:
        options["pair"] = _two(options["pair"])
    return options


def _two(words: list[str]) -> tuple[int, int]:
    try:
        first, second = map(int, words)
    except ValueError:
        raise ValueError(f"expected --pair of two numbers, as 0,1, got {','.join(words)!r}") from None
    return first, second
