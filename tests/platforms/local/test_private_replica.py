"""`torpor.platforms.local.private_replica`: an engine that only its owner reaches, watches and ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.platforms.local.serve.served import write_app
from tests.platforms.small import a_deployment
from tests.snapshots.conftest import MODES
from torpor import EngineError, TorporError
from torpor.app_file import App, load_app
from torpor.lifecycle import Lifecycle
from torpor.platforms.local import PrivateReplica, create_snapshot
from torpor.testing import Fault

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
        assert "exit code -9" in (replica.wait(5.0) or "")
        assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in members)
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
    deadline = time.monotonic() + 10
    while not [one for one in psutil.Process().children(recursive=True) if "standin" in " ".join(one.cmdline())]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    replica.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert len(raised) == 1


@pytest.mark.criu
def test_a_snapshot_that_fits_is_restored_and_another_starts_cold(tmp_path: Path, criu: Criu) -> None:
    """The owner is told why it starts cold."""
    del criu  # it works here
    app, folder, told = load_app(write_app(tmp_path, "owned")), tmp_path / "snapshot", list[str]()
    create_snapshot(app, folder, mode=MODES[-1])
    for kind in ("restored", "cold"):
        replica = PrivateReplica(app, snapshot=folder, tell=told.append)
        try:
            assert replica.start() == kind
            assert answer_of(replica)[:12] == b"HTTP/1.1 200"
        finally:
            replica.stop()
        next((folder / "images").glob("core-*.img")).write_bytes(b"damaged")
    assert len(told) == 1
    assert "starts cold" in told[0]
