"""Specs: read, written, built, and old ones understood."""

import math

import pytest
import torch
from torch import Tensor

from scorefield.configs import build
from scorefield.configs.specs import Table, modern, name_of, parse, unparse
from scorefield.sde_lib import SDE
from scorefield.solvers import DDIM


def weight(sde: SDE, t: Tensor, *, power: float = 2.0) -> Tensor:
    """A weighting."""
    return t**power


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("ddim", {"name": "ddim"}),
        ("ddim:eta=0.5", {"name": "ddim", "eta": 0.5}),
        ("adaptive:method='scipy:RK45'", {"name": "adaptive", "method": "scipy:RK45"}),
        ("pc:predictor=mypkg.Step,snr=0.1", {"name": "pc", "predictor": "mypkg.Step", "snr": 0.1}),
        ("sigmas:levels=(10,1,0.1)", {"name": "sigmas", "levels": (10, 1, 0.1)}),
        ("folder:path='a b',bits=-1", {"name": "folder", "path": "a b", "bits": -1}),
        ("x:a=None,b=True,c=inf,d=''", {"name": "x", "a": None, "b": True, "c": math.inf, "d": ""}),
    ],
)
def test_a_spec_is_read_and_written(text: str, spec: dict[str, object]) -> None:
    assert parse(text) == spec
    assert parse(unparse(spec)) == spec


@pytest.mark.parametrize("text", ["ddim:0.5", "ddim:eta=", "ddim:eta=f(x)", "ddim:eta=1)+f("])
def test_a_text_that_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="key=value"):
        parse(text)


@pytest.mark.parametrize(
    ("table", "old", "new"),
    [
        ("PRECONDITIONS", "told:predicts=eps,scale=999.0", "time_conditioned:predicts=eps,scale=999.0"),
        ("PRECONDITIONS", "told:whole=True", "time_conditioned:integer_timesteps=True"),
        ("SOLVERS", "stochastic_adams:tau=0.5", "sa_solver:tau=0.5"),
        ("GRIDS", "saturated:low=0.1", "soft_clipped:low=0.1"),
        ("GRIDS", "saturated:pace=0.2", "soft_clipped:time_weight=0.2"),
        ("SOLVERS", "heun:clock=sigma", "heun:variable=sigma"),
        ("SOLVERS", "heun:clock=saturated", "heun:variable=soft_clipped"),
        ("SOLVERS", "adams_moulton:pace=0.5", "adams_moulton:time_weight=0.5"),
        ("SOLVERS", "churn:solver='heun:clock=log_snr'", "churn:solver='heun:variable=log_snr'"),
        ("SOLVERS", "churn:solver=ddim,low=0.1", "churn:solver=ddim,low=0.1"),
    ],
)
def test_old_names_and_keywords_are_understood(table: str, old: str, new: str) -> None:
    tables: Table = getattr(build, table)
    assert modern(tables, old) == modern(tables, new) == parse(new)
    assert build.spec(tables, old) == build.spec(tables, new)


def test_keywords_come_before_those_of_the_text_in_old_spellings_too() -> None:
    spec = build.spec(build.SOLVERS, "heun:clock=time", clock="sigma")
    assert spec.to_dict() == {"name": "heun", "variable": "sigma"}


def test_a_keyword_of_a_users_own_keeps_its_name() -> None:
    def solver(clock: str = "x") -> str:
        return clock

    table = Table("solvers", {"mine": solver})
    assert modern(table, "mine:clock=sigma") == {"name": "mine", "clock": "sigma"}
    assert build.build(table, "mine:clock=sigma") == "sigma"


@pytest.mark.parametrize(
    ("table", "spec", "says"),
    [
        (build.SOLVERS, "scorefield.sde_lib.VPSDE", "a class derived from scorefield.solvers"),
        (build.SDES, "scorefield.solvers.DDIM", "a class derived from scorefield.sde_lib"),
        # A config.json must not run what it likes.
        (build.NETWORKS, "subprocess.run:args='touch x'", "a class derived from torch.nn"),
        (build.WEIGHTINGS, "os.system:command='touch x'", "a name of your own package"),
        (build.DATASETS, "torch.load:f='x.pt'", "a name of your own package"),
    ],
)
def test_what_is_no_part_is_refused_before_it_is_called(table: Table, spec: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build.build(table, spec)


def test_a_function_is_the_part_itself_and_its_keywords_are_settings() -> None:
    table = Table("weightings", {"weight": weight, "made": lambda power=3.0: lambda sde, t: t**power}, functions=True)
    t = torch.tensor(0.5)
    assert list(build.spec(table, "weight")) == ["name", "power"]
    assert build.build(table, "weight")(None, t) == 0.25
    assert build.build(table, "weight:power=3")(None, t) == 0.125
    assert build.build(table, "made")(None, t) == 0.125
    assert build.build(table, f"{__name__}.weight:power=1")(None, t) == 0.5


def test_a_class_has_the_name_of_its_table_or_the_one_to_import_it_by() -> None:
    class Local:
        pass

    assert name_of(build.SOLVERS, DDIM) == "ddim"
    assert name_of(build.SOLVERS, Table) == "scorefield.configs.specs.Table"
    with pytest.raises(ValueError, match="can be imported"):
        name_of(build.SOLVERS, Local)


def test_a_spec_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="with a name"):
        build.build(build.SOLVERS, {"eta": 1.0})
