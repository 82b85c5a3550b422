"""The page of a run: it parses, needs nothing beside it, and shows the numbers of the reports."""

import html.parser
import json
import math
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from training_runs import TOTAL, new_run, trained, untrained_run

from scorefield.commands.arguments import sort
from scorefield.commands.command_line import run as run_line
from scorefield.commands.compare import compare
from scorefield.commands.configuration import load
from scorefield.commands.evaluate.command import evaluate
from scorefield.commands.likelihood.command import likelihood
from scorefield.commands.modes import ALWAYS, OPTIONS, SEVERAL
from scorefield.commands.report import report
from scorefield.commands.report.blocks import Number, Table
from scorefield.commands.report.chart import Curve, chart
from scorefield.commands.report.command_of import command_of
from scorefield.commands.report.found import Found
from scorefield.commands.report.likelihoods import likelihood_section
from scorefield.commands.report.make import missing
from scorefield.commands.report.metrics import metrics_section
from scorefield.commands.report.numbers import number
from scorefield.commands.report.recipe import nearest_recipe
from scorefield.commands.report.sampling import pair_of, pareto
from scorefield.commands.sample import sample
from scorefield.configs import digits

VOID = {"meta", "img"}  # those of SVG close themselves
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(html.parser.HTMLParser):
    """A page whose tags are closed in order; its text, its numbers and its pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.values: list[float] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"open at the end: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "data":
            self.values.append(float(dict(attrs)["value"] or "nan"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(workdir: Path, **options: Any) -> Page:
    report(workdir, **{"make": False, "device": "cpu", **options})
    return Page((workdir / "report.html").read_text("utf-8"))


def content(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps with samples, solvers and likelihoods, whose name is no good HTML."""
    workdir = tmp_path_factory.mktemp("report") / """a<b>&"c'"""
    run = new_run(workdir)
    run.save()
    trained(run, saves=(TOTAL,))
    sample(workdir, num=4, steps=2, trajectory=2, device="cpu")
    sample(workdir, num=4, steps=2, ema=False, device="cpu")
    compare(workdir, solver=("ddim", "heun", "ancestral"), steps=(2, 3), num=2, device="cpu")
    evaluate(workdir, num=24, steps=(2, 3), features="pixels", metrics=["kid", "nn"], device="cpu")
    for split in ("test", "train"):
        likelihood(workdir, split=split, num=8, estimators=["dsm", "elbo"], draws=2, device="cpu")
    for path in workdir.glob("*.png"):  # figures are not rendered here
        Image.new("RGB", (40, 20), "navy").save(path)
    return workdir


@pytest.fixture
def workdir(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / made.name)


def test_it_is_well_formed_and_needs_nothing_beside_it(made: Path) -> None:
    page = page_of(made)
    text = (made / "report.html").read_text("utf-8")
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) >= 5  # samples twice, trajectories, solvers, two histograms
    for attributes in pictures:
        assert (attributes["src"] or "").startswith("data:image/png;base64,") and attributes["alt"]
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?://|url\(|@import|javascript:", text)
    assert "default-src 'none'; img-src data:" in text  # so that a browser refuses everything else
    anchors = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert anchors == {f"#{attributes['id']}" for tag, attributes in page.tags if tag == "section"}
    headings = ["What was trained", "Training", "Samples", "Trajectories", "Solvers by steps", "Bits/dim", "Metrics"]
    headings.append("Provenance")
    places = [text.index(f"<h2>{heading}</h2>") for heading in headings]
    assert places == sorted(places)


def test_its_numbers_are_those_of_the_reports(made: Path) -> None:
    page = page_of(made)
    expected = [TOTAL]
    for split in ("test", "train"):
        for each in content(made / f"likelihood_{split}.json")["estimates"].values():
            expected += [each["bits_per_dim"], each["n"], each["nfe"], *each["parts"].values()]
    for row in content(made / "compare.json")["table"]:
        expected += [row["steps"], row["nfe"], row["seconds"], *([row["distance"]] if "distance" in row else [])]
    measured = content(made / "evaluate.json")
    expected += [measured["floor"]["kid"]["value"], measured["copies"]["share"], measured["copies"]["p"]]
    for row in measured["rows"]:
        expected += [row["n"], row["nfe"], row["numbers"]["kid"]["value"]]
        assert row["recipe"] in page.text or row["name"] != measured["best"]
    assert not [value for value in expected if value not in page.values]
    test, train = (content(made / f"likelihood_{split}.json")["estimates"] for split in ("test", "train"))
    assert any(value == test["elbo"]["bits_per_dim"] - train["elbo"]["bits_per_dim"] for value in page.values)
    assert min(each["bits_per_dim"] for each in test.values()) in page.values[:5]  # of the summary


def test_names_are_escaped(made: Path) -> None:
    page = page_of(made)
    assert made.name in page.text
    assert "<b>" not in (made / "report.html").read_text("utf-8")


def test_reports_of_another_checkpoint_are_marked_and_broken_files_are_named(workdir: Path) -> None:
    other = content(workdir / "samples.json")
    assert "not of the newest" not in page_of(workdir).text
    (workdir / "samples.json").write_text(json.dumps({**other, "checkpoint": "0000000007", "checkpoint_sha256": "0"}))
    (workdir / "compare.json").write_text('{"table": [')
    (workdir / "likelihood_test.json").write_text('{"estimates": 3}')
    (workdir / "evaluate.json").write_text('{"rows": [{"numbers": 3}], "floor": 1, "recipe": 2}')
    (workdir / "samples_2.png").write_bytes(b"no picture")
    (workdir / "metrics.jsonl").write_text((workdir / "metrics.jsonl").read_text() + '{"step": 3, "ima')
    page = page_of(workdir)
    assert "of checkpoint 0000000007, not of the newest, 0000000480" in page.text
    assert "compare.json could not be read as JSON" in page.text
    assert "A file of this section has an unexpected content" in page.text
    assert "Solvers have not been compared yet" in page.text
    assert "--mode=sample" in page.text[page.text.index("Provenance") :]  # of the files that read


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    new_run(tmp_path / "new").save()
    page = page_of(tmp_path / "new")
    assert "It has no checkpoint yet" in page.text and "There are no metrics of training" in page.text
    page = page_of(untrained_run(tmp_path / "untrained"))
    assert "training has not ended" in page.text
    assert "scorefield --mode=likelihood --workdir=" in page.text


def test_the_head_has_the_best_row_of_one_recipe_and_names_its_features(workdir: Path) -> None:
    first = content(workdir / "evaluate.json")
    kid, first_recipe = first["rows"][0]["numbers"]["kid"]["value"], first["recipe"]
    assert len(first["rows"]) == 2
    other = {**first["recipe"], "features": "toy features", "features_sha256": "0"}
    for n, (value, recipe) in enumerate([(kid - 1.0, first_recipe), (kid - 2.0, other)], 2):  # newer, of one row each
        row = json.loads(json.dumps(first["rows"][0]))
        row["numbers"]["kid"]["value"] = value
        made = {**first, "rows": [{**row, "name": f"row {n}"}], "best": f"row {n}", "recipe": recipe}
        (workdir / f"evaluate_{n}.json").write_text(json.dumps({**made, "of": first["of"][:1]}))
    page = page_of(workdir)
    assert f"In the features {first_recipe['features']}, its best kid is" in page.text
    assert kid - 1.0 in page.values[:8] and kid - 2.0 not in page.values[:8]
    assert "(row 2, 24 samples" in page.text and "It is not compared with reports of other features" in page.text
    headings = [f"evaluate{end}.json: kid" for end in ("", "_3", "_2")]  # most rows first, then the newest
    places = [page.text.index(heading) for heading in headings]
    assert places == sorted(places) and "in the features toy features" in page.text


def test_the_head_has_the_more_precise_of_two_bounds_and_the_fuller_comparisons_are_shown(workdir: Path) -> None:
    first = content(workdir / "likelihood_test.json")
    bound = first["estimates"].pop("elbo")
    for n, (value, error) in enumerate([(-3.0, 9.0), (-2.0, 1e-9), (-1.0, 1e-9)], 2):  # the second is the most precise
        each = {**bound, "bits_per_dim": value, "standard_error": error * n}
        (workdir / f"likelihood_test_{n}.json").write_text(json.dumps({**first, "estimates": {"elbo": each}}))
    (workdir / "likelihood_test.json").unlink()
    failed = {**content(workdir / "compare.json"), "table": [{"solver": "heun", "budget": 1, "failed": "too small"}]}
    for n in (2, 3):  # newer
        (workdir / f"compare_{n}.json").write_text(json.dumps(failed))
    page = page_of(workdir)
    assert -2.0 in page.values[:8] and -3.0 not in page.values[:8] and -1.0 not in page.values[:8]
    assert "compare.json: 2 samples" in page.text
    assert "Comparisons with fewer rows are left out: compare_" in page.text


def test_metrics_are_drawn_along_what_differs(made: Path) -> None:
    found = Found.of(made, "cpu")
    report_of = found.of_mode("evaluate")[0]

    def charts_of(**changed: list[float]) -> list[Any]:
        rows = [
            {**row, **{key: values[i] for key, values in changed.items()}}
            for i, row in enumerate(report_of.content["rows"])
        ]
        found.__dict__["reports"] = [replace(report_of, content={**report_of.content, "rows": rows})]
        return [each for block in metrics_section(found).blocks if block.kind == "charts" for each in block.charts]

    assert charts_of(nfe=[5.0, 5.0], images=[480, 480]) == []
    for changed, x in (
        ({"images": [240, 480], "nfe": [5.0, 5.0]}, "images seen"),
        ({"nfe": [5.0, 9.0]}, "evaluations"),
    ):
        (drawn,) = charts_of(**changed)
        floor = next(each for each in drawn.curves if each.name.startswith("floor"))
        (left, y), (right, other) = (map(float, point.split(",")) for point in floor.line.split())
        assert drawn.x.startswith(x) and (left, right, y) == (drawn.box[0], drawn.box[2], other)


def test_samples_of_other_settings_do_not_stand_beside_each_other(workdir: Path) -> None:
    assert "Both are of the same noise and settings" in page_of(workdir).text
    (workdir / "samples_2.json").write_text(json.dumps({**content(workdir / "samples_2.json"), "steps": 3}))
    page = page_of(workdir)
    assert "These are not of the same noise and settings" in page.text and "Both are of" not in page.text


def test_parts_of_a_bound_add_up(made: Path) -> None:
    (table,) = [
        each for each in likelihood_section(Found.of(made, "cpu")).blocks if "total" in getattr(each, "head", ())
    ]
    assert isinstance(table, Table)
    at = table.head.index("dequantisation")
    for row in table.rows:
        numbers = [each.value for each in row if isinstance(each, Number)]
        assert sum(numbers[:-1]) == pytest.approx(numbers[-1], abs=1e-4)
        left_out = row[at]
        if row[1] == "dsm":  # 17 levels within [-1, 1]: 17 / 2 of them in a unit
            assert isinstance(left_out, Number) and left_out.value == pytest.approx(math.log2(17 / 2), abs=1e-4)
        else:
            assert left_out is None


@pytest.mark.slow
def test_trajectories_and_samples_to_compare_are_made_beside_samples_of_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scorefield.commands.report.make.NUM", 4)
    workdir = untrained_run(tmp_path / "run")
    sample(workdir, num=3, steps=2, device="cpu")  # without trajectories, and without samples of raw weights
    found = Found.of(workdir, "cpu")

    def made() -> list[str]:
        tasks = [task for task in missing(found, "cpu") if "samples" in task.name]
        for task in tasks:
            task.call()
        found.refresh()
        return [task.name for task in tasks]

    assert made() == ["trajectories and samples of the averaged weights", "samples of the raw weights"]
    assert (workdir / "samples_2_trajectory.npz").is_file() and len(pair_of(found.of_mode("sample"))) == 2
    (workdir / "samples_2_trajectory.npz").unlink()
    assert made() == ["trajectories and samples of the averaged weights"]
    assert made() == [] and not (workdir / "samples_4.npz").exists()


@pytest.mark.slow
def test_what_is_missing_is_made_once_and_by_the_commands_that_the_page_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MEASURED": 24, "SCORED": 4, "NUM": 4, "STEPS": (2,), "DRAWS": 2}.items():
        monkeypatch.setattr(f"scorefield.commands.report.make.{name}", value)
    workdir = untrained_run(tmp_path / "run")
    report(workdir, device="cpu")
    files = {path.name: path.stat().st_mtime_ns for path in workdir.iterdir()}
    made = {"evaluate", "samples", "samples_2", "compare", "likelihood_test", "likelihood_train"}
    assert {"samples_trajectory.npz", *(f"{name}.json" for name in made)} <= files.keys()
    page = page_of(workdir, make=True)  # makes nothing again
    del files["report.html"]
    assert {name: (workdir / name).stat().st_mtime_ns for name in files} == files
    found = Found.of(workdir, "cpu")
    for each in found.reports:
        line = command_of(found, each)
        assert " ".join(line.split()) in page.text
        before = content(each.path)
        assert run_line(["main.py", *shlex.split(line)[1:], "--device=cpu"]) == 0
        changed = {key for key in before if content(each.path)[key] != before[key]}
        assert changed <= {"seconds", "table", "estimates", "rows"}, line  # which have times
    assert {path.name for path in workdir.iterdir()} == {*files, "report.html"}, "a command wrote another file"


def test_a_command_has_the_options_that_are_not_defaults(made: Path) -> None:
    found = Found.of(made, "cpu")
    kinds = {**ALWAYS, **{name: kind for name, (kind, _) in OPTIONS.items()}}
    lines = {each.path.stem: shlex.split(command_of(found, each))[1:] for each in found.reports}
    where = {"workdir": str(made)}
    assert sort(lines["samples_2"], kinds, SEVERAL).values == {"mode": "sample", **where, "num": 4, "ema": False}
    assert sort(lines["compare"], kinds, SEVERAL).values == {
        "mode": "compare", **where, "solver": ("ddim", "heun", "ancestral"), "steps": (2, 3), "num": 2,
    }  # fmt: skip
    assert sort(lines["evaluate"], kinds, SEVERAL).values == {
        "mode": "evaluate", **where, "num": 24, "steps": (2, 3), "features": "pixels", "metrics": ["kid", "nn"],
    }  # fmt: skip
    assert sort(lines["likelihood_train"], kinds, SEVERAL).values == {
        "mode": "likelihood", **where, "split": "train", "num": 8, "estimators": ["dsm", "elbo"], "draws": 2,
    }  # fmt: skip


def test_the_nearest_recipe_is_the_one_that_was_changed() -> None:
    config = load("digits:edm", ["--config.training.batch=32", "--config.sde.t_max=10.0", "--config.seed=3"])
    recipe = nearest_recipe(config)
    assert recipe.name == "digits:edm"
    assert recipe.rows == [("sde.t_max", "10.0", "20.0"), ("training.batch", "32", "64")]
    assert nearest_recipe(digits.get_config("vdm")).rows == []
    other = nearest_recipe(load("digits:vp", ["--config.net=mlp"]))
    assert other.name == "digits:vp"
    assert other.rows == [("net", "mlp", "unet:blocks=1,multipliers=(1, 2),width=32")]


def test_the_pareto_front_has_no_row_that_another_beats() -> None:
    rows = [
        {"nfe": nfe, "distance": distance}
        for nfe, distance in [(5, 0.4), (5, 0.3), (9, 0.35), (10, 0.1), (12, 0.1), (20, 0.1), (20, 0.05), (3, None)]
    ]
    known = [row for row in rows if row["distance"] is not None]
    free = [
        row
        for row in known
        if not any(
            other["nfe"] <= row["nfe"] and other["distance"] <= row["distance"] and other != row for other in known
        )
    ]
    assert [rows[i] for i in pareto(rows)] == sorted(free, key=lambda row: row["nfe"])


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.03411, 0.0027785, "1.0341 ± 0.0028"),
        (31.24, 1.3, "31.2 ± 1.3"),
        (12345, None, "12,345"),
        (0.00012346, None, "0.0001235"),
        (3.14159, None, "3.142"),
        (99.996, None, "100.00"),
        (2.0, float("nan"), "2"),
    ],
)
def test_numbers_have_the_digits_that_count(value: float, error: float | None, text: str) -> None:
    shown = number(value, error)
    assert shown is not None and shown.text == text and shown.value == value


def test_charts_place_points_and_leave_out_what_no_axis_has() -> None:
    nan = float("nan")
    drawn = chart("c", [Curve("a", [1, 10, 100, 0, 5], [1.0, 2.0, 3.0, 4.0, nan])], x="x", y="y", log="x")
    assert drawn is not None
    points = [tuple(map(float, point.split(","))) for point in drawn.curves[0].line.split()]
    assert len(points) == 3
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert {tick.text: tick.at for tick in drawn.x_ticks}["10"] == x1
    assert {tick.text: tick.at for tick in drawn.y_ticks}["2"] == y1
    left, top, right, bottom = drawn.box
    assert all(left <= x <= right and top <= y <= bottom for x, y in points)
    assert chart("c", [Curve("a", [nan], [1.0])], x="x", y="y") is None


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed to look at the page with")
def test_a_browser_shows_it_without_errors_and_without_the_network(made: Path, tmp_path: Path) -> None:
    report(made, make=False, device="cpu", output=str(tmp_path / "page.html"))
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
    common = (str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={tmp_path / 'u'}")
    log = tmp_path / "net.json"
    done = subprocess.run(
        [
            *common,
            "--enable-logging=stderr",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--log-net-log={log}",
            f"--screenshot={tmp_path / 'page.png'}",
            "--window-size=1200,4000",
            f"file://{tmp_path / 'page.html'}",
        ],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    # Requests of the browser's own have no origin; those of a page from a file have the origin "null".
    assert set(re.findall(r'"initiator":"([^"]*)"', log.read_text())) <= {"not an origin"}
    shown = np.asarray(Image.open(tmp_path / "page.png").convert("L"), np.float64)
    assert shown.shape == (4000, 1200)
    # Ink in each of the upper parts of the page, and more than one shade of it.
    assert all(part.std() > 5 for part in np.split(shown[:3000], 6)) and len(np.unique(shown)) > 50
