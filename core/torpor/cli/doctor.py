"""`torpor doctor`: what this machine lacks for snapshots."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

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
        print(json.dumps({"exit_code": code, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        Console(highlight=False, markup=False).print(_table(findings))
    sys.exit(code)


def _table(findings: tuple[Finding, ...]) -> Table:
    table = Table(title="snapshots on this machine", title_justify="left")
    for column in ("", "what", "seen", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        table.add_row(finding.level, finding.what, finding.seen, finding.cure)
    return table
