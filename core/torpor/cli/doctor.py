"""`torpor doctor`: what this machine lacks for snapshots."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from torpor.apps import load_deployment
from torpor.doctor import diagnose

if TYPE_CHECKING:
    from torpor.doctor import Finding

__all__ = ["run_doctor"]

_EXIT_CODES = {"ok": 0, "warning": 1, "error": 2}


def run_doctor(app_file: str, *, as_json: bool) -> None:
    """Look, say what was seen, and exit with 0 (nothing lacks), 1 (warnings) or 2 (errors).

    Args:
        app_file: what is to be snapshotted; empty for nothing in particular.
        as_json: print JSON.
    """
    findings = diagnose(load_deployment(app_file) if app_file else None)
    code = max(_EXIT_CODES[finding.level] for finding in findings)
    if as_json:
        typer.echo(json.dumps({"exit_code": code, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        for finding in findings:
            typer.echo(_lines(finding))
    sys.exit(code)


def _lines(finding: Finding) -> str:
    """What was seen, and under it what to do."""
    line = f"{finding.level:<8} {finding.what:<12} {finding.seen}"
    return f"{line}\n{'':<21} -> {finding.cure}" if finding.cure else line
