"""The command line: one mode, one working directory.

python main.py --mode=train --config=configs/digits.py:vp --workdir=runs/vp
python main.py --mode=sample --workdir=runs/vp --num=64 --solver=dpm --steps=20 --seed=0
python main.py --mode=import --from=ddim ckpt.pth --workdir=runs/ddim
python main.py --mode=compare --workdir=runs/vp --solver=ddim --solver=unipc --steps=10 --steps=20
"""

import inspect
import json
import os
import runpy
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

MODES = (
    "train",
    "sample",
    "compare",
    "grid",
    "encode",
    "decode",
    "interpolate",
    "likelihood",
    "train_dequantiser",
    "posthoc_ema",
    "check_data",
    "import",
    "export",
    "demo",
)
# Where a mode is not a function of its own name in a file of its own name.
ELSEWHERE = {
    "decode": ("encode", "decode"),
    "import": ("import_checkpoint", "import_checkpoint"),
    "export": ("export_run", "export_run"),
}
# What a flag is called as a keyword, where Python has another use for the word.
KEYWORDS = {"from": "source"}
FLAGS = flags.FLAGS

config_flags.DEFINE_config_file(
    "config", None, "configuration to train, as configs/digits.py:vp; override with --config.KEY="
)
flags.DEFINE_enum("mode", None, MODES, "what to do")
flags.DEFINE_string("workdir", None, "directory of the run")
flags.DEFINE_integer("num", None, "how many samples, interpolants, or images (to train a dequantiser on, for one)")
flags.DEFINE_multi_string(
    "solver", None, "ddim, dpm, unipc, adams, heun, ancestral, pc, ... (docs/solvers.md); with settings, ddim:eta=1.0"
)
flags.DEFINE_string(
    "grid",
    None,
    "uniform, quadratic, log_snr, saturated, geometric, karras, leading, trailing, linspace, sigmas, or optimal (by "
    "--mode=grid); with settings, karras:rho=5.0",
)
flags.DEFINE_multi_integer("steps", None, "steps of the grid")
flags.DEFINE_integer("order", None, "order of the solver that a grid is measured for")
flags.DEFINE_integer("trajectory", None, "keep the way of so many samples")
flags.DEFINE_bool("compile", None, "slow to start, then faster: torch.compile, or on CPUs loops by a C compiler")
flags.DEFINE_bool("denoise", None, "end sampling with the denoiser's own answer")
flags.DEFINE_integer("seed", None, "seed of noise; to train, use --config.seed")
flags.DEFINE_integer("batch", None, "samples at once: memory and speed, never the result")
flags.DEFINE_integer("label", None, "class to sample (all in turn by default)")
flags.DEFINE_float("guidance", None, "scale of classifier-free guidance")
flags.DEFINE_string("split", None, "train or test")
flags.DEFINE_list("pair", None, "the two images to interpolate between, as 0,1")
flags.DEFINE_list("estimators", None, "of the likelihood: ode, dsm, vlb, elbo")
flags.DEFINE_float("tolerance", None, "error that the ode's solver may leave in a value, in bits/dim")
flags.DEFINE_string("divergence", None, "exact, hutchinson or hutchpp; with settings, hutchinson:probes=4")
flags.DEFINE_string(
    "dequantisation",
    None,
    "uniform, importance:samples=8, truncated_normal, or variational (by --mode=train_dequantiser)",
)
flags.DEFINE_string("prior", None, "standard, or data: with the training data's mean and variance")
flags.DEFINE_integer("draws", None, "evaluations that a bound spends on an image")
flags.DEFINE_integer("chain", None, "steps of the variational bound")
flags.DEFINE_string("variance", None, "of those steps, small or large")
flags.DEFINE_string("from", None, "whose checkpoint to import: score_sde_pytorch, ncsnv2, ddim, edm, diffusers, ...")
flags.DEFINE_string("architecture", None, "what its weights do not tell, as nf=64,ch_mult=(1,2) by its own names")
flags.DEFINE_string(
    "data", None, "to import, encode or score: a data set in the place of the run's, folder:path='images'"
)
flags.DEFINE_string("to", None, "what to export to: scorefield or diffusers")
flags.DEFINE_string("input", None, "images to encode (folder, .npy, .npz), or latents to decode (.npz)")
flags.DEFINE_string("output", None, "file to write; pictures and reports go beside it")
flags.DEFINE_bool("ema", None, "use the averaged weights rather than the raw ones")
flags.DEFINE_string("fork_from", None, "a run whose weights a new one begins with")
flags.DEFINE_float("sigma_rel", None, "length of an average to make of snapshots, relative to that of training")
flags.DEFINE_string("device", None, "cpu, cuda or cuda:1; by default cuda where there is one")

OPTIONS = (
    "num", "solver", "grid", "steps", "order", "denoise", "seed", "batch", "label", "guidance", "trajectory", "split",
    "pair", "estimators", "tolerance", "divergence", "dequantisation", "prior", "draws", "chain", "variance",
    "input", "output", "from", "architecture", "data", "to", "ema", "compile", "device",
    "fork_from", "sigma_rel",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status: 0, 2 for what could not be done (one line says why), 130 or 143 by signal."""
    app.define_help_flags()
    try:
        file = _parse(list(arguments or sys.argv))
        summary = _command(FLAGS.mode)(Path(FLAGS.workdir or "."), **_options(FLAGS.mode), **file)
    except KeyboardInterrupt as error:
        if os.environ.get("RANK", "0") == "0":  # of torchrun's processes, one
            print(getattr(error, "line", "interrupted"), file=sys.stderr)
        return 128 + int(getattr(error, "signal", signal.SIGINT))
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    for key, value in summary.items():
        for line in (
            value if isinstance(value, list) else [f"{key}: {json.dumps(value) if isinstance(value, dict) else value}"]
        ):
            print(f"wrote {line}" if isinstance(value, list) else line)
    return 0


def _parse(arguments: list[str]) -> dict[str, str]:
    """Read the flags; the one word that is none, the file to import, is given back."""
    given = next((a.split("=", 1)[1] for a in arguments if a.startswith("--config=")), "")
    path, _, variant = given.partition(":")
    if given and not Path(path).is_file():
        known = sorted(str(p) for p in Path("configs").glob("*.py") if "get_config" in p.read_text())
        raise ValueError(f"expected --config to name a file ({', '.join(known)}), got {path!r}")
    try:
        rest = FLAGS(arguments)
    except Exception as error:  # a configuration is code, and its overrides raise what they like
        raise ValueError(_explained(path, variant, arguments, error)) from error
    if FLAGS.mode == "import":
        if len(rest) != 2:
            raise ValueError(
                f"expected one FILE to import, got {rest[1:]}: --mode=import --from=edm FILE --workdir=RUN"
            )
        return {"file": rest[1]}
    if len(rest) > 1:
        raise ValueError(f"expected flags such as --num=64, got {rest[1]!r}")
    return {}


def _explained(path: str, variant: str, arguments: list[str], error: Exception) -> str:
    """What is wrong with --config or an override: ml_collections says it with a traceback, or with a bare key."""
    if not path:
        return str(error)
    try:
        make = runpy.run_path(path)["get_config"]
        config = make(variant) if variant else make()
    except ValueError as mistake:
        return str(mistake)
    except Exception as mistake:  # whatever that file is, it is no configuration
        return f"expected {path} to define get_config(variant), and reading it gave {mistake!r}"
    for argument in arguments:
        if argument.startswith("--config."):
            key = argument.removeprefix("--config.").split("=")[0]
            node = config
            for part in key.split("."):
                if not hasattr(node, "keys") or part not in node:
                    there = ", ".join(node) if hasattr(node, "keys") else "a value, not a group"
                    return f"expected a key of the configuration, got {key!r}: in place of {part!r} there is {there}"
                node = node[part]
    return str(error)


def _command(mode: str | None) -> Callable[..., dict[str, Any]]:
    if mode is None or (FLAGS.workdir is None and not (mode == "check_data" and FLAGS.config is not None)):
        raise ValueError(f"expected --mode ({', '.join(MODES)}) and --workdir, as in --mode=sample --workdir=runs/vp")
    # Imported here, so that --help and mistakes do not wait for torch.
    import importlib

    file, function = ELSEWHERE.get(mode, (mode, mode))
    command: Callable[..., dict[str, Any]] = getattr(importlib.import_module(f"scorefield.commands.{file}"), function)
    return command


def _options(mode: str) -> dict[str, Any]:
    """The flags given, refused where the mode does not take them."""
    takes = inspect.signature(_command(mode)).parameters
    given = {KEYWORDS.get(name, name): FLAGS[name].value for name in OPTIONS if FLAGS[name].present}
    if FLAGS.config is not None:
        given["config"] = FLAGS.config
    elif "config" in takes and takes["config"].default is inspect.Parameter.empty:
        raise ValueError("expected --config to train, as in --config=configs/digits.py:vp")
    for name in given:
        if name not in takes:
            hint = "; the run's own configuration is in its config.json" if name == "config" else ""
            flag = next((flag for flag, keyword in KEYWORDS.items() if keyword == name), name)
            raise ValueError(f"--{flag} is not an option of --mode={mode}, which takes {_dashed(takes)}{hint}")
    for name in ("solver", "steps"):
        if name in given and not isinstance(takes[name].default, tuple):
            values: list[Any] = list(given[name] or ())
            if len(values) > 1:
                raise ValueError(f"expected --{name} once in --mode={mode}, got {values}: --mode=compare takes several")
            given[name] = values[0]
    if "pair" in given:
        given["pair"] = _two(given["pair"])
    return given


def _dashed(takes: Any) -> str:
    flag = {keyword: flag for flag, keyword in KEYWORDS.items()}
    return ", ".join(f"--{flag.get(name, name)}" for name in takes if flag.get(name, name) in OPTIONS)


def _two(words: Any) -> tuple[int, int]:
    try:
        first, second = map(int, words)
    except (TypeError, ValueError):
        raise ValueError(f"expected --pair of two numbers, as 0,1, got {','.join(words)!r}") from None
    return first, second


if __name__ == "__main__":
    sys.exit(main())
