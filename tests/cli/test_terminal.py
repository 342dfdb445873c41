"""What commands print, and where: text from outside, streams that are full or closed, widths and colours."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from rich.table import Table

from tests import ROOT
from tests.snapshots.small_snapshot import content_of, rewrite, small_snapshot
from torpor.cli import console as consoles
from torpor.cli.console import PlainConsole
from torpor.cli.layout import Layout
from torpor.cli.progress import Progress
from torpor.cli.snapshot import run_inspect
from torpor.cli.terminal import say, wrapped
from torpor.telemetry.records import StageRecord
from torpor.values.plain_text import one_line, plain

if TYPE_CHECKING:
    from pathlib import Path

CLI = ROOT / "core" / "torpor" / "cli"
HOSTILE = "[/INST] [bold]b[/bold] [link=http://x]l[/link] :smile: \x1b[31mred\x1b]0;title\x07 \x9b2J \r \u202e \udcff"
SHOWN = (
    "[/INST] [bold]b[/bold] [link=http://x]l[/link] :smile: \\x1b[31mred\\x1b]0;title\\x07 \\x9b2J \\r \\u202e \\udcff"
)
LONG = "a" * 300
SURROGATE = os.fsdecode(b"\xff\x1b[31m")
APP = (
    "from torpor import Deployment, Model, hookimpl\nfrom torpor.testing import StandIn\nprint('the app prints')\n"
    "class Loud(StandIn):\n"
    "    @hookimpl\n    def prepare_image(self, deployment):\n"
    "        print('a hook prints')\n"
    "        return super().prepare_image(deployment)\n"
    "deployment = Deployment(name='d', model=Model(path='/', served_name='m'), plugins=(Loud(),))\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An app that prints, and strange files."""
    path = tmp_path_factory.mktemp("terminal")
    (path / "app.py").write_text(APP)
    (path / "deep.json").write_text("[" * 200_000)
    (path / "wrong.json").write_text('{"deployment": 3, "engine": []}')
    (path / "binary.json").write_bytes(b"\xff\x00\x1b[31m")
    (path / "log.txt").write_text(f"2026-01-01 {HOSTILE}\n", errors="backslashreplace")
    return path


def ran(folder: Path, *words: str, redirect: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """A command as a shell runs it.

    Args:
        folder: where.
        words: the command line.
        redirect: of the shell, e.g. `>&-`.
        env: variables that it gets besides.
    """
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, "-m", "torpor.cli", *words],
        cwd=folder,
        env={**os.environ, "TORPOR_CACHE": str(folder / "cache"), **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=120,
        check=False,
    )


# ---------------------------------------------------------------------------------------------------- text from outside


@pytest.mark.fault("a text from outside holds markup and control characters", area="terminal", outcome="held")
def test_text_from_outside_is_shown_as_it_is() -> None:
    """In lines, cells, titles and the live line; its control characters are escaped."""
    stream = io.StringIO()
    console = PlainConsole(file=stream, width=500, markup=False)
    console.print(HOSTILE)
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    console.print(table)
    assert stream.getvalue().count(SHOWN) == 4
    assert not set(stream.getvalue()) & set("\x1b\x07\x9b\r\u202e\udcff")


@pytest.mark.fault("a hook tells progress that holds markup", area="terminal", outcome="held")
def test_markup_in_progress_does_not_break_a_start() -> None:
    """`[/INST]` in the live line would be an error of rich's."""
    screen = io.StringIO()
    shown = Progress(PlainConsole(file=screen, force_terminal=True, width=400, color_system=None), as_json=False)
    with shown.listening():
        shown.begin("[/stage]")
        from torpor.telemetry.progress import tell

        tell(HOSTILE)
        shown.end(
            StageRecord(stage="[/stage]", seconds=1.0, boot="cold", replica_id="b", restore_count=0, ended_at=0.0)
        )
    assert SHOWN in screen.getvalue()
    assert "\x1b]0;" not in screen.getvalue()
    assert "[/stage]" in screen.getvalue()


def test_lines_stay_lines_and_names_stay_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A message may have several lines; a path with a line end may not forge one."""
    assert plain("a\n\tb\x1b") == "a\n\tb\\x1b"
    assert one_line("a\n\tb") == "a\\n\\tb"
    say("done\x1b[2K")
    assert capsys.readouterr().err == "done\\x1b[2K\n"


@pytest.mark.fault(
    "a canary and the names of processes hold markup and control characters", area="terminal", outcome="held"
)
def test_a_snapshot_is_shown_whatever_its_texts_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`inspect` of a model that answers `[/INST]`, and of a process whose name has two lines."""
    bad = "[/INST][bold]\x1b[31m\u202e\nsize 0 MB"
    monkeypatch.setenv("COLUMNS", "200")
    folder = small_snapshot(tmp_path / "[b]kept", text=bad)
    rewrite(folder, {**content_of(folder), "processes": [f"1000 {bad}"]})
    with pytest.raises(SystemExit):  # it fits no machine
        run_inspect(folder, as_json=False)
    shown = capsys.readouterr().out
    assert shown.count("[/INST][bold]\\x1b[31m\\u202e\\nsize 0 MB") == 2
    assert not set(shown) & set("\x1b\u202e")
    assert f"snapshot {folder}" in shown


def test_commands_print_through_one_module() -> None:
    """Any other way to print would skip what these tests check."""
    allowed = {"terminal.py", "console.py"}
    found = [
        f"{file.name}: {line.strip()}"
        for file in CLI.glob("*.py")
        if file.name not in allowed
        for line in file.read_text().splitlines()
        if re.search(r"(?<![\w.])(print|Console)\(|typer\.echo\(", line)
    ]
    assert found == ['commands.py: typer.echo(f"torpor {__version__}")']


# ------------------------------------------------------------------------------------------------------ width and colour


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_a_paragraph_fits_the_width_and_its_words_stay_whole(columns: int) -> None:
    """A path that is longer than a line is not broken: it can be copied."""
    path = "/a/very/long/path/" * 10
    lines = wrapped(f"{'some words ' * 30}{path}", columns, first="  x  ", rest="     ")
    assert path in " ".join(lines)
    assert all(len(line) <= columns for line in lines if path not in line)
    assert lines[0].startswith("  x  some")
    assert re.match("     (some|words)", lines[1])


def test_a_command_line_goes_on_with_backslashes_and_can_be_copied(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flag stays with its value; the shell reads the same words."""
    import shlex

    monkeypatch.setenv("COLUMNS", "60")
    argv = ["python3", "-m", "engine", *(word for n in range(9) for word in (f"--flag-{n}", f"value {n}"))]
    Layout().command("  ", argv)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 60
    assert shlex.split(shown.replace("\\\n", " ")) == argv
    assert all(re.search(rf"--flag-{n} 'value {n}'", shown) for n in range(9))


def test_a_program_of_one_line_is_shown_as_a_block(capsys: pytest.CaptureFixture[str]) -> None:
    """One statement on each line, below the command that uses it."""
    Layout().command("  ", ["python3", "-c", "import sys; print(sys.argv); x = [1,\n2]", "last"])
    Layout().command("  ", ["python3.11", "-c", "import sys; print('it''s')", "last"])
    assert capsys.readouterr().out.splitlines() == [
        "  python3 -c PROGRAM last",
        "    PROGRAM:",
        "      import sys; print(sys.argv); x = [1,",
        "      2]",
        "  python3.11 -c PROGRAM last",
        "    PROGRAM:",
        "      import sys",
        "      print('its')",
    ]


@pytest.mark.parametrize(
    ("env", "coloured"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_colours_follow_the_terminal_and_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], env: dict[str, str], coloured: bool
) -> None:
    """A pipe gets none unless FORCE_COLOR is set; NO_COLOR wins over it."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    Layout().field("error    ", "text", consoles.LEVEL_STYLES["error"])
    assert ("\x1b[" in capsys.readouterr().out) == coloured


def on_a_terminal(folder: Path, *words: str, columns: int, **env: str) -> str:
    """What a command shows on a terminal of a width."""
    pid, descriptor = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ.update({"TERM": "xterm-256color", "TORPOR_CACHE": str(folder / "cache"), **env})
        os.environ.pop("COLUMNS", None)
        os.execv(sys.executable, [sys.executable, "-c", _AT_WIDTH, str(columns), *words])
    shown, deadline = b"", time.monotonic() + 60
    with contextlib.suppress(OSError):  # the terminal closes with the command
        while time.monotonic() < deadline and select.select([descriptor], [], [], 60)[0]:
            shown += os.read(descriptor, 65536)
    os.close(descriptor)
    os.waitpid(pid, 0)
    return shown.decode()


_AT_WIDTH = """
import fcntl, struct, sys, termios
fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 50, int(sys.argv[1]), 0, 0))
sys.argv = ["torpor", *sys.argv[2:]]
from torpor.cli import main
main()
"""


@pytest.mark.slow
def test_a_plan_fits_its_terminal_and_has_colours(folder: Path) -> None:
    """No line is wider than the terminal, except words that cannot be broken; NO_COLOR turns colours off."""
    flagship = str(ROOT / "apps" / "qwen3_sglang.py")
    shown = on_a_terminal(folder, "plan", flagship, columns=100)
    assert "\x1b[1m" in shown
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert len(lines) > 40
    assert [line for line in lines if len(line) > 100] == []
    assert "\x1b" not in on_a_terminal(folder, "plan", flagship, columns=100, NO_COLOR="1")


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 120])
def test_errors_and_notes_fit_their_terminal(folder: Path, columns: int) -> None:
    """Words stay whole and further lines are indented; outside a terminal an error is one line."""
    for words in (("key", "new"), ("snapshot", "inspect", "missing"), ("boots", "--file", "missing"), ("new", "1[/b]")):
        shown = on_a_terminal(folder, *words, columns=columns)
        plain_lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
        assert len(plain_lines) > 1
        assert [line for line in plain_lines if len(line) > columns and " " in line.strip()] == []
        assert "Traceback" not in shown
    piped = ran(folder, "snapshot", "inspect", "missing").stderr
    assert piped.count("\n") == 1
    assert len(piped) > 120


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("snapshot",), ("up",)])
def test_help_is_whole_at_every_width(folder: Path, words: tuple[str, ...]) -> None:
    """Nothing ends in dots; no prose is wider than the terminal."""
    shown = {columns: ran(folder, *words, "--help", COLUMNS=str(columns)).stdout for columns in (80, 120)}
    for columns, text in shown.items():
        assert "..." not in text.replace("[ARGS]...", "")
        assert max(map(len, text.splitlines())) <= columns
    assert shown[80].split() == shown[120].split()


# ---------------------------------------------------------------------------------------------------- streams and inputs

RESULTS = (
    ("plan", "app.py"),
    ("plan", "app.py", "--json"),
    ("plan", "app.py", "--diff", "app.py"),
    ("plugins",),
    ("plugins", "--json"),
    ("key", "new"),
    ("boots", "--file", "log.txt"),
    ("boots", "--file", "log.txt", "--json"),
    ("status", "--json"),
    ("snapshot", "weights", "--json"),
    ("--help",),
    ("snapshot", "restore", "--help"),
    ("--version",),
)
"""Commands whose result goes to standard output."""


@pytest.fixture(scope="module")
def lost(folder: Path) -> dict[tuple[str, ...], list[subprocess.CompletedProcess[str]]]:
    """Each of them with a standard output that is full, and one that is closed."""

    def run(words: tuple[str, ...]) -> list[subprocess.CompletedProcess[str]]:
        return [ran(folder, *words, redirect=redirect) for redirect in (">/dev/full", ">&-")]

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(RESULTS, pool.map(run, RESULTS), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("words", RESULTS, ids=" ".join)
@pytest.mark.fault("standard output is full or closed", area="terminal", outcome="refused")
def test_a_result_that_cannot_be_written_is_one_paragraph(
    lost: dict[tuple[str, ...], list[subprocess.CompletedProcess[str]]], words: tuple[str, ...]
) -> None:
    """And exit code 1: whoever wants the result knows that there is none."""
    for done, reason in zip(lost[words], ("No space left on device", "Bad file descriptor"), strict=True):
        assert done.returncode == 1
        said = [line for line in done.stderr.splitlines() if not line.endswith(" prints")]
        assert [line for line in said if line.startswith("torpor: ")] == [
            f"torpor: Cannot write to standard output: {reason}. The result is lost; name a file or a pipe that takes it."
        ]
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr


@pytest.mark.slow
@pytest.mark.fault("whoever reads standard output leaves early", area="terminal", outcome="held")
def test_a_reader_that_leaves_is_not_an_error(folder: Path) -> None:
    """`| head -1` shows one line and nothing else."""
    done = ran(folder, "plan", str(ROOT / "apps" / "qwen3_vllm.py"), redirect="| head -1")
    assert (done.stdout.count("\n"), done.stderr) == (1, "")
    done = ran(folder, "plan", str(ROOT / "apps" / "qwen3_vllm.py"), redirect="| true")
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.fault("standard error is full or closed, or standard input is", area="terminal", outcome="held")
def test_a_result_is_whole_whatever_the_other_streams_are(folder: Path) -> None:
    """What an app and its hooks print goes to standard error, or is dropped if that is closed."""
    for redirect in ("2>/dev/full", "2>&-", "<&-", "2>&- <&-"):
        done = ran(folder, "plan", "app.py", "--json", redirect=redirect)
        assert done.returncode == 0
        assert json.loads(done.stdout)["deployment"] == "d"
    done = ran(folder, "plan", "app.py", "--json")
    assert "the app prints" in done.stderr
    assert "a hook prints" in done.stderr
    assert json.loads(done.stdout)["deployment"] == "d"


WRONG = (
    ("plan", "{}"),
    ("plan", "app.py", "--diff", "{}"),
    ("doctor", "{}"),
    ("up", "{}"),
    ("up", "app.py", "--records", "log.txt/{}"),
    ("up", "app.py", "--backend", "{}"),
    ("bench", "{}"),
    ("bench", "app.py", "--json", "{}/x"),
    ("report", "{}"),
    ("report", "wrong.json", "-o", "{}/x"),
    ("boots", "--file", "{}"),
    ("probe", "{}"),
    ("prewarm", "{}.py"),
    ("new", "{}"),
    ("snapshot", "create", "{}", "x"),
    ("snapshot", "inspect", "{}"),
    ("snapshot", "restore", "{}"),
    ("snapshot", "rm", "{}"),
    ("snapshot", "compare", "{}"),
)
NAMES = (LONG, SURROGATE)
PORTS = (("up", "app.py", "--port"), ("bench", "app.py", "--port"), ("snapshot", "restore", "x", "--port"))
NUMBERS = (
    *((*command, value) for value in ("-1", "70000") for command in PORTS),
    ("probe", "http://127.0.0.1:-1"),
    ("probe", "http://127.0.0.1:70000"),
    ("prewarm", "http://127.0.0.1:70000"),
)
FILES = tuple(
    (*command, f"{name}.json")
    for name in ("deep", "wrong", "binary")
    for command in (("report",), ("plan", "app.py", "--diff"))
)


@pytest.fixture(scope="module")
def refused(folder: Path) -> dict[tuple[str, ...], subprocess.CompletedProcess[str]]:
    """Every command with every strange input."""
    lines = [tuple(word.format(name) for word in words) for words in WRONG for name in NAMES] + [*NUMBERS, *FILES]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(lines, pool.map(lambda words: ran(folder, *words), lines), strict=True))


@pytest.mark.slow
@pytest.mark.fault("a command gets a name of 300 bytes, or one that is no text", area="terminal", outcome="refused")
@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_a_strange_name_is_one_paragraph(
    refused: dict[tuple[str, ...], subprocess.CompletedProcess[str]], words: tuple[str, ...]
) -> None:
    """Exit code 1 or 2, no traceback, no control characters."""
    for name in NAMES:
        is_told_in_one_paragraph(refused[tuple(word.format(name) for word in words)])


@pytest.mark.slow
@pytest.mark.fault(
    "a command gets a port that cannot be, or JSON that is none of ours", area="terminal", outcome="refused"
)
@pytest.mark.parametrize("words", [*NUMBERS, *FILES], ids=" ".join)
def test_a_strange_number_or_file_is_one_paragraph(
    refused: dict[tuple[str, ...], subprocess.CompletedProcess[str]], words: tuple[str, ...]
) -> None:
    """Ports below 1 and above 65535; JSON that is deep, of another kind, or no text."""
    is_told_in_one_paragraph(refused[words])


def is_told_in_one_paragraph(done: subprocess.CompletedProcess[str]) -> None:
    """Check what every refusal has in common."""
    said = "\n".join(line for line in done.stderr.splitlines() if not line.endswith(" prints"))
    assert done.returncode in (1, 2), done
    assert done.stdout == ""
    assert "Traceback" not in said
    assert "\x1b" not in said
    assert said.startswith(("torpor: ", "Usage: "))
    assert "\n\n" not in said.strip() or said.startswith("Usage: ")
