"""Metrics, restored and edited images, tuned samplers, and other reports of a run."""

from typing import Any

from scorefield.commands.report.about import weights_of
from scorefield.commands.report.blocks import Block, Section, Table, picture, side_by_side
from scorefield.commands.report.found import Found, Report
from scorefield.commands.report.numbers import cell, is_number

# Modes whose pictures the page shows, with what they show.
PICTURED = {
    "edit": "Edited images",
    "interpolate": "Images between two images, by their latents",
    "encode": "Latents of images",
    "decode": "Images from latents",
    "score": "Anomaly scores",
    "grid": "The grid of steps that suits the run",
}
LONGEST = 60  # letters of a value in a list of settings


def restorations_section(found: Found) -> Section:
    """Restored images with their errors, and methods that restore the same measurements."""
    blocks: list[Block] = []
    for report in found.of_mode("restore")[:4]:
        numbers = ("error", "psnr", "ssim", "coverage", "residual", "spread", "forwards", "seconds")
        content = report.content
        head = [key for key in numbers if is_number(content.get(key))]
        row = [cell(content[key]) for key in head]
        caption = f"{report.path.name}: {content.get('task')}, {content.get('method')}, {weights_of(report)}."
        blocks += [Table(head, [row], caption)] if head else []
        blocks += side_by_side(picture(report.picture, f"images restored by {content.get('method')}", caption))
    for report in found.of_mode("compare", "table", "method")[:2]:
        rows = [row for row in report.content["table"] if isinstance(row, dict)]
        head = [key for key in dict.fromkeys(key for row in rows for key in row) if key != "rank_histogram"]
        caption = f"{report.path.name}: {report.content.get('task')}, {weights_of(report)}."
        blocks.append(Table(head, [[cell(row.get(key)) for key in head] for row in rows], caption))
        blocks += side_by_side(picture(report.picture, "images restored by each method", f"{report.picture.name}."))
    return Section("restored", "Restorations", blocks)


def tuned_section(found: Found) -> Section:
    """Samplers that --mode=tune chose."""
    return Section("tuned", "Tuned samplers", [_settings(report) for report in found.of_mode("tune")[:4]])


def pictures_section(found: Found) -> Section:
    """Pictures of other modes."""
    blocks: list[Block] = []
    for mode, what in PICTURED.items():
        for report in found.of_mode(mode)[:2]:
            about = ", ".join(filter(None, (what, _short(report), weights_of(report))))
            blocks += side_by_side(picture(report.picture, what.lower(), f"{report.picture.name}: {about}."))
    return Section("pictures", "Edits and latents", blocks)


def _settings(report: Report) -> Table:
    rows = [(key, text) for key, value in report.content.items() if (text := _word(value)) is not None]
    return Table(("setting", "value"), rows, f"{report.path.name}, {weights_of(report)}.")


def _word(value: Any) -> Any:
    shown = cell(value) if not isinstance(value, dict | list) else None
    return shown if not isinstance(shown, str) or len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."


def _short(report: Report) -> str:
    keys = ("strength", "guidance", "solver", "steps")
    named = {key: report.content.get(key) for key in keys if report.content.get(key) is not None}
    return ", ".join(f"{key} {getattr(shown := cell(value), 'text', shown)}" for key, value in named.items())
