"""`torpor up` without CRIU, as a user sees it: an engine that is killed, one that ends too often, a signal in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.snapshots.conftest import wait_for
from tests.snapshots.kept import chat, engines_on, write_app
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow


class Up:
    """A `torpor up --backend none --json` that runs."""

    def __init__(self, folder: Path, *, options: str) -> None:
        self.port = unused_port()
        app = write_app(folder / "app", port=self.port)
        app.write_text(
            f"{app.read_text()}\nfrom dataclasses import replace\ndeployment = replace(deployment, {options})\n"
        )
        self._said = (folder / "said").open("w+")
        argv = [sys.executable, "-m", "torpor.cli", "up", str(app), "--backend", "none", "--json"]
        env = {**os.environ, "TORPOR_CACHE": str(folder / "cache"), "TORPOR_METRICS_FILE": str(folder / "metrics")}
        self.process = subprocess.Popen(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._said
        )

    @property
    def said(self) -> str:
        """Standard error so far."""
        return os.pread(self._said.fileno(), 1 << 20, 0).decode()

    def events(self) -> list[dict[str, object]]:
        """What was told of the engine, from the lines of JSON."""
        lines = [json.loads(line) for line in self.said.splitlines() if line.startswith("{")]
        return [line for line in lines if "event" in line]

    def serves(self) -> bool:
        """Wait until it answers."""

        def answers() -> bool:
            try:
                return bool(chat(self.port))
            except (OSError, AssertionError):
                return False

        return wait_for(answers, 30.0)

    def has_ended(self) -> bool:
        """Wait until nothing of its engine is left."""
        return wait_for(lambda: engines_on(self.port) == [])

    def kill_engine(self) -> None:
        """SIGKILL of the engine's server process."""
        found = engines_on(self.port)
        parents = {pid: int(_stat(pid)[1]) for pid in found}
        (leader,) = [pid for pid in found if parents[pid] not in found]
        os.kill(leader, signal.SIGKILL)

    def end(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.wait()
        self._said.close()


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


@pytest.fixture
def ups(tmp_path: Path) -> Iterator[list[Up]]:
    """Commands that are ended after the test, with their engines."""
    made: list[Up] = []
    yield made
    for command in made:
        command.end()
        assert command.has_ended()


@pytest.mark.fault("an engine under torpor up is killed until it is given up", area="engine", outcome="restarted")
def test_an_engine_that_is_killed_is_started_again_until_the_limit(tmp_path: Path, ups: list[Up]) -> None:
    """JSON lines and the metrics file show it. At the limit the command ends with exit code 1 and the last lines."""
    command = Up(tmp_path, options="max_restarts=1")
    ups.append(command)
    assert command.serves(), command.said
    command.kill_engine()
    assert wait_for(lambda: len(command.events()) == 2, 20.0), command.said
    ended, again = command.events()
    assert (ended["event"], ended["exit_code"]) == ("replica_ended", -9)
    assert again == again | {"event": "replica_restarted", "boot": "cold", "reason": "engine ended", "restart": 1}
    assert command.serves()
    assert (
        'torpor_restarts_total{deployment="kept",replica="kept",reason="engine ended"} 1'
        in (tmp_path / "metrics").read_text()
    )
    command.kill_engine()
    assert command.process.wait(30) == 1
    assert command.events()[-1]["event"] == "replica_given_up"
    assert "EngineExitedError" in command.said
    assert "standin: pid" in command.said.partition("EngineExitedError")[2]


@pytest.mark.fault("torpor up is told to end in the middle of a restart", area="engine", outcome="held")
def test_a_signal_at_any_moment_of_a_restart_ends_everything(tmp_path: Path, ups: list[Up]) -> None:
    """Six moments of a restart; no engine is started after the signal."""
    for step in range(6):
        command = Up(tmp_path, options="max_restarts=5")
        ups.append(command)
        assert command.serves(), command.said
        command.kill_engine()
        time.sleep(step * 0.1)
        command.process.send_signal(signal.SIGTERM)
        command.process.wait(30)
        assert engines_on(command.port) == [], step
