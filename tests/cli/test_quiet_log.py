"""What a command says beside its own output."""

from __future__ import annotations

import subprocess
import sys

CODE = """
from torpor.telemetry.events import log, warnings_only
from torpor.telemetry.records import StageRecord
from torpor.telemetry.stage_report import StageReport
warnings_only()
report = StageReport()
for ok in (True, False):
    report.end(StageRecord(stage="ready", seconds=1.0, boot="cold", replica_id="", restore_count=0, ended_at=1.0, ok=ok))
log("info", "engine_cannot_sleep", plugin="x")
log("warning", "secrets_in_snapshot", variables=["HF_TOKEN"], deployment="x")
"""


def test_only_warnings_are_logged_on_standard_error() -> None:
    """The command shows stages itself; standard output is for the answer or JSON."""
    ran = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == ""
    (line,) = ran.stderr.splitlines()
    assert "secrets_in_snapshot" in line
    assert "variables=['HF_TOKEN']" in line
