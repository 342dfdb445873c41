"""`torpor.platforms.local.private_replica`: an engine that only its owner reaches, watches and ends."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil
import pytest

from tests.platforms.local.serve.served import write_app
from tests.platforms.small import a_deployment
from tests.snapshots.conftest import MODES, wait_for
from torpor import EngineError, TorporError
from torpor.app_file import App, load_app
from torpor.lifecycle import Lifecycle
from torpor.platforms.local import PrivateReplica, create_snapshot
from torpor.runtime import answering
from torpor.runtime.answering import Patience
from torpor.testing import Fault
from torpor.testing.faults import CRASH_WORD

if TYPE_CHECKING:
    from torpor import Deployment
    from torpor.snapshots.criu.program import Criu


def an_app(deployment: Deployment | None = None) -> App:
    """An app as if it came from a file."""
    deployment = deployment or a_deployment()
    return App(file=Path(__file__), deployment=deployment, lifecycle=Lifecycle(deployment))


def answer_of(replica: PrivateReplica) -> bytes:
    """What it answers on its ready path."""
    with replica.socket() as stream:
        stream.settimeout(5)
        stream.connect(replica.address)
        stream.sendall(b"GET /ready HTTP/1.0\r\n\r\n")
        return stream.recv(64)


def test_a_cold_replica_has_a_port_of_its_own() -> None:
    """Two of one deployment serve side by side; each ends with its owner's word."""
    app = an_app()
    first, second = PrivateReplica(app, name="first"), PrivateReplica(app, name="second")
    try:
        assert (first.start(), second.start()) == ("cold", "cold")
        assert first.address != second.address
        assert app.deployment.port not in (first.address[1], second.address[1])
        assert [answer_of(one)[:12] for one in (first, second)] == [b"HTTP/1.1 200"] * 2
        assert first.wait(0.0) is None
        members = psutil.Process(first.pid).children(recursive=True)
    finally:
        first.stop()
        second.stop()
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in members)


def test_the_owner_hears_why_its_engine_ended() -> None:
    """With the exit code and its last words; nothing of it is left."""
    replica = PrivateReplica(an_app())
    replica.start()
    try:
        members = psutil.Process(replica.pid).children(recursive=True)
        os.kill(replica.pid, signal.SIGKILL)
        assert "exit code -9" in (replica.wait(30.0) or "")
        assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in members)
    finally:
        replica.stop()


@pytest.mark.slow
@pytest.mark.fault("an engine of Ray's hangs while its server lives", area="Ray Serve", outcome="restarted")
def test_the_owner_hears_of_an_engine_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed, and to its owner it has ended."""
    monkeypatch.setattr(answering, "PATIENCE", Patience(pause_s=0.1, failures=3))
    deployment = replace(a_deployment(fault=Fault.HANG_WHILE_SERVING), health_timeout_s=1.0)
    replica = PrivateReplica(an_app(deployment))
    replica.start()
    try:
        body = json.dumps({"messages": [{"role": "user", "content": CRASH_WORD}]}).encode()
        with replica.socket() as stream:
            stream.connect(replica.address)
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
            stream.sendall(head + body)
            assert "exit code -9" in (replica.wait(30.0) or "")
    finally:
        replica.stop()


def test_an_engine_that_does_not_start_is_an_error_and_leaves_nothing() -> None:
    """The error of the start reaches the owner."""
    replica = PrivateReplica(an_app(a_deployment(fault=Fault.EXIT_AT_START)))
    with pytest.raises(EngineError):
        replica.start()
    with pytest.raises(TorporError, match="does not serve"):
        replica.socket()
    replica.stop()


def is_standin(process: psutil.Process) -> bool:
    """Whether a process is a stand-in that runs."""
    with contextlib.suppress(psutil.Error):
        return "standin" in " ".join(process.cmdline())
    return False


def test_a_start_can_be_ended_from_another_thread() -> None:
    """`start` raises soon, and the engine is gone."""
    deployment = replace(a_deployment(fault=Fault.HANG_AT_START), startup_timeout_s=60.0)
    replica, raised = PrivateReplica(an_app(deployment)), list[BaseException]()

    def run() -> None:
        try:
            replica.start()
        except TorporError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert wait_for(lambda: any(map(is_standin, psutil.Process().children(recursive=True))))
    replica.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert len(raised) == 1


class Captured(NamedTuple):
    """An app file and a snapshot of it."""

    app: str
    folder: Path


@pytest.fixture(scope="module")
def captured(criu: Criu, tmp_path_factory: pytest.TempPathFactory) -> Captured:
    """Captured once; a test that changes it takes a folder of its own."""
    del criu  # it works here
    place = tmp_path_factory.mktemp("owned")
    app = write_app(place, "owned")
    create_snapshot(app, place / "snapshot", mode=MODES[-1])
    return Captured(app, place / "snapshot")


@pytest.mark.criu
@pytest.mark.ordinary_user
def test_a_snapshot_that_fits_is_restored_and_another_starts_cold(captured: Captured, tmp_path: Path) -> None:
    """The owner is told why it starts cold."""
    folder, told = tmp_path / "snapshot", list[str]()
    shutil.copytree(captured.folder, folder)
    for kind in ("restored", "cold"):
        replica = PrivateReplica(load_app(captured.app), snapshot=folder, tell=told.append)
        try:
            assert replica.start() == kind
            assert answer_of(replica)[:12] == b"HTTP/1.1 200"
        finally:
            replica.stop()
        next((folder / "images").glob("core-*.img")).write_bytes(b"damaged")
    assert len(told) == 1
    assert "starts cold" in told[0]


OWNER = """
import sys
from pathlib import Path
from torpor.app_file import load_app
from torpor.platforms.local import PrivateReplica
replica = PrivateReplica(load_app(sys.argv[1]), snapshot=Path(sys.argv[2]) if sys.argv[2] else None)
kind = replica.start()
print("owner:", kind, replica.pid, flush=True)
sys.stdin.read()
"""


def killed_with_its_children(app: str, snapshot: str) -> tuple[str, list[psutil.Process]]:
    """The start's kind, and the engine's processes that are left a second after a supervisor killed its owner."""
    argv = [sys.executable, "-c", OWNER, app, snapshot]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        (line,) = itertools.islice((one for one in owner.stdout if one.startswith("owner:")), 1)
        _, kind, pid = line.split()
        process = psutil.Process(owner.pid)
        engine = psutil.Process(int(pid))
        members = [engine, *engine.children(recursive=True)]
        for one in [*process.children(), process]:
            one.kill()
        gone, left = psutil.wait_procs(members, timeout=1.0)
        assert len(members) > 2
        assert len(gone) + len(left) == len(members)
    return kind, [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.fault("Ray kills a worker's children, then the worker", area="engine's end", outcome="held")
def test_a_cold_engine_ends_with_an_owner_whose_children_were_killed_first(tmp_path: Path) -> None:
    """Ray ends a worker in this order. Nothing of the engine is left after a second."""
    assert killed_with_its_children(write_app(tmp_path, "owned"), "") == ("cold", [])


@pytest.mark.criu
@pytest.mark.ordinary_user
def test_a_restored_engine_ends_with_an_owner_whose_children_were_killed_first(captured: Captured) -> None:
    """As a cold one."""
    assert killed_with_its_children(captured.app, str(captured.folder)) == ("restored", [])
