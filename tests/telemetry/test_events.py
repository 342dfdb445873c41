"""Torpor's events as lines of JSON."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import structlog

from torpor.telemetry.events import json_line, log

CODE = """
import sys
from torpor.telemetry.events import log
log("error", "engine_ended", exit_code=-9, last_lines=("a\\nb", "\\u2028{x}"))
print("structlog" in sys.modules)
"""


def test_an_event_is_one_line_of_json_and_costs_no_structlog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strings escape line breaks of any kind. Importing structlog would take half of a restore's time."""
    monkeypatch.setenv("TORPOR_LOG_FORMAT", "json")
    before = time.time()
    ran = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=60)
    line, imported = ran.stdout.splitlines()
    facts = json.loads(line)
    assert line.startswith('{"torpor": "engine_ended", ')
    assert before - 1 < facts.pop("at") < time.time() + 1
    assert facts == {
        "torpor": "engine_ended",
        "level": "error",
        "exit_code": -9,
        "last_lines": ["a\nb", "\u2028{x}"],
    }
    assert (imported, ran.stderr) == ("False", "")


@pytest.mark.parametrize("value", ["", "console", "JSON ", "0"])
def test_any_other_format_leaves_the_log_to_structlog(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    """In the format that the process has configured."""
    monkeypatch.setenv("TORPOR_LOG_FORMAT", value)
    with structlog.testing.capture_logs() as logs:
        log("info", "sleeping", seconds=1.0)
    assert logs == [{"event": "sleeping", "seconds": 1.0, "log_level": "info"}]
    assert capsys.readouterr().out == ""


def test_what_json_cannot_hold_is_written_as_text() -> None:
    """No value prevents an event from being logged."""
    ring: list[object] = []
    ring.append(ring)
    facts = json.loads(json_line("info", "odd", path=Path("/a"), number=math.nan, ring=ring, ok=True, half="\ud800"))
    assert (facts["path"], facts["number"], facts["ok"], facts["half"]) == ("/a", "nan", True, "\ud800")
    assert json.loads(json_line("info", "odd", path=Path("/a"), count=3))["count"] == 3


@pytest.mark.fault("nobody reads the log any more", area="logs", outcome="held")
def test_a_closed_log_ends_no_replica(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It serves on without its log."""
    monkeypatch.setenv("TORPOR_LOG_FORMAT", "json")
    closed = (tmp_path / "log").open("w")
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    log("info", "sleeping")
    code = "from torpor.telemetry.events import log; import sys; log('info', 'sleeping'); print('serves on', file=sys.stderr)"
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-u", "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )
    assert ran.stderr.startswith("serves on\n")
