"""`torpor.engine.lifeline`: an engine ends when the framework's process ends, however that happens, and not earlier."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from tests.conftest import is_running, living_members, wait_until_gone
from torpor import ConfigurationError, start_engine
from torpor.engine import lifeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

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
    stray(setsid=False, argv=nap)                 # keeps its session, not its environment
    stray(setsid=True, argv=nap)                  # keeps only its parent
    if os.fork() == 0:                            # keeps only its environment
        os.setsid()
        if os.fork() == 0:
            time.sleep(60)
        os._exit(0)
    os.wait()
    print("up", flush=True)
    time.sleep(60)
""")
"""An engine that does not end by itself. Each of its processes can be found in only one way."""

SEEN_S = 0.5
"""Seconds after which the watchers have seen every process of a tree."""

HARMLESS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGPIPE,
)
"""Signals that a watcher ignores."""

FRAMEWORK = textwrap.dedent("""
    import os, sys, time
    from torpor import start_engine
    if "subreaper" in sys.argv[2:]:               # orphans below it become its children
        import ctypes
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)   # PR_SET_CHILD_SUBREAPER
    engine = start_engine((sys.executable, "-c", sys.argv[1]))
    while not engine.log_tail():
        time.sleep(0.01)
    if "fork" in sys.argv[2:]:                    # a worker that outlives the framework
        if os.fork() == 0:
            time.sleep(60)
    print(engine.pid, flush=True)
    time.sleep(60)
""")


def watchers(replica_id: str) -> list[psutil.Process]:
    """The watchers of one engine, zombies not counted."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            if {lifeline.__file__, f"TORPOR_REPLICA_ID={replica_id}"} <= set(process.cmdline()):
                found.append(process)
    return found


def started_here(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[psutil.Process]]:
    """Returns a function that finds the watchers of this test's engines, by a variable that watchers inherit."""
    value = f"/nowhere/{uuid.uuid4().hex}"
    monkeypatch.setenv("LD_LIBRARY_PATH", value)

    def find() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get("LD_LIBRARY_PATH") == value and lifeline.__file__ in process.cmdline():
                    found.append(process)
        return found

    return find


def pair_of(replica_id: str, timeout_s: float = 10.0) -> list[psutil.Process]:
    """Wait for both watchers of an engine; the older one comes first."""
    deadline = time.monotonic() + timeout_s
    while len(pair := [one for one in watchers(replica_id) if is_running(one)]) != 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(pair) == 2
    return sorted(pair, key=lambda one: one.create_time())


def processes_of(replica_id: str, leader: int) -> list[psutil.Process]:
    """Every process of an engine, found by session, parent or environment."""
    found = {process.pid: process for process in psutil.Process(leader).children(recursive=True)}
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get("TORPOR_REPLICA_ID") == replica_id:
                found[process.pid] = process
    found[leader] = psutil.Process(leader)
    return list(found.values())


def living(processes: list[psutil.Process], timeout_s: float = 5.0) -> list[psutil.Process]:
    """The processes that still run at the deadline."""
    deadline = time.monotonic() + timeout_s
    left = processes
    while left and time.monotonic() < deadline:
        left = [one for one in left if is_running(one)]
        time.sleep(0.01)
    return left


@contextmanager
def framework(*words: str) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process], str]]:
    """A framework's process with an engine: the process, the engine's processes and its replica id."""
    with subprocess.Popen(
        [sys.executable, "-c", FRAMEWORK, STRAYS, *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        leader = int(process.stdout.readline())
        replica_id = psutil.Process(leader).environ()["TORPOR_REPLICA_ID"]
        members = processes_of(replica_id, leader)
        helpers = psutil.Process(process.pid).children(recursive=True)
        try:
            yield process, members, replica_id
        finally:
            process.kill()
            for one in {*members, *helpers}:
                with suppress(psutil.NoSuchProcess):
                    one.kill()


@pytest.mark.fault("the framework's process is killed", area="engine's end", outcome="held")
@pytest.mark.parametrize("words", [(), ("fork",)], ids=["alone", "with a fork that lives on"])
def test_sigkill_of_the_framework_ends_the_whole_engine(words: tuple[str, ...]) -> None:
    """This includes processes that left the session, lost their parent or lost their environment. Then the watchers end."""
    with framework(*words) as (process, members, replica_id):
        assert len(members) == 4
        pair = watchers(replica_id)
        assert len(pair) == 2
        for watcher in pair:
            for number in HARMLESS:
                watcher.send_signal(number)  # a shutdown signals every process, but does not end the watchers first
        process.kill()
        assert living(members) == []
        assert living(pair) == []


def test_an_engine_outlives_the_thread_that_started_it(
    standin_deployment: StandInDeployment, make_boot: MakeBoot
) -> None:
    """A parent-death signal would end it here, because it comes when the thread ends."""
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


def test_the_watchers_end_with_the_engine_and_leave_no_descriptor() -> None:
    """The same holds whether the engine ends by itself or is ended."""
    first = start_engine((sys.executable, "-c", "pass"))
    first.terminate(0.0)
    assert living(watchers(first.replica_id)) == []
    before = psutil.Process().num_fds()
    for code in ("pass", "import time; time.sleep(60)"):
        engine = start_engine((sys.executable, "-c", code))
        if code != "pass":
            assert len(watchers(engine.replica_id)) == 2
            engine.terminate(0.0)
        assert engine.wait(30) is not None
        assert living(watchers(engine.replica_id)) == []
    deadline = time.monotonic() + 2
    while psutil.Process().num_fds() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert psutil.Process().num_fds() <= before


def test_a_start_that_fails_leaves_no_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a tree there is nothing to watch."""
    find = started_here(monkeypatch)
    with pytest.raises(ConfigurationError, match="cannot be started"):
        start_engine(("/no/such/engine",))
    assert living(find()) == []


def test_an_engine_whose_watchers_were_killed_runs_on_and_ends_in_order() -> None:
    """It loses its protection, but nothing else changes."""
    engine = start_engine((sys.executable, "-c", "import time; time.sleep(60)"))
    for _ in range(20):  # each one starts another when its partner ends
        if not (pair := watchers(engine.replica_id)):
            break
        for watcher in pair:
            with suppress(psutil.NoSuchProcess):
                watcher.suspend()
        for watcher in pair:
            with suppress(psutil.NoSuchProcess):
                watcher.kill()
        assert living(pair) == []
    assert watchers(engine.replica_id) == []
    assert engine.wait(0.1) is None
    engine.terminate(0.0)
    assert wait_until_gone(engine.pid) == []


def kill_each(processes: Iterable[psutil.Process], pause_s: float = 0.0) -> None:
    """Send SIGKILL to one after the other."""
    for one in processes:
        with suppress(psutil.NoSuchProcess):
            one.kill()
        time.sleep(pause_s)


def children_first(framework: psutil.Process) -> None:
    """Kill its children first, as Ray does with a worker."""
    kill_each([*framework.children(), framework])


def children_first_slowly(framework: psutil.Process) -> None:
    """Kill its children first, with pauses, in random order."""
    kill_each(random.sample(children := framework.children(), len(children)), pause_s=0.2)
    kill_each([framework])


def the_group(framework: psutil.Process) -> None:
    """Kill its process group, as a shell or a container runtime does."""
    os.killpg(framework.pid, signal.SIGKILL)


def everything_below(framework: psutil.Process) -> None:
    """Kill its tree from the leaves up, as some supervisors do."""
    kill_each([*framework.children(recursive=True)[::-1], framework])


def stopped_before(framework: psutil.Process) -> None:
    """Stop it before killing its children, as with the cgroup freezer."""
    framework.suspend()
    kill_each([*framework.children(), framework])


def by_signal(number: signal.Signals) -> Callable[[psutil.Process], None]:
    """Send a signal to the framework's process alone."""
    return lambda framework: framework.send_signal(number)


WAYS: dict[str, Callable[[psutil.Process], None]] = {
    "its direct children before it": children_first,
    "its direct children, one by one, before it": children_first_slowly,
    "its process group": the_group,
    "everything below it, from the leaves": everything_below,
    "it is stopped, then its children and it are killed": stopped_before,
    **{number.name: by_signal(number) for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGALRM)},
}
"""Ways in which a framework's process may end."""


@pytest.mark.fault(
    "a supervisor kills a process's children before the process itself", area="engine's end", outcome="held"
)
@pytest.mark.parametrize(
    "words",
    [(), pytest.param(("subreaper",), marks=pytest.mark.slow)],
    ids=["as usual", "orphans fall to the framework"],
)
@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=() if way == next(iter(WAYS)) else pytest.mark.slow) for way in WAYS]
)
def test_an_engine_ends_however_its_framework_is_ended(way: str, words: tuple[str, ...]) -> None:
    """The engine's processes and both watchers are gone within five seconds."""
    with framework(*words) as (process, members, replica_id):
        pair = pair_of(replica_id)
        time.sleep(SEEN_S)
        WAYS[way](psutil.Process(process.pid))
        process.wait(30.0)
        assert living(members) == []
        assert living(pair) == []


@pytest.mark.fault("one watcher is killed, again and again", area="engine's end", outcome="held")
@pytest.mark.parametrize("which", [0, 1], ids=["the older", "the newer"])
def test_a_watcher_that_was_killed_is_replaced(which: int) -> None:
    """Either one: the other starts a new partner, and the engine still ends with the framework."""
    with framework() as (process, members, replica_id):
        for _ in range(3):
            pair = pair_of(replica_id)
            pair[which].kill()
            assert living([pair[which]]) == []
        pair = pair_of(replica_id)
        process.kill()
        assert living(members) == []
        assert living(pair) == []


@pytest.mark.fault("a watcher is stopped when the framework is killed", area="engine's end", outcome="held")
@pytest.mark.parametrize("which", [pytest.param(0, marks=pytest.mark.slow), 1], ids=["the older", "the newer"])
def test_a_watcher_that_is_stopped_does_not_save_the_engine(which: int) -> None:
    """The other watcher ends the engine and the stopped watcher."""
    with framework() as (process, members, replica_id):
        pair = pair_of(replica_id)
        pair[which].suspend()
        process.kill()
        assert living(members) == []
        assert living(pair) == []


def test_the_watchers_hold_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot of the framework's process contains them, so they must hold no secret. They use no folder either."""
    monkeypatch.setenv("HF_TOKEN", "hf_not_for_a_snapshot")
    engine = start_engine((sys.executable, "-c", "import time; time.sleep(60)"))
    try:
        for watcher in pair_of(engine.replica_id):
            assert set(watcher.environ()) <= {"PATH", "LD_LIBRARY_PATH", "LC_CTYPE"}
            assert Path(watcher.cwd()) == Path("/")
    finally:
        engine.terminate(0.0)
