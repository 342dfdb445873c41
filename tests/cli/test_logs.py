"""`torpor logs`: of what runs, or of what ended last; it follows, across restarts."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.command_line import torpor
from torpor.cli.logs import run_logs
from torpor.engine.logs import LogFile, new_log
from torpor.errors import ConfigurationError, TorporError
from torpor.snapshots.store.paths import CACHE_VARIABLE, logs_folder
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache root of the test's own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    return tmp_path


def log_of(replica: str, *lines: str, deployment: str = "tiny") -> LogFile:
    """A log that is being written."""
    log = new_log("", (logs_folder(deployment), replica))
    assert isinstance(log, LogFile)
    log.write("".join(f"{line}\n" for line in lines).encode())
    return log


def test_the_lines_of_the_replica_that_runs_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Not those of earlier replicas; the path is printed on standard error."""
    log_of("tiny", "long ago").close()
    running = log_of("tiny", "one", "two", "three")
    run_logs("tiny", follow=False, lines=2)
    shown = capsys.readouterr()
    assert shown.out == "two\nthree\n"
    assert f"running: {running.path}" in shown.err
    running.close()


def test_the_log_of_the_last_replica_is_shown_if_none_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """This is what somebody needs after a crash."""
    ended = log_of("tiny", "last words")
    ended.close()
    run_logs("", follow=False, lines=100)
    shown = capsys.readouterr()
    assert (shown.out, f"ended: {ended.path}" in shown.err) == ("last words\n", True)


def test_lines_of_several_replicas_carry_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    """One replica can be asked for by its name."""
    logs = [log_of("tiny-1", "one"), log_of("tiny-2", "two"), log_of("other", "three", deployment="other")]
    run_logs("tiny", follow=False, lines=100)
    assert sorted(capsys.readouterr().out.splitlines()) == ["tiny-1 | one", "tiny-2 | two"]
    run_logs("tiny-2", follow=False, lines=100)
    assert capsys.readouterr().out == "two\n"
    for log in logs:
        log.close()


def test_control_characters_of_an_engine_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """They are shown escaped."""
    log_of("tiny", "\x1b]0;title\x07 [red]red[/red]").close()
    run_logs("tiny", follow=False, lines=100)
    assert capsys.readouterr().out == "\\x1b]0;title\\x07 [red]red[/red]\n"


def test_a_name_without_a_log_is_refused_with_the_known_names() -> None:
    """No log at all is another error."""
    with pytest.raises(TorporError, match="There is no log yet in"):
        run_logs("", follow=False, lines=100)
    log_of("tiny-1", "one").close()
    with pytest.raises(ConfigurationError, match=r"no log of 'huge' .* there are logs of tiny, tiny-1"):
        run_logs("huge", follow=False, lines=100)
    with pytest.raises(ConfigurationError, match="-n is -1; allowed are 0 to 1000000 lines"):
        run_logs("tiny", follow=False, lines=-1)


@pytest.mark.slow
def test_following_continues_across_rotations_and_restarts() -> None:
    """Until a signal."""
    first = log_of("tiny-1", "before")
    with subprocess.Popen(
        [sys.executable, "-m", "torpor.cli", "logs", "tiny", "-f", "-n", "1"], stdout=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None
        try:
            assert command.stdout.readline() == "before\n"
            first.write(b"during\n")
            assert command.stdout.readline() == "during\n"
            first.close()
            second = log_of("tiny-2", "after the restart")
            assert command.stdout.readline() == "tiny-2 | after the restart\n"
            second.close()
        finally:
            command.terminate()
            command.communicate(timeout=20)


@pytest.mark.slow
def test_an_app_file_names_its_deployment(tmp_path: Path) -> None:
    """An engine that `up` started has a log of its output."""
    app = tmp_path / "app.py"
    app.write_text(
        "from torpor import Deployment, Model\nfrom torpor.testing import Fault, StandIn\n"
        f"deployment = Deployment(name='small', model=Model(path='/m'), port={unused_port()}, "
        "plugins=(StandIn(fault=Fault.EXIT_AT_START),))\n"
    )
    failed = torpor("up", str(app), "--backend", "none", env={CACHE_VARIABLE: str(tmp_path)})
    (log,) = logs_folder("small").iterdir()
    assert f"(the whole log: {log})" in failed.stderr
    shown = torpor("logs", str(app), env={CACHE_VARIABLE: str(tmp_path)})
    assert "standin: fault exit_at_start: exiting with code 21" in shown.stdout
    assert torpor("logs", "huge", env={CACHE_VARIABLE: str(tmp_path)}).returncode == 2
