"""The short way of `torpor snapshot restore` past the library that reads options."""

from __future__ import annotations

import subprocess
import sys

import pytest

from torpor.cli import _plain_restore


def test_a_plain_line_is_read() -> None:
    """In any order, with the defaults of the full parser."""
    assert _plain_restore(["snapshot", "restore", "d"]) == {
        "folder": "d",
        "replicas": 1,
        "port": None,
        "verify": "fast",
        "as_json": False,
    }
    assert _plain_restore(
        ["snapshot", "restore", "--port", "8001", "d", "--replicas", "3", "--verify", "full", "--json"]
    ) == {
        "folder": "d",
        "replicas": 3,
        "port": 8001,
        "verify": "full",
        "as_json": True,
    }
    for option, value in (("host", "::1"), ("records", "r.jsonl"), ("gpus", "0,1")):
        read = _plain_restore(["snapshot", "restore", "d", f"--{option}", value])
        assert read is not None
        assert dict(read)[option] == value


@pytest.mark.parametrize(
    "line",
    [
        "",
        "up app.py",
        "snapshot create a d",
        "snapshot restore",
        "snapshot restore --help",
        "snapshot restore d e",
        "snapshot restore d --port",
        "snapshot restore d --port x",
        "snapshot restore d --host",
        "snapshot restore d --host --json",
        "snapshot restore d --gpus",
        "snapshot restore d --replicas -1",
        "snapshot restore d --verify some",
        "snapshot restore d --port=8001",
        "--debug snapshot restore d",
    ],
)
def test_every_other_line_is_for_the_full_parser(line: str) -> None:
    """Wrong lines get the full parser's messages."""
    assert _plain_restore(line.split()) is None


def test_a_restore_imports_little_before_criu_begins() -> None:
    """What is imported there is waited for: no option parser, no HTTP client, no log library, no hooks."""
    code = "import sys, torpor.cli.restore; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {
        "typer",
        "click",
        "rich",
        "httpx",
        "structlog",
        "pluggy",
        "modal",
        "asyncio",
        "psutil",
        "logging",
    } & set(ran.stdout.split())
