"""Another program takes the port that an engine without a sandbox was to have: the start is repeated on another one."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from tests.platforms.small import a_deployment
from torpor import EngineError, PortInUseError, hookimpl
from torpor.app_file import App
from torpor.lifecycle import Lifecycle
from torpor.platforms.local import PrivateReplica
from torpor.platforms.local.free_ports import free_port, is_taken
from torpor.platforms.local.serve import engine_here
from torpor.testing import Fault, StandIn
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor import Deployment, Engine, Recipe

TAKEN: list[int] = []
"""Ports that `Overtaken` takes, in `LISTENERS`."""
LISTENERS = ExitStack()


@pytest.fixture(autouse=True)
def _listeners() -> Iterator[None]:
    TAKEN.clear()
    with LISTENERS:
        yield


@dataclass(frozen=True, kw_only=True)
class Overtaken(StandIn):
    """An engine whose port is taken after the check and before it binds it."""

    often: int = 1

    @hookimpl
    @override
    def launch(self, deployment: Deployment, recipe: Recipe) -> Engine:
        if len(TAKEN) < self.often:
            take(deployment.port)
        return StandIn.launch(self, deployment, recipe)


def take(port: int) -> None:
    """Listen on a port until the test's end, and close each connection."""
    TAKEN.append(port)
    LISTENERS.enter_context(socket.create_server(("127.0.0.1", port)))


def replica_of(engine: StandIn, told: list[str]) -> PrivateReplica:
    """A replica with this engine, which starts cold on a free port."""
    deployment = replace(a_deployment(), plugins=(engine,))
    app = App(file=Path(__file__), deployment=deployment, lifecycle=Lifecycle(deployment))
    return PrivateReplica(app, tell=told.append)


@pytest.mark.slow
@pytest.mark.fault("another program takes an engine's port before the engine does", area="serve", outcome="held")
def test_a_port_that_is_taken_before_the_engine_binds_it_costs_another_try() -> None:
    """The engine serves on another port, and a line says why."""
    told: list[str] = []
    replica = replica_of(Overtaken(), told)
    try:
        assert replica.start() == "cold"
        assert replica.address[1] not in TAKEN
        assert told == [f"small: another program took port {TAKEN[0]}; it starts again on another one"]
    finally:
        replica.stop()


def test_a_port_that_is_taken_before_the_check_costs_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process was launched on it."""
    told: list[str] = []
    first, second = unused_port(), unused_port()
    ports = iter((first, second))
    monkeypatch.setattr(engine_here, "free_port", lambda: next(ports))
    take(first)
    replica = replica_of(StandIn(), told)
    try:
        assert replica.start() == "cold"
        assert replica.address[1] == second
        assert len(told) == 1
    finally:
        replica.stop()


def test_tries_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the error reaches the caller."""
    told: list[str] = []
    port = unused_port()
    monkeypatch.setattr(engine_here, "free_port", lambda: port)
    take(port)
    with pytest.raises(PortInUseError, match=f"Port {port} is in use"):
        replica_of(StandIn(), told).start()
    assert len(told) == 4


def test_another_failure_is_no_reason_to_try_again() -> None:
    """Nobody has taken the port."""
    told: list[str] = []
    with pytest.raises(EngineError, match="exit_at_start"):
        replica_of(StandIn(fault=Fault.EXIT_AT_START), told).start()
    assert told == []


def test_a_free_port_is_free_until_somebody_listens() -> None:
    """A socket that is bound and does not listen does not take it."""
    port = free_port()
    assert not is_taken(port)
    take(port)
    assert is_taken(port)
