"""What the page was made of: hashes, versions, the machine, and the command of each file."""

import os
import platform
from datetime import datetime, timezone
from typing import Any

import torch

from scorefield.commands.likelihood.report import versions
from scorefield.commands.report.about import weights_of
from scorefield.commands.report.blocks import Block, Section, Table, said
from scorefield.commands.report.command_of import command_of
from scorefield.commands.report.found import WEIGHTS, Found, Report

NOT_MADE = ("import", "train", "train_classifier", "train_dequantiser", "check_data")  # by a command that reports


def provenance_section(found: Found) -> Section:
    """Tables of hashes, versions and commands."""
    run = found.run
    rows: list[tuple[str, Any]] = [("data", f"{run.data.name}, SHA-256 {run.data.fingerprint or 'not known'}")]
    if found.checkpoint is not None:
        rows += [(f"{WEIGHTS[key]} weights", f"SHA-256 {digest}") for key, digest in found.sha256.items()]
    rows += list(versions().items())
    rows.append(("machine", _machine(found)))
    blocks: list[Block] = [Table(("", ""), rows, "The page was made with these versions, on this machine.", keyed=True)]
    files = [
        (report.path.name, _command(found, report), weights_of(report), _time(report.path.stat().st_mtime))
        for report in sorted(found.reports, key=lambda each: each.path.name)
        if report.mode not in NOT_MADE
    ]
    if files:
        caption = "The command that makes each report, read off the report. Other options have their default values."
        blocks.append(Table(("file", "command", "of", "written"), files, caption, code=frozenset({0, 1})))
    blocks += [said(note, quiet=True) for note in found.notes]
    return Section("provenance", "Provenance", blocks)


def _command(found: Found, report: Report) -> str:
    try:
        return command_of(found, report)
    except (AttributeError, KeyError, TypeError, ValueError):  # of an unexpected content
        return "not known"


def _machine(found: Found) -> str:
    device = found.run.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return f"{platform.system()}, {device}: {name}, {os.cpu_count()} CPUs"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
