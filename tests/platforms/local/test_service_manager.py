"""`torpor.platforms.local.service_manager`: what systemd is told, and that no child process inherits its socket."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from torpor.platforms.local.service_manager import SOCKET_VARIABLE, ServiceManager

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("abstract", [False, True])
def test_a_service_manager_is_told_when_it_serves_and_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    """It gets datagrams of lines. Processes started later do not have the variable."""
    name = f"@torpor-test-{os.urandom(8).hex()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name[1:]}" if abstract else name)
        manager.settimeout(1.0)
        monkeypatch.setenv(SOCKET_VARIABLE, name)
        told = ServiceManager()
        assert SOCKET_VARIABLE not in os.environ
        told.ready("serving m\non http://127.0.0.1:1")
        told.status("replica m-1 has ended")
        told.stopping()
        assert [manager.recv(1024) for _ in range(3)] == [
            b"READY=1\nSTATUS=serving m on http://127.0.0.1:1",
            b"STATUS=replica m-1 has ended",
            b"STOPPING=1\nSTATUS=finishing requests in flight",
        ]


@pytest.mark.fault("the service manager does not listen", area="service manager", outcome="held")
@pytest.mark.parametrize("name", ["", "/nowhere/notify", "@nobody-listens-here", "relative", "/x" * 100])
def test_a_service_manager_that_does_not_listen_changes_nothing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The server starts without an error or a wait."""
    monkeypatch.setenv(SOCKET_VARIABLE, name)
    ServiceManager().ready("serving")
