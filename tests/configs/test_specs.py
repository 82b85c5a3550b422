"""Specs: read, written, built, and old ones understood."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scorefield.configs import build
from scorefield.configs.specs import Table, modern, name_of, unparse
from scorefield.configs.text import parse
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


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("folder:path=/data/my photos (1),size=32", {"path": "/data/my photos (1)", "size": 32}),
        ("folder:path=../it's/a,b,size=32", {"path": "../it's/a,b", "size": 32}),
        (r"folder:path=C:\data\x,size=32", {"path": r"C:\data\x", "size": 32}),
        ("folder:path=~/photos", {"path": str(Path.home() / "photos")}),
        ("folder:path='~/photos'", {"path": "~/photos"}),
        ("array:path=x-1.npz, levels=0", {"path": "x-1.npz", "levels": 0}),
        ("pc:predictor=dpm:order=1,snr=0.1", {"predictor": "dpm:order=1", "snr": 0.1}),
        (
            "pc:predictor='dpm:order=1,snr=2',snr=0.1",
            {"predictor": "dpm:order=1,snr=2", "snr": 0.1},
        ),
        ("sigmas:levels=10,1,0.1", {"levels": (10, 1, 0.1)}),
        ("dpm:multistep=false", {"multistep": False}),
    ],
)
def test_values_stand_as_they_are_without_quotes(text: str, spec: dict[str, object]) -> None:
    name = text.partition(":")[0]
    assert parse(text) == {"name": name, **spec}
    assert parse(unparse(parse(text))) == parse(text)


@pytest.mark.parametrize("word", ["true", "nan", "None", "a.b", "~/x", "3", "a,b=c", "it's"])
def test_a_word_that_reads_as_something_else_is_written_in_quotes(word: str) -> None:
    assert parse(unparse({"name": "x", "a": word, "b": 1})) == {"name": "x", "a": word, "b": 1}


@pytest.mark.parametrize("text", ["ddim:0.5", "ddim:eta=", "ddim:eta='x", "ddim:eta=(1,b=2", "x:3=4"])
def test_a_text_that_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="key=value"):
        parse(text)


@pytest.mark.parametrize("value", ["f(x)", "1)+f(", "much", "1.0.0"])
def test_a_word_for_a_number_is_refused_by_the_name_of_its_setting(value: str) -> None:
    for make in (build.spec, build.build):
        with pytest.raises(ValueError, match="expected eta of ddim to be a number, got"):
            make(build.SOLVERS, f"ddim:eta={value}")


def test_a_folder_that_is_named_by_a_number_is_a_path() -> None:
    assert build.spec(build.DATASETS, "folder:path=2024,size=32").path == "2024"
    with pytest.raises(ValueError, match="folder needs path, as in folder:path=VALUE"):
        build.build(build.DATASETS, "folder")


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
