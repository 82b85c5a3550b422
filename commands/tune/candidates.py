"""The settings of sampling among which `tune` searches."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from scorefield.commands.run import Run
from scorefield.configs import build
from scorefield.configs.specs import Table, find, modern, settings_of, unparse
from scorefield.solvers import Solver

# Of the probability flow. dpm:order=1 and deis:order=1 are ddim, and the variants of unipc differ in order 2.
FLOW = (
    "ddim",
    "heun:variable=sigma",
    "dpm:order=2",
    "dpm:order=3",
    "unipc:order=2",
    "unipc:order=2,variant=bh1",
    "unipc:order=3",
    "deis:order=2",
    "deis:order=3",
    "deis:order=2,variable=soft_clipped",
    "deis:order=3,variable=soft_clipped",
    "adams:order=2",
    "adams:order=3",
    "adams:order=2,variable=soft_clipped",
    "adams:order=3,variable=soft_clipped",
    "adams:order=4,variable=soft_clipped",
)
# Of the reverse process. stochastic_dpm:order=1 is ancestral.
STOCHASTIC = (
    "ddim:eta=0.5",
    "ddim:eta=1.0",
    "ancestral",
    "stochastic_dpm:order=2",
    "stochastic_dpm:order=3",
    "sa_solver",
    "sa_solver:tau=0.5",
)
# From one end of the path to the other. geometric is log_snr, counted in another way.
GRIDS = (
    "log_snr",
    "soft_clipped",
    "soft_clipped:low=0.05,high=10.0",
    "karras:rho=3.0",
    "karras:rho=5.0",
    "karras:rho=7.0",
    "quadratic",
    "uniform",
)
PACKAGE = {"solver": "adams:variable=soft_clipped", "grid": "soft_clipped", "denoise": True}


def solvers(stochastic: bool) -> Iterator[dict[str, Any]]:
    """Solvers on the first grid, with and without a last denoising; `stochastic` adds those without a flow."""
    for solver, denoise in itertools.product((*FLOW, *STOCHASTIC) if stochastic else FLOW, (True, False)):
        yield {"solver": solver, "grid": GRIDS[0], "denoise": denoise}


def grids(run: Run) -> tuple[str, ...]:
    """The grids of all solvers, the measured one among them where there is one; all count steps."""
    return (*GRIDS, "optimal") if (run.workdir / "grid.json").is_file() else GRIDS


def defaults(run: Run, stochastic: bool) -> Iterator[dict[str, Any]]:
    """What the winner is compared with, the first that fits: the configuration's setting, or else the package's.

    Without `stochastic` a solver that adds noise is none. A small budget has no room for a last denoising.
    """
    own = {key: run.config.sampling[key] for key in ("solver", "grid", "denoise")}
    own |= {"solver": _written(build.SOLVERS, own["solver"]), "grid": _written(build.GRIDS, own["grid"])}
    for one, denoise in itertools.product((own, PACKAGE), (None, False)):
        solver: Solver = build.build(build.SOLVERS, str(one["solver"]))
        if stochastic or not solver.stochastic:
            yield one if denoise is None else {**one, "denoise": denoise}


def _written(table: Table, spec: str | Mapping[str, Any]) -> str:
    """A spec as one writes it, without keywords that are the defaults."""
    settings = modern(table, spec)
    usual = {key: parameter.default for key, parameter in settings_of(find(table, settings["name"])).items()}
    return unparse({key: value for key, value in settings.items() if key == "name" or usual.get(key) != value})
