"""Make one HTML page of a run."""

import importlib
from collections.abc import Callable
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from scorefield.commands.outputs import check_output, output_path
from scorefield.commands.report.about import summary, what_was_trained
from scorefield.commands.report.blocks import Missing, Section
from scorefield.commands.report.found import Found
from scorefield.commands.report.likelihoods import likelihood_section
from scorefield.commands.report.make import make_missing
from scorefield.commands.report.metrics import metrics_section
from scorefield.commands.report.others import pictures_section, restorations_section, tuned_section
from scorefield.commands.report.provenance import provenance_section
from scorefield.commands.report.sampling import samples_section, solvers_section
from scorefield.commands.report.training_curves import training_section
from scorefield.commands.report.trajectories import trajectories_section
from scorefield.training.checkpoints.atomic import atomic_file

TEMPLATE = "page.html.j2"
SECTIONS: tuple[tuple[str, Callable[[Found], Section]], ...] = (
    ("What was trained", what_was_trained),
    ("Training", training_section),
    ("Samples", samples_section),
    ("Trajectories", trajectories_section),
    ("Solvers by steps", solvers_section),
    ("Likelihood", likelihood_section),
    ("Metrics", metrics_section),
    ("Restorations", restorations_section),
    ("Tuned samplers", tuned_section),
    ("Edits and latents", pictures_section),
    ("Provenance", provenance_section),
)


def report(workdir: Path, *, make: bool = True, device: str | None = None, output: str | None = None) -> dict[str, Any]:
    """One HTML page of a run, report.html: what was trained, its samples, its likelihood, and where each comes from.

    The page is one file with its pictures inside. It needs no network, and prints.

    Missing reports of the newest checkpoint are made first, by their own modes, which leave their usual files. These
    are samples of averaged and raw weights with trajectories, a comparison of solvers, the metrics of 1,000 samples,
    and the likelihood of 256 images of each split. One that would take more than ten minutes is left out, and the page
    has its command.

    Args:
        workdir: of the run.
        make: make what is missing; --nomake only gathers what is there.
        device: see `open_run`.
        output: the page, .html.

    Raises:
        ValueError: if there is no run of a denoiser.
    """
    check_output(output, ".html")
    found = Found.of(workdir, device)
    if make:
        make_missing(found, device)
    path = output_path(output, workdir / "report.html")
    text = page(found)
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8")
    return {"sections": len(sections_of(found)), "files": [str(path)]}


def page(found: Found) -> str:
    """The HTML of a run's page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((resources.files(__package__) / TEMPLATE).read_text("utf-8"))
    sections = sections_of(found)
    return template.render(
        run=found.workdir.resolve().name,
        workdir=str(found.workdir),
        data=found.run.data.name,
        checkpoint=found.checkpoint.name if found.checkpoint else None,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        version=importlib.import_module("scorefield").__version__,
        summary=summary(found),
        sections=sections,
    )


def sections_of(found: Found) -> list[Section]:
    """The sections that have something to show. Files of an unexpected content cost only their section."""
    sections = []
    for title, make in SECTIONS:
        try:
            section = make(found)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            sentence = f"A file of this section has an unexpected content ({type(error).__name__}: {error})."
            section = Section(title.lower().replace(" ", "-"), title, [Missing(sentence)])
        if section.blocks:
            sections.append(section)
    return sections
