"""Whatever is killed with SIGKILL while `torpor serve` works: engines end, nothing is left, the next start is clean."""

from __future__ import annotations

import contextlib
import os
import shlex
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal

import psutil
import pytest

from tests.platforms.local.serve.served import (
    Answered,
    Command,
    ask,
    control,
    engines_of,
    serving_command,
    wait_until,
    write_app,
)
from tests.snapshots.test_faults_capture import WRAPPER
from torpor.platforms.local.running import servers
from torpor.snapshots.criu.program import PREFIX_VARIABLE

if TYPE_CHECKING:
    from pathlib import Path

    from torpor.snapshots.criu.program import Criu

pytestmark = [pytest.mark.slow, pytest.mark.criu]

CONFIG = "[deployment.a]\nidle_s = 60\ncapture_after_s = 0.05\n"
Victim = Literal["gateway", "engine", "worker", "criu"]


class Held:
    """A CRIU that can be stopped in the middle of its next work."""

    def __init__(self, folder: Path, criu: Criu, cache: Path) -> None:
        self._moment, self._held = folder / "moment", folder / "held"
        self._moment.write_text("free -\n")
        program = folder / "prefix" / "sbin" / "criu"
        program.parent.mkdir(parents=True)
        names = {"moment": self._moment, "run": cache / "run"}
        quoted = {name: shlex.quote(str(path)) for name, path in names.items()}
        program.write_text(WRAPPER.format(criu=shlex.join(criu.argv), **quoted))
        program.chmod(0o755)
        self.prefix = folder / "prefix"

    def next(self) -> None:
        """Stop it in the middle of what it does next."""
        self._moment.write_text(f"halted {self._held}\n")

    def wait(self) -> None:
        """Until it is stopped. What it does after that it does to its end."""
        assert wait_until(self._held.exists)
        self._moment.write_text("free -\n")


@pytest.fixture
def held(criu: Criu, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Held:
    """This machine's CRIU, for `torpor serve` of this test."""
    held = Held(tmp_path, criu, cache)
    monkeypatch.setenv(PREFIX_VARIABLE, str(held.prefix))
    return held


def is_criu(process: psutil.Process) -> bool:
    """Whether a process is CRIU; one that ends meanwhile is not."""
    with contextlib.suppress(psutil.Error):
        return any("criu" in word for word in process.cmdline()[:3])
    return False


def kill(victim: Victim, command: Command, folder: Path) -> None:
    """Kill it with SIGKILL."""
    if victim == "gateway":
        command.process.kill()
        command.process.wait(30.0)
        return
    engines = [psutil.Process(pid) for pid in engines_of(folder)]
    roots = [one for one in engines if one.ppid() not in {other.pid for other in engines}]
    if victim == "engine":
        chosen = roots
    elif victim == "worker":
        chosen = sorted((one for one in engines if one not in roots), key=lambda one: one.pid)[:1]  # the engine core
    else:
        chosen = [one for one in psutil.Process(command.process.pid).children(recursive=True) if is_criu(one)]
    assert chosen
    for one in chosen:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ends with another one
            one.kill()


def state(command: Command) -> str:
    """Of the only deployment."""
    key = command.control_key
    told: list[dict[str, object]] = control(command.port, key, "GET", "status")[1]["deployments"]  # type: ignore[assignment]
    return str(told[0]["state"])


def processes_below(folder: Path) -> list[list[str]]:
    """Every process that was started for the test's cache, but this one: command lines."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            inside = process.environ().get("TORPOR_CACHE", "").startswith(str(folder))
            if inside and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.cmdline())
    return found


@pytest.mark.fault("the gateway, an engine, its worker or CRIU is killed at any moment", area="serve", outcome="held")
@pytest.mark.parametrize(
    ("moment", "victim"),
    [
        ("serving", "gateway"),
        pytest.param("serving", "engine", marks=pytest.mark.ordinary_user),
        ("serving", "worker"),
        ("capture", "gateway"),
        ("capture", "criu"),
        pytest.param("restore", "gateway", marks=pytest.mark.ordinary_user),
        ("restore", "criu"),
    ],
)
def test_a_kill_leaves_nothing_and_costs_at_most_the_request_it_hits(
    held: Held, tmp_path: Path, moment: str, victim: Victim
) -> None:
    """If the gateway lives, a request that waits meanwhile is answered, and so is the next one. The next server starts clean."""
    # In SGLang's dialect a worker that is killed leaves a server that hangs; SGLang has a watchdog for that.
    engine = "StandInVLLM" if victim == "worker" else "StandIn"
    files, config = [write_app(tmp_path, "a", engine=engine)], tmp_path / "serve.toml"
    config.write_text(CONFIG)
    with serving_command(tmp_path, files, "--config", str(config)) as command, ThreadPoolExecutor(1) as clients:
        if moment == "capture":
            held.next()
        assert ask(command.port, "model-a").start == "cold"
        waiting = None
        if moment == "capture":
            held.wait()
            waiting = clients.submit(quiet_ask, command.port)
        else:
            assert wait_until(lambda: state(command) == "asleep")  # it was captured
        if moment == "serving":
            assert ask(command.port, "model-a").start == "woken"
        if moment == "restore":
            fall(command)
            held.next()
            waiting = clients.submit(quiet_ask, command.port)
            held.wait()
        kill(victim, command, tmp_path)
        if victim == "gateway":
            assert wait_until(lambda: processes_below(tmp_path) == []), processes_below(tmp_path)
        else:
            answer = waiting.result(60.0) if waiting else None
            assert answer is None or answer.status == 200, (answer, command.log.read_text())
            assert wait_until(lambda: ask(command.port, "model-a").status == 200), command.log.read_text()
            command.process.terminate()
            assert command.process.wait(30.0) == 0, command.log.read_text()
            assert wait_until(lambda: processes_below(tmp_path) == []), processes_below(tmp_path)
    assert servers() == ()
    with serving_command(tmp_path, files, "--config", str(config)) as command:
        assert ask(command.port, "model-a").status == 200
        command.process.terminate()
        assert command.process.wait(30.0) == 0, command.log.read_text()
    assert wait_until(lambda: processes_below(tmp_path) == []), processes_below(tmp_path)


def fall(command: Command) -> None:
    """Have the sleeping deployment end."""
    key = command.control_key
    control(command.port, key, "POST", "deployments/a/sleep")
    assert wait_until(lambda: state(command) == "on disk")


def quiet_ask(port: int) -> Answered | None:
    """Ask; None if the gateway ends meanwhile."""
    with contextlib.suppress(OSError):
        return ask(port, "model-a")
    return None
