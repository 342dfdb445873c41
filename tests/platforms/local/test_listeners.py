"""Listeners of replicas that are restored from a snapshot, and of `torpor serve`."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.listener.hearing import HEARD, told
from tests.listener.test_events import WAKE
from tests.platforms.local.serve.served import ask, wait_until
from torpor.app_file import load_app
from torpor.listener import LifecycleEvent, ReplicaReplaced, Serving
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.replicas import Replicas
from torpor.platforms.local.serve.server import ServeHere
from torpor.platforms.local.snapshots import create_snapshot
from torpor.snapshots.criu.program import PREFIX_VARIABLE
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from pathlib import Path

    from torpor.snapshots.criu.program import Criu


def of(replica: str) -> list[LifecycleEvent]:
    """What was heard of one replica, in order."""
    return [event for event in HEARD if event.replica == replica]


def wait_for_serving(count: int) -> None:
    """Until so many replicas have served."""
    deadline = time.monotonic() + 30
    while sum(isinstance(event, Serving) for event in HEARD) < count:
        assert time.monotonic() < deadline, told(HEARD)
        time.sleep(0.02)


APP = """
from tests.listener.hearing import Hears
from torpor import Deployment, Model
from torpor.testing import StandIn

deployment = Deployment(
    name="heard", model=Model(path={folder!r}, served_name="heard"), plugins=(Hears(), StandIn(warmup_requests=1)), port={port}
)
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """An app file with a listener, which has heard nothing."""
    HEARD.clear()
    folder = tmp_path / "app"
    folder.mkdir()
    file = folder / "heard.py"
    file.write_text(APP.format(folder=str(folder), port=unused_port()))
    return file


@pytest.mark.slow
@pytest.mark.criu
@pytest.mark.ordinary_user
def test_a_listener_hears_restores_and_replacements(
    app: Path, criu: Criu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two restored replicas, each in order; one is killed, and the restore that replaces it says so. At the end each stops."""
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path / "c"))
    if "root" in criu.program.parts:  # a private prefix: <prefix>/root/usr/sbin/criu
        monkeypatch.setenv(PREFIX_VARIABLE, str(criu.program.parents[3]))
    loaded = load_app(str(app))
    create_snapshot(app, tmp_path / "kept")
    HEARD.clear()
    replicas = Replicas(tmp_path / "kept", port=unused_port(), supervised=True, lifecycle=loaded.lifecycle)
    try:
        replicas.start(2)
        restored = ["sandbox", "side_files", "criu", *WAKE, "Serving"]
        assert [told(of("heard-1")), told(of("heard-2"))] == [restored, restored]
        assert {event.boot for event in HEARD} == {"restored"}
        os.kill(
            next(one for one in replicas.serving if one.replica.name == "heard-1").replica.sandbox.pid, signal.SIGKILL
        )
        wait_for_serving(3)
    finally:
        replicas.stop()
    assert told(of("heard-1")) == [*restored, "Stopped"]
    assert told(of("heard-3")) == [*restored, "ReplicaReplaced", "Stopped"]
    assert [event.reason for event in HEARD if isinstance(event, ReplicaReplaced)] == ["engine ended"]


def test_serve_tells_listeners_too(app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cold start on the first request; a killed engine, and the next request's start, which replaces it; the end."""
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path / "c"))
    monkeypatch.setattr(CriuBackend, "available", lambda *_: ("there is no CRIU",))
    with ServeHere([str(app)], port=unused_port()) as server:
        assert ask(server.address[1], "heard").status == 200
        (first,) = {event.replica for event in HEARD}
        assert told(of(first))[-2:] == ["serve", "Serving"]
        ((_, boot),) = server.boots("heard")
        os.kill(boot.running_engine.pid, signal.SIGKILL)
        assert boot.running_engine.wait(30.0) is not None
        assert wait_until(lambda: ask(server.address[1], "heard").status == 200)
        wait_for_serving(2)
    assert told(of(first))[-1] == "Stopped"
    (replaced,) = [event for event in HEARD if isinstance(event, ReplicaReplaced)]
    assert (replaced.reason, replaced.replica != first) == ("engine ended", True)
    assert told(of(replaced.replica))[-1] == "Stopped"
