"""How the command line shows how far long work is: on a terminal, elsewhere, and as JSON."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

from rich.console import Console

from torpor.cli.progress import Progress
from torpor.telemetry import progress
from torpor.telemetry.records import StageRecord

if TYPE_CHECKING:
    import pytest


def work(shown: Progress) -> None:
    """A build step, a stage with progress, and progress after it, as in a capture."""
    shown.step("fetch [weights]")
    with shown.listening():
        shown.begin("warmup")
        progress.tell("request 1 of 2")
        shown.end(
            StageRecord(
                stage="warmup", seconds=1.5, boot="cold", replica_id="b", restore_count=0, ended_at=1700000000.0
            )
        )
        progress.tell("0.50 GB of the snapshot are written")
    progress.tell("nobody listens any more")


def test_on_a_terminal_progress_between_two_stages_is_shown() -> None:
    """In the live line, which is removed at the end."""
    screen = io.StringIO()
    work(Progress(Console(file=screen, force_terminal=True, width=100, highlight=False), as_json=False))
    text = screen.getvalue()
    assert "warming up with real requests: request 1 of 2 ..." in text
    assert "0.50 GB of the snapshot are written ..." in text
    assert "nobody listens" not in text
    assert text.endswith("\x1b[?25h\r\x1b[1A\x1b[2K") or text.rstrip("\r").endswith("\x1b[2K")


def test_elsewhere_each_change_is_a_plain_line() -> None:
    """No control characters; a name is never markup."""
    stream = io.StringIO()
    work(Progress(Console(file=stream, width=100, highlight=False), as_json=False))
    assert [line.rstrip() for line in stream.getvalue().splitlines()] == [
        "build step: fetch [weights]",
        "       warmup        request 1 of 2",
        "ok     warmup           1.500 s  warming up with real requests",
        "                     0.50 GB of the snapshot are written",
    ]


def test_as_json_each_change_is_a_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output stays free for the answer."""
    stream = io.StringIO()
    work(Progress(Console(file=stream), as_json=True))
    shown = capsys.readouterr()
    assert (shown.out, stream.getvalue()) == ("", "")
    assert [json.loads(line) for line in shown.err.splitlines()] == [
        {"build_step": "fetch [weights]"},
        {"stage": "warmup", "progress": "request 1 of 2"},
        {"stage": "warmup", "seconds": 1.5, "ok": True},
        {"stage": "", "progress": "0.50 GB of the snapshot are written"},
    ]
