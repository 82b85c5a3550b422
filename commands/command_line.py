"""Flags to a call: a mode is a function of a working directory and keywords."""

import importlib
import inspect
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

Command = Callable[..., dict[str, Any]]

# Of each mode: the file below `commands`, the function in it, and what it does.
MODES = {
    "train": ("train.command", "train", "train a run, or resume it"),
    "sample": ("sample", "sample", "draw samples"),
    "compare": ("compare", "compare", "compare solvers and numbers of steps on the same noise"),
    "grid": ("grid", "grid", "measure the grid of steps that suits a run, for --grid=optimal"),
    "encode": ("encode", "encode", "images to latents"),
    "decode": ("encode", "decode", "latents to images"),
    "interpolate": ("interpolate", "interpolate", "interpolate between two images in latent space"),
    "likelihood": ("likelihood.command", "likelihood", "score a data set in bits per dimension"),
    "train_dequantiser": ("train_dequantiser", "train_dequantiser", "train the flow of variational dequantisation"),
    "posthoc_ema": ("posthoc_ema", "posthoc_ema", "average the weights after training, with another length"),
    "check_data": ("check_data", "check_data", "describe a data set before training on it"),
    "import": ("import_checkpoint", "import_checkpoint", "make a run of a published checkpoint"),
    "export": ("export_run", "export_run", "write the weights of a run for others"),
    "demo": ("demo", "demo", "train on the embedded digits, sample, encode, interpolate and score"),
    "list": ("list_names", "list_names", "print every configuration, solver, network and other name"),
}
# Keywords that a flag cannot have as its name.
KEYWORDS = {"from": "source"}
HELP = ("--help", "-help", "-h")
OPTIONS: dict[str, tuple[Callable[..., object], str]] = {
    "num": (flags.DEFINE_integer, "number of samples, of interpolated images, or of images of a data set"),
    "solver": (
        flags.DEFINE_multi_string,
        "ddim, dpm, unipc, adams, heun, ancestral, pc, ... (--mode=list), with settings as in ddim:eta=1.0",
    ),
    "grid": (
        flags.DEFINE_string,
        "uniform, log_snr, karras, ... (--mode=list), with settings as in karras:rho=5.0, or optimal (see --mode=grid)",
    ),
    "steps": (flags.DEFINE_multi_integer, "number of steps of the grid"),
    "order": (flags.DEFINE_integer, "order of the solver for which a grid is measured"),
    "trajectory": (flags.DEFINE_integer, "keep the trajectories of the first N samples"),
    "compile": (flags.DEFINE_bool, "compile the network with torch.compile: a slow start, then faster"),
    "denoise": (flags.DEFINE_bool, "end sampling with the denoiser's estimate of x0"),
    "seed": (
        flags.DEFINE_integer,
        "seed of the noise and of the images drawn from a data set; for training use --config.seed",
    ),
    "batch": (flags.DEFINE_integer, "samples in one batch; it changes memory and speed, never the result"),
    "label": (
        flags.DEFINE_string,
        "class by number or name: of all samples (by default each in turn), or of all images in place of their own",
    ),
    "guidance": (flags.DEFINE_float, "scale of classifier-free guidance"),
    "split": (flags.DEFINE_string, "split of the data set: train or test"),
    "pair": (flags.DEFINE_list, "the two images to interpolate between, as 0,1"),
    "estimators": (flags.DEFINE_list, "estimators of the likelihood: ode, dsm, vlb, elbo"),
    "tolerance": (flags.DEFINE_float, "largest error of the ODE solver in one value, in bits/dim"),
    "divergence": (flags.DEFINE_string, "exact, hutchinson or hutchpp, with settings as in hutchinson:probes=4"),
    "dequantisation": (
        flags.DEFINE_string,
        "uniform, importance:samples=8, truncated_normal, or variational (see --mode=train_dequantiser)",
    ),
    "prior": (flags.DEFINE_string, "standard, or data: a Gaussian with the mean and variance of the training data"),
    "draws": (flags.DEFINE_integer, "network evaluations of a bound for each image"),
    "chain": (flags.DEFINE_integer, "number of steps of the variational bound"),
    "variance": (flags.DEFINE_string, "variance of the steps of the variational bound: small or large"),
    "from": (flags.DEFINE_string, "format of the checkpoint: score_sde_pytorch, ncsnv2, ddim, edm, diffusers, ..."),
    "architecture": (
        flags.DEFINE_string,
        "settings that the weights do not show, with the names of their code, as nf=64,ch_mult=(1,2)",
    ),
    "data": (flags.DEFINE_string, "data set in place of the run's own, as folder:path='images'"),
    "to": (flags.DEFINE_string, "format to export to: scorefield or diffusers"),
    "input": (flags.DEFINE_string, "images to encode (folder, .npy, .npz), or latents to decode (.npz)"),
    "output": (flags.DEFINE_string, "file to write; the picture and the report go beside it"),
    "ema": (flags.DEFINE_bool, "use the averaged weights (default) or the raw ones"),
    "checkpoint": (flags.DEFINE_string, "checkpoint by name, as 0000006208, or by path; by default the newest"),
    "fork_from": (flags.DEFINE_string, "run whose weights a new run starts from"),
    "sigma_rel": (flags.DEFINE_float, "length of an average after training, relative to the length of training"),
    "device": (flags.DEFINE_string, "cpu, cuda or cuda:1; by default cuda where there is one"),
}


def run(arguments: list[str]) -> int:
    """Run one command and print its summary.

    Returns:
        The exit status: 0, 2 for an error that one line on stderr explains, or 130 or 143 after a signal.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a user's own packages; installed packages come before them
    try:
        _print(_call(arguments))
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        if os.environ.get("RANK", "0") == "0":  # the first process of torchrun
            print(getattr(error, "line", "interrupted"), file=sys.stderr)
        return 128 + int(getattr(error, "signal", signal.SIGINT))
    except BrokenPipeError:  # the reader of our output has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _print(summary: dict[str, Any]) -> None:
    for key, value in summary.items():
        for line in (
            value if isinstance(value, list) else [f"{key}: {json.dumps(value) if isinstance(value, dict) else value}"]
        ):
            print(f"wrote {line}" if isinstance(value, list) else line)


def _call(arguments: list[str]) -> dict[str, Any]:
    config, overrides, rest = _separated(arguments)
    values, words = _parsed([word for word in rest if word not in HELP])
    mode, workdir = values["mode"].value, values["workdir"].value
    if any(word in HELP for word in rest):
        print(_help(mode))
        return {}
    if mode is None or (workdir is None and mode != "list" and not (mode == "check_data" and config)):
        raise ValueError(f"expected --mode ({', '.join(MODES)}) and --workdir, as in --mode=sample --workdir=runs/vp")
    if overrides and not config:
        raise ValueError(f"expected --config=NAME beside {overrides[0]}, which changes a value of that configuration")
    command = _command(mode)
    options = _options(mode, inspect.signature(command).parameters, values, config)
    if mode == "import":
        if len(words) != 1:
            raise ValueError(f"expected one FILE to import, got {words}: --mode=import --from=edm FILE --workdir=RUN")
        options["file"] = words[0]
    elif words:
        raise ValueError(f"expected flags such as --num=64, got {words[0]!r}")
    if config:
        # Imported here, because it imports torch.
        from scorefield.commands.configuration import load

        options["config"] = load(config, overrides)
    return command(Path(workdir or "."), **options)


def _separated(arguments: list[str]) -> tuple[str, list[str], list[str]]:
    """The value of --config, its overrides as --config.KEY=VALUE, and the other arguments."""
    config, overrides, rest = "", [], list[str]()
    words = iter(arguments)
    for word in words:
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or (name != "config" and not name.startswith(("config.", "noconfig."))):
            rest.append(word)
        elif name == "config":
            config = value if equals else next(words, "")
        else:
            overrides.append(f"--{name}={value}" if equals else f"--{name}")
    return config, overrides, rest


def _parsed(arguments: list[str]) -> tuple[flags.FlagValues, list[str]]:
    """The flags, and the words that are none."""
    values = flags.FlagValues()  # type: ignore[no-untyped-call]
    flags.DEFINE_enum("mode", None, list(MODES), "what to do", flag_values=values)
    flags.DEFINE_string("workdir", None, "directory of the run", flag_values=values)
    for name, (define, text) in OPTIONS.items():
        define(name, None, text, flag_values=values)
    try:
        return values, values(arguments)[1:]
    except flags.Error as error:
        raise ValueError(str(error)) from error


def _help(mode: str | None) -> str:
    """The text of --help: of one mode, or of all."""
    if mode is None:
        lines = ["scorefield --mode=MODE --workdir=DIRECTORY [--config=NAME:VARIANT --config.KEY=VALUE] [options]", ""]
        lines += [f"  --mode={name:18} {text}" for name, (_, _, text) in MODES.items()]
        lines += ["", "Options. --mode=MODE --help prints those of one mode.", ""]
        return "\n".join([*lines, *_described(list(OPTIONS))])
    command = _command(mode)
    takes = inspect.signature(command).parameters
    lines = [inspect.getdoc(command) or "", "", "Options:", ""]
    return "\n".join([*lines, *_described([name for name in OPTIONS if KEYWORDS.get(name, name) in takes])])


def _described(names: list[str]) -> list[str]:
    return [f"  --{name:18} {OPTIONS[name][1]}" for name in names]


def _command(mode: str) -> Command:
    # Imported here, so that --help and mistakes do not wait for torch.
    file, function, _ = MODES[mode]
    command: Command = getattr(importlib.import_module(f"scorefield.commands.{file}"), function)
    return command


def _options(
    mode: str, takes: Mapping[str, inspect.Parameter], values: flags.FlagValues, config: str
) -> dict[str, Any]:
    """The values of the flags, by the keywords of the command.

    Raises:
        ValueError: if the mode does not take one of them.
    """
    options: dict[str, Any] = {KEYWORDS.get(name, name): values[name].value for name in OPTIONS if values[name].present}
    if not config and "config" in takes and takes["config"].default is inspect.Parameter.empty:
        raise ValueError("expected --config to train, as in --config=digits:vp; --mode=list prints all configurations")
    known = ", ".join(f"--{name}" for name in OPTIONS if KEYWORDS.get(name, name) in takes)
    for name in [*(name for name in OPTIONS if values[name].present), *(["config"] if config else [])]:
        if KEYWORDS.get(name, name) not in takes:
            hint = "; the configuration of a run is in its config.json" if name == "config" else ""
            raise ValueError(f"--{name} is not an option of --mode={mode}, which takes {known}{hint}")
    for name in ("solver", "steps"):
        if name in options and not isinstance(takes[name].default, tuple):
            several: list[Any] = list(options[name] or ())
            if len(several) > 1:
                raise ValueError(
                    f"expected --{name} once in --mode={mode}, got {several}: --mode=compare takes several"
                )
            options[name] = several[0]
    if "pair" in options:
        options["pair"] = _two(options["pair"])
    return options


def _two(words: list[str]) -> tuple[int, int]:
    try:
        first, second = map(int, words)
    except (TypeError, ValueError):
        raise ValueError(f"expected --pair of two numbers, as 0,1, got {','.join(words)!r}") from None
    return first, second
