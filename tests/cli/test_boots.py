"""`torpor boots` on saved logs: what is printed where, and what is wrong input."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from scripts.site.commands import help_of

from tests import ROOT
from tests.command_line import torpor
from tests.platforms.modal.modal_lines import AT, COLD_ID, CREATED, CREATING, FAILED, RESTORING, after, cold, log, woken

if TYPE_CHECKING:
    from pathlib import Path

PAGE = (ROOT / "docs" / "boots.md").read_text(encoding="utf-8")

SAVED = log(
    *((10, "ta-A", line) for line in (*cold(10), CREATING)),
    *((30, "ta-A", line) for line in (CREATED, after(COLD_ID, restored=False), *woken(COLD_ID, 31))),
    *((100, "ta-B", line) for line in (RESTORING, after("b1", restored=True), *woken("b1", 103))),
    *((200, "ta-C", line) for line in (RESTORING, FAILED, *cold(250, replica_id="c1", serves=True))),
    (300, "ta-D", RESTORING),
)

PLAIN = """\
began (UTC)          container  boot                 start                                       proof    seconds  wake s  note
2026-11-25 12:00:00  ta-A       00000000000000aa #1  snapshot created                                     31.00    0.50
2026-11-25 12:01:40  ta-B       b1 #1                restored                                    proved   3.00     0.50
2026-11-25 12:03:20  ta-C       c1                   restore failed, retried cold (exit code 222)           50.00
2026-11-25 12:05:00  ta-D                            restored                                    claimed
    1  snapshot created, median 31.00 s
    2  restored, median 3.00 s
    1  restore failed, retried cold, median 50.00 s
restores: 2 of 3 succeeded (67%); 1 proved, 1 claimed
"""


def boots(*argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command without access to an account of this machine."""
    return torpor("boots", *argv, stdin=stdin)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A log in a file."""
    file = tmp_path / "app.log"
    file.write_text(SAVED)
    return file


def test_a_pipe_gets_plain_lines(saved: Path) -> None:
    """One line for each start, then counts with medians, then the success rate; columns are separated by blanks only."""
    done = boots("--file", str(saved))
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split() for line in done.stdout.splitlines()] == [line.split() for line in PLAIN.splitlines()]


@pytest.mark.slow
def test_standard_input_is_read_as_a_file_is(saved: Path) -> None:
    """`modal app logs NAME ... | torpor boots --file -`."""
    assert boots("--file", "-", stdin=SAVED).stdout == boots("--file", str(saved)).stdout


def test_json_holds_every_start_and_the_sums(saved: Path) -> None:
    """The same numbers, for programs."""
    said = json.loads(boots("--file", str(saved), "--json").stdout)
    assert [start["kind"] for start in said["starts"]] == ["snapshot_created", "restored", "restore_failed", "restored"]
    assert said["starts"][1] == {
        "kind": "restored",
        "container": "ta-B",
        "replica_id": "b1",
        "proof": "proved",
        "note": "",
        "began_at": AT + 100,
        "served_at": AT + 103,
        "seconds": 3.0,
        "wake_s": 0.5,
        "captured_at": AT + 20,
        "restore_count": 1,
        "exit_code": None,
    }
    assert said["counts"] == {"cold": 0, "snapshot_created": 1, "restored": 2, "restore_failed": 1, "segfault": 0}
    assert said["proofs"] == {"proved": 1, "claimed": 1, "record only": 0, "contradicted": 0}
    assert said["restores"] == {"tried": 3, "succeeded": 2, "success_rate": pytest.approx(2 / 3)}
    assert (said["median_s"]["restored"], said["median_s"]["segfault"]) == (3.0, None)
    assert (said["lines"], said["unreadable"]) == (len(SAVED.splitlines()), 0)


def test_a_terminal_gets_a_table(saved: Path) -> None:
    """Drawn by rich, with the same cells; text of a log is never markup."""
    saved.write_text(
        SAVED + log((400, "ta-E", RESTORING), *((400, "ta-E", line) for line in woken("e1", 401, error="[red]no")))
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "torpor.cli", "boots", "--file", str(saved)],
        env={**os.environ, "COLUMNS": "200", "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:
            pass  # Linux: the other side has closed
        assert process.wait(60) == 0
    os.close(ours)
    text = shown.decode()
    assert text.startswith("\x1b") or "starts" in text.splitlines()[0]
    for part in (
        "\u2502",
        "ta-B",
        "proved",
        "restore failed, retried cold (exit code 222)",
        "[red]no",
        "restores: 2 of 4",
    ):
        assert part in text


def test_a_log_without_starts_says_so() -> None:
    """No empty table."""
    done = boots("--file", "-", stdin="one\ntwo\n")
    assert (done.returncode, done.stdout) == (0, "no start in 2 lines\n")


def test_bytes_that_are_not_text_are_skipped(tmp_path: Path) -> None:
    """An engine may print anything."""
    file = tmp_path / "odd.log"
    file.write_bytes(b"\xff\xfe\x00\n" + RESTORING.encode() + b"\r\n\x80")
    assert boots("--file", str(file)).stdout.splitlines()[-1] == "restores: 1 of 1 succeeded (100%); 1 claimed"


def test_the_page_shows_the_commands_output_for_its_log() -> None:
    """The two blocks of docs/boots.md match exactly."""
    saved, shown = (PAGE.split(f"```{kind}\n")[1].split("```")[0] for kind in ("log", "text"))
    assert boots("--file", "-", stdin=saved).stdout == shown


def test_the_page_names_only_existing_options() -> None:
    """Of the three commands; a renamed option fails here."""
    known = {
        option for name in ("boots", "prewarm", "probe") for option in re.findall(r"--[a-z][a-z-]+", help_of((name,)))
    }
    foreign = {"--since", "--timestamps", "--show-container-id"}  # of `modal app logs`
    named = set(re.findall(r"--[a-z][a-z-]+", PAGE))
    assert named - foreign <= known
    assert {"--file", "--json", "--attempts", "--pause", "--timeout", "--model", "--key-env"} <= named


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "one of the two"),
        (("small", "--file", "x"), "one of the two"),
        (("--file", "/no/such/file"), "'/no/such/file' cannot be read: No such file or directory"),
        (("--file", "/"), "'/' cannot be read: Is a directory"),
    ],
)
def test_wrong_input_is_one_paragraph_and_exit_code_2(argv: tuple[str, ...], words: str) -> None:
    """It says what to change."""
    done = boots(*argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
