"""An engine ends with the framework's process, however that ends, and with nothing less."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from tests.conftest import is_running, living_members, wait_until_gone
from torpor import ConfigurationError, Engine, lifeline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import MakeBoot
    from torpor.testing.pytest_plugin import StandInDeployment

STRAYS = textwrap.dedent("""
    import os, signal, sys, time
    def stray(*, setsid, argv):
        if os.fork() == 0:
            if setsid:
                os.setsid()
            os.execve(argv[0], argv, {"PATH": os.defpath})
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    nap = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]
    stray(setsid=False, argv=nap)                 # its environment is gone, its session is not
    stray(setsid=True, argv=nap)                  # both are gone, its parent is not
    if os.fork() == 0:                            # session and parent are gone, its environment is not
        os.setsid()
        if os.fork() == 0:
            time.sleep(60)
        os._exit(0)
    os.wait()
    print("up", flush=True)
    time.sleep(60)
""")
"""An engine whose processes can each be known in one way alone, and which doesn't end by itself."""

FRAMEWORK = textwrap.dedent("""
    import os, sys, time
    from torpor import Engine
    engine = Engine.start((sys.executable, "-c", sys.argv[1]))
    while not engine.log_tail():
        time.sleep(0.01)
    if "fork" in sys.argv[2:]:                    # a worker of the framework's, alive for longer than the framework
        if os.fork() == 0:
            time.sleep(60)
    print(engine.pid, flush=True)
    time.sleep(60)
""")


def watchers(boot_id: str = "") -> list[psutil.Process]:
    """The watchers of one boot, or all that this process has."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            argv = process.cmdline()
            mine = f"TORPOR_BOOT_ID={boot_id}" in argv if boot_id else process.ppid() == os.getpid()
            if lifeline.__file__ in argv and mine:
                found.append(process)
    return found


def processes_of(boot_id: str, leader: int) -> list[psutil.Process]:
    """Every process of an engine: by session, by parent, by environment."""
    found = {process.pid: process for process in psutil.Process(leader).children(recursive=True)}
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get("TORPOR_BOOT_ID") == boot_id:
                found[process.pid] = process
    found[leader] = psutil.Process(leader)
    return list(found.values())


def living(processes: list[psutil.Process], timeout_s: float = 5.0) -> list[psutil.Process]:
    """Which of them still run at the deadline."""
    deadline = time.monotonic() + timeout_s
    left = processes
    while left and time.monotonic() < deadline:
        left = [one for one in left if is_running(one)]
        time.sleep(0.01)
    return left


@contextmanager
def framework(*words: str) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process], str]]:
    """A framework's process with an engine: itself, the engine's processes and its boot id."""
    with subprocess.Popen(
        [sys.executable, "-c", FRAMEWORK, STRAYS, *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as process:
        assert process.stdout is not None
        leader = int(process.stdout.readline())
        boot_id = psutil.Process(leader).environ()["TORPOR_BOOT_ID"]
        members = processes_of(boot_id, leader)
        helpers = psutil.Process(process.pid).children(recursive=True)
        try:
            yield process, members, boot_id
        finally:
            process.kill()
            for one in {*members, *helpers}:
                with suppress(psutil.NoSuchProcess):
                    one.kill()


@pytest.mark.parametrize("words", [(), ("fork",)], ids=["alone", "with a fork that lives on"])
def test_sigkill_of_the_framework_ends_the_whole_engine(words: tuple[str, ...]) -> None:
    """Processes that left the session, lost their parent or their environment included; and then the watcher goes."""
    with framework(*words) as (process, members, boot_id):
        assert len(members) == 4
        (watcher,) = watchers(boot_id)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            watcher.send_signal(number)  # what a shutdown sends to everybody doesn't end it first
        process.kill()
        assert living(members) == []
        assert living([watcher]) == []


def test_an_engine_outlives_the_thread_that_started_it(
    standin_deployment: StandInDeployment, make_boot: MakeBoot
) -> None:
    """A parent-death signal would end it here: it follows the thread, not the process."""
    boot = make_boot(standin_deployment())

    def start() -> None:
        boot.cold_start()
        boot.serve()

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    time.sleep(0.3)
    assert boot.running_engine.poll() is None
    assert len(living_members(boot.running_engine.pid)) == 3
    url = f"http://127.0.0.1:{boot.deployment.port}/v1/models"
    assert httpx.get(url, trust_env=False).status_code == 200
    boot.stop()
    assert wait_until_gone(boot.running_engine.pid) == []


def test_the_watcher_goes_with_the_engine_and_leaves_no_descriptor() -> None:
    """However the engine ends: by itself, or ended."""
    Engine.start((sys.executable, "-c", "pass")).terminate(0.0)
    assert living(watchers()) == []
    before = psutil.Process().num_fds()
    for code in ("pass", "import time; time.sleep(60)"):
        engine = Engine.start((sys.executable, "-c", code))
        if code != "pass":
            assert len(watchers(engine.boot_id)) == 1
            engine.terminate(0.0)
        assert engine.wait(5) is not None
        assert living(watchers(engine.boot_id)) == []
    deadline = time.monotonic() + 2
    while psutil.Process().num_fds() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert psutil.Process().num_fds() <= before


def test_a_start_that_fails_leaves_no_watcher() -> None:
    """There is nothing to watch."""
    with pytest.raises(ConfigurationError, match="cannot be started"):
        Engine.start(("/no/such/engine",))
    assert living(watchers()) == []


def test_an_engine_whose_watcher_was_killed_runs_on_and_ends_in_order() -> None:
    """One protection less, and nothing worse."""
    engine = Engine.start((sys.executable, "-c", "import time; time.sleep(60)"))
    (watcher,) = watchers(engine.boot_id)
    watcher.kill()
    assert living([watcher]) == []
    assert engine.wait(0.1) is None
    engine.terminate(0.0)
    assert wait_until_gone(engine.pid) == []


def test_the_watcher_holds_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in every snapshot that holds the framework's process, so no secret may be in it; nor a folder in use."""
    monkeypatch.setenv("HF_TOKEN", "hf_not_for_a_snapshot")
    engine = Engine.start((sys.executable, "-c", "import time; time.sleep(60)"))
    try:
        (watcher,) = watchers(engine.boot_id)
        assert set(watcher.environ()) <= {"PATH", "LD_LIBRARY_PATH", "LC_CTYPE"}
        assert Path(watcher.cwd()) == Path("/")
    finally:
        engine.terminate(0.0)
