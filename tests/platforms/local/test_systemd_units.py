"""`examples/systemd`: systemd reads the units without a warning, and servers run under them as described."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import ROOT
from tests.command_line import torpor
from tests.snapshots.conftest import wait_for
from tests.snapshots.kept import Background, chat, engines_on, write_app
from torpor import Deployment, Model
from torpor.cli.exit_codes import INTERRUPTED
from torpor.engine.process import _KILL_S
from torpor.errors import ConfigurationError, PortInUseError
from torpor.guard.protocol import LETS_GO_S
from torpor.platforms.local.service_manager import SOCKET_VARIABLE
from torpor.snapshots.store.paths import CACHE_VARIABLE
from torpor.testing import StandIn
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator

UNITS = ROOT / "examples" / "systemd"
SYSTEM, USER = UNITS / "torpor@.service", UNITS / "user" / "torpor@.service"
BOTH = pytest.mark.parametrize("file", [SYSTEM, USER], ids=["system", "user"])
ANALYZE = shutil.which("systemd-analyze") or ""


def service(file: Path) -> configparser.SectionProxy:
    """The service section of a unit."""
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(file)
    return unit["Service"]


def verified(text: str, folder: Path, *, user: bool) -> str:
    """The warnings of systemd about a unit."""
    file = folder / "torpor@.service"
    file.write_text(text)
    words = [ANALYZE, *(["--user"] if user else []), "verify", "--man=no", "--recursive-errors=no", str(file)]
    env = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "HOME": str(folder)}
    ran = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=False)
    return ran.stderr


@pytest.mark.skipif(not ANALYZE, reason="there is no systemd-analyze here")
@BOTH
def test_systemd_reads_a_unit_without_a_warning(file: Path, tmp_path: Path) -> None:
    """It only misses the program, which is not installed there. It would report a misspelt line."""
    program = shlex.split(service(file)["ExecStart"])[0]
    text = file.read_text().replace(program, "/bin/true")
    assert verified(text, tmp_path, user=file == USER) == ""
    assert "Unknown key" in verified(text.replace("KillMode", "KillMod"), tmp_path, user=file == USER)


@BOTH
def test_a_unit_gives_a_server_the_time_and_the_signals_that_it_needs(file: Path) -> None:
    """SIGTERM goes to the command alone. SIGKILL comes after the longest time that a server needs to end."""
    unit = service(file)
    deployment = Deployment(name="d", model=Model(path="/m", served_name="m"), plugins=(StandIn(),))
    longest_s = deployment.drain_timeout_s + LETS_GO_S + deployment.stop_timeout_s + _KILL_S
    assert float(unit["TimeoutStopSec"]) >= longest_s
    assert (unit["Type"], unit["NotifyAccess"], unit["KillMode"]) == ("notify", "main", "mixed")
    assert unit["TimeoutStartSec"] == "infinity"


@BOTH
def test_a_unit_restarts_only_what_a_restart_may_cure(file: Path) -> None:
    """Errors that the caller must correct are not restarted. A requested end is not a failure."""
    unit = service(file)
    assert unit["Restart"] == "on-failure"
    assert {int(unit["RestartPreventExitStatus"])} == {ConfigurationError.exit_code, PortInUseError.exit_code}
    assert int(unit["SuccessExitStatus"]) == INTERRUPTED


@BOTH
def test_the_command_of_a_unit_is_valid(file: Path) -> None:
    """It is valid with its options: it only fails because of the missing app file, which it names."""
    program, *words = shlex.split(service(file)["ExecStart"])
    assert Path(program).name == "torpor"
    ran = torpor(*(word.replace("%i", "nowhere").replace("%h", "/nowhere") for word in words))
    assert ran.returncode == ConfigurationError.exit_code
    assert "nowhere.py" in ran.stderr


class Manager:
    """Runs a service of one of the units as systemd does.

    Args:
        words: the command to start instead of the unit's.
        folder: holds the socket, the cache and the service's output.
    """

    def __init__(self, words: list[str], folder: Path) -> None:
        self.unit = service(SYSTEM)
        self._words, self._folder = words, folder
        self.told: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        self._main: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the service in its own process group, and wait until it is ready or has ended."""
        env = {
            **os.environ,
            SOCKET_VARIABLE: str(self._folder / "notify"),
            CACHE_VARIABLE: str(self._folder / "cache"),
        }
        with (self._folder / "said").open("ab") as said:
            self._main = subprocess.Popen(self._words, env=env, stdout=said, stderr=said, start_new_session=True)
        self.told.clear()
        wait_for(lambda: self.hears("READY=1") or self.main.poll() is not None, 60.0)

    @property
    def main(self) -> subprocess.Popen[bytes]:
        """The service's main process."""
        assert self._main is not None
        return self._main

    @property
    def said(self) -> str:
        """Everything that it printed."""
        return (self._folder / "said").read_text()

    def hears(self, line: str) -> bool:
        """Whether the service has sent this line."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.told += self._socket.recv(4096, socket.MSG_DONTWAIT).decode().splitlines()
        return line in self.told

    def stop(self) -> int:
        """KillMode=mixed: SIGTERM to the main process; after it, or after TimeoutStopSec, SIGKILL to the rest. Its exit code."""
        self.main.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.main.wait(float(self.unit["TimeoutStopSec"]))
        return self.end()

    def end(self) -> int:
        """Kill what is left of the service."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.main.pid, signal.SIGKILL)
        return self.main.wait(30)

    def restarts_after(self, code: int) -> bool:
        """Restart=on-failure, for the exit code of the main process."""
        good = {0, *map(int, self.unit["SuccessExitStatus"].split())}
        return code not in good | set(map(int, self.unit["RestartPreventExitStatus"].split()))

    def close(self) -> None:
        """End the service and close everything."""
        self.end()
        self._socket.close()


@pytest.fixture
def managed(tmp_path: Path) -> Iterator[tuple[Manager, int]]:
    """A service of the stand-in that takes 2 s for 40 tokens, and its port. It is ended after the test."""
    port = unused_port()
    app = write_app(tmp_path / "app", port=port, token_s=0.05)
    app.write_text(app.read_text().replace("drain_timeout_s=0.3", "drain_timeout_s=20"))
    manager = Manager([sys.executable, "-m", "torpor.cli", "up", str(app)], tmp_path)
    yield manager, port
    manager.close()
    assert wait_for(lambda: engines_on(port) == [])


@pytest.mark.slow
@pytest.mark.fault("a service manager stops a server that is answering", area="service manager", outcome="held")
@pytest.mark.fault("a service manager finds its main process killed", area="service manager", outcome="restarted")
def test_a_service_starts_is_killed_starts_again_and_ends_with_its_last_answer_whole(
    managed: tuple[Manager, int], tmp_path: Path
) -> None:
    """It is ready when it serves. A killed command's engine does not block the next one. `torpor status` shows the live one."""
    manager, port = managed
    manager.start()
    assert manager.told[0] == "READY=1", manager.said
    assert chat(port, tokens=2)
    manager.main.kill()
    code = manager.end()
    assert manager.restarts_after(code)
    manager.start()
    assert manager.told[0] == "READY=1", manager.said
    env = {CACHE_VARIABLE: str(tmp_path / "cache")}
    (server,) = json.loads(torpor("status", "kept", "--json", env=env).stdout)["servers"]
    assert (server["pid"], server["health"]) == (manager.main.pid, "serving")
    engine = server["replicas"][0]["pid"]
    assert SOCKET_VARIABLE.encode() not in Path(f"/proc/{engine}/environ").read_bytes()
    answer = Background(lambda: chat(port, tokens=40))
    time.sleep(0.5)
    code = manager.stop()
    assert manager.hears("STOPPING=1")
    assert len(str(answer.join()).split()) == 40
    assert (code, manager.restarts_after(code)) == (0, False)
    assert json.loads(torpor("status", "--json", env=env).stdout) == {"servers": [], "unreadable": []}


@pytest.mark.slow
@pytest.mark.fault("a service manager stops a server that is starting", area="service manager", outcome="held")
def test_a_service_that_is_stopped_while_it_starts_has_not_failed(managed: tuple[Manager, int]) -> None:
    """A service that the caller must correct is not started again."""
    manager, port = managed
    with contextlib.ExitStack() as stack:
        starting = Background(manager.start)
        stack.callback(starting.join)
        assert wait_for(lambda: manager._main is not None and bool(engines_on(port)), 30.0)
        code = manager.stop()
    assert (code, manager.restarts_after(code)) == (INTERRUPTED, False), manager.said
    with socket.create_server(("127.0.0.1", port)):
        manager.start()
        code = manager.main.wait(30)
    assert (code, manager.restarts_after(code)) == (PortInUseError.exit_code, False), manager.said
