"""Metrics, restored and edited images, tuned samplers, and other reports of a run."""

from typing import Any

from scorefield.commands.report.about import weights_of
from scorefield.commands.report.blocks import Block, Number, Section, Table, picture, side_by_side
from scorefield.commands.report.found import Found, Report
from scorefield.commands.report.numbers import cell, is_number, number
from scorefield.commands.report.specs import short_spec
from scorefield.configs import build

# Modes whose pictures the page shows, with what they show.
PICTURED = {
    "edit": "Edited images",
    "interpolate": "Images between two images, by their latents",
    "encode": "Latents of images",
    "decode": "Images from latents",
    "score": "Anomaly scores",
    "grid": "The grid of steps that suits the run",
}


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
    """Samplers that --mode=tune chose, with what they gain on noise that it did not see."""
    reports = sorted(found.of_mode("tune", "winner", "default"), key=lambda each: int(each.content["budget"]))
    if not reports:
        return Section("tuned", "Tuned samplers", [])
    rows = [(*_tuned_row(report.content), report.mark or None) for report in reports]
    metric = ", ".join(dict.fromkeys(str(report.content.get("metric")) for report in reports))
    head = ("budget", "solver", "grid", "steps", "denoised", f"{metric}, tuned", f"{metric}, default", "gain", "")
    caption = (
        "tuned.json: the setting that --solver=tuned takes at each number of evaluations, and the default's. Both are "
        "measured on noise that the search did not see. The gain is the ratio of distances, or the difference of KIDs."
    )
    drawn = picture(reports[0].picture, "tuned and default samplers by evaluations", "tuned.png: by evaluations.")
    return Section("tuned", "Tuned samplers", [Table(head, rows, caption), *side_by_side(drawn)])


def _tuned_row(content: dict[str, Any]) -> tuple[Number | str | None, ...]:
    values = [content[key]["value"] for key in ("winner", "default")]
    gain = content.get("ratio") or content.get("difference") or {}
    shown = [number(each.get("value"), each.get("standard_error")) for each in (*values, gain)]
    solver, grid = (
        short_spec(table, content.get(key, "")) for table, key in ((build.SOLVERS, "solver"), (build.GRIDS, "grid"))
    )
    return number(content["budget"]), solver, grid, number(content.get("steps")), cell(content.get("denoise")), *shown


def pictures_section(found: Found) -> Section:
    """Pictures of other modes."""
    blocks: list[Block] = []
    for mode, what in PICTURED.items():
        for report in found.of_mode(mode)[:2]:
            about = ", ".join(filter(None, (what, _short(report), weights_of(report))))
            blocks += side_by_side(picture(report.picture, what.lower(), f"{report.picture.name}: {about}."))
    return Section("pictures", "Edits and latents", blocks)


def _short(report: Report) -> str:
    keys = ("strength", "guidance", "solver", "steps")
    named = {key: report.content.get(key) for key in keys if report.content.get(key) is not None}
    return ", ".join(f"{key} {getattr(shown := cell(value), 'text', shown)}" for key, value in named.items())
