"""`LocalServer` without CRIU: an engine that ends is started again, and a failed wake starts cold."""

from __future__ import annotations

import os
import signal
import socket
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.conftest import is_running
from tests.platforms.small import a_deployment
from torpor import EngineError, EngineExitedError
from torpor.engine.process import session_members
from torpor.platforms.local.backends import NoSnapshot, SnapshotBackend, Standby
from torpor.platforms.local.server import LocalServer
from torpor.testing.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torpor import Deployment
    from torpor.runtime.supervision import ReplicaEvent
    from torpor.telemetry.stage_report import StageReport

    MakeServer = Callable[..., tuple[LocalServer, list[ReplicaEvent]]]


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[MakeServer]:
    """A factory of servers with their events; they are stopped after the test."""
    made: list[LocalServer] = []

    def make(
        deployment: Deployment, backend: SnapshotBackend, report: StageReport | None = None
    ) -> tuple[LocalServer, list[ReplicaEvent]]:
        events: list[ReplicaEvent] = []
        made.append(LocalServer(deployment, backend=backend, root=tmp_path, report=report, on_event=events.append))
        return made[-1], events

    yield make
    for server in made:
        server.stop()


def ready(deployment: Deployment) -> httpx.Response:
    """What the public port answers to /ready."""
    return httpx.get(f"http://127.0.0.1:{deployment.port}/ready", trust_env=False, timeout=30)


def kill(server: LocalServer) -> None:
    """SIGKILL the engine, and wait until the server has noticed."""
    os.kill(server.boot.running_engine.pid, signal.SIGKILL)
    assert server.boot.running_engine.wait(30.0) == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.fault("an engine without a snapshot is killed while it serves", area="engine", outcome="restarted")
@pytest.mark.parametrize("backend", [NoSnapshot(), Standby()], ids=["none", "standby"])
def test_an_engine_that_was_killed_is_started_cold_again(make_server: MakeServer, backend: SnapshotBackend) -> None:
    """Events, records and the public port say why. The engine before has left nothing."""
    deployment = a_deployment()
    server, events = make_server(deployment, backend)
    server.start()
    first = server.boot.running_engine.pid
    kill(server)
    server.start_again()
    door = ready(deployment)
    assert door.status_code == 200
    assert (door.headers["torpor-boot"], door.headers["torpor-boot-reason"]) == ("cold", "engine ended")
    assert [event.event for event in events] == ["replica_ended", "replica_restarted"]
    assert (events[0].exit_code, events[1].boot, events[1].restart) == (-signal.SIGKILL, "cold", 1)
    assert any("standin: pid" in line for line in events[0].last_lines)
    last = server.boot.report.records[-1]
    assert (last.stage, last.reason, last.restarts) == ("serve", "engine ended", 1)
    assert [member for member in session_members(first) if is_running(member)] == []


@pytest.mark.fault("an engine without a snapshot ends again and again", area="engine", outcome="refused")
def test_an_engine_that_ends_too_often_is_an_error_with_its_last_lines(
    make_server: MakeServer,
) -> None:
    """The limit is `Deployment.max_restarts` in a row. Afterwards nothing runs."""
    deployment = replace(a_deployment(), max_restarts=1)
    server, events = make_server(deployment, NoSnapshot())
    server.start()
    kill(server)
    server.start_again()
    kill(server)
    with pytest.raises(EngineExitedError, match=r"was killed by signal 9 while it was serving"):
        server.start_again()
    assert events[-1].event == "replica_given_up"
    assert "Deployment.max_restarts" in events[-1].described()


@pytest.mark.slow
@pytest.mark.fault("a restart fails", area="engine", outcome="restarted")
def test_a_failed_restart_counts_as_one_more_in_the_row(
    make_server: MakeServer,
) -> None:
    """Here the port is taken during the first restart. Everything that the failed restart began has ended."""
    deployment = replace(a_deployment(), max_restarts=2)
    server, events = make_server(deployment, NoSnapshot())
    server.start()
    kill(server)
    taken = socket.create_server(("127.0.0.1", deployment.port))
    threading.Timer(0.5, taken.close).start()
    server.start_again()
    assert [event.event for event in events] == ["replica_ended", "restart_failed", "replica_restarted"]
    assert "PortInUseError" in events[1].error
    assert events[-1].restart == 2
    assert ready(deployment).status_code == 200


@pytest.mark.fault("a standby does not wake", area="wake", outcome="restarted")
@pytest.mark.parametrize(
    "fault",
    [
        Fault.EXIT_AT_WAKE,
        pytest.param(Fault.REFUSE_WAKE, marks=pytest.mark.slow),
        pytest.param(Fault.DIFFERENT_AFTER_WAKE, marks=pytest.mark.slow),
    ],
)
def test_a_standby_that_does_not_wake_is_started_cold(make_server: MakeServer, fault: Fault) -> None:
    """The fault occurs at the start, and again at a later sleep and wake."""
    deployment = a_deployment(fault=fault)
    server, events = make_server(deployment, Standby())
    server.start()
    assert ready(deployment).headers["torpor-boot-reason"] == "wake failed"
    server.sleep()
    assert ready(deployment).status_code == 503
    server.wake()
    assert ready(deployment).status_code == 200
    assert [event.event for event in events] == ["wake_failed", "replica_restarted"] * 2
    assert [event.restart for event in events if event.event == "replica_restarted"] == [1, 2]


@pytest.mark.fault("a standby ends while it is asleep", area="wake", outcome="restarted")
def test_a_standby_that_ended_asleep_starts_cold_instead_of_waking(
    make_server: MakeServer,
) -> None:
    """The wake notices it."""
    deployment = a_deployment()
    server, events = make_server(deployment, Standby())
    server.start()
    server.sleep()
    kill(server)
    server.wake()
    assert ready(deployment).headers["torpor-boot"] == "cold"
    assert [event.event for event in events] == ["wake_failed", "replica_restarted"]


@pytest.mark.fault("a standby does not wake and no cold start is wanted", area="wake", outcome="refused")
def test_without_the_option_a_failed_wake_is_an_error(
    make_server: MakeServer,
) -> None:
    """Without `Deployment.cold_start_on_failed_wake` nothing runs afterwards."""
    deployment = a_deployment(fault=Fault.EXIT_AT_WAKE, cold_start_on_failed_wake=False)
    server, events = make_server(deployment, Standby())
    with pytest.raises(EngineError):
        server.start()
    assert events == []
    assert [member for member in session_members(server.boot.running_engine.pid) if is_running(member)] == []
