"""Fixtures for the tests of the stand-in engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.testing.unguarded import Started, launch
from torpor.runtime.guard_client import open_client
from torpor.runtime.readiness import wait_ready

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from torpor import Engine


@pytest.fixture
def started(free_port: int) -> Iterator[Started]:
    """Return a function that starts stand-ins without a guard, see `Started`."""
    running: list[tuple[Engine, httpx.Client]] = []

    def run(*flags: str, dev_mode: str = "1") -> tuple[Engine, httpx.Client]:
        engine = launch(free_port, *flags, dev_mode=dev_mode)
        client = open_client(engine, port=free_port, timeout_s=30)
        running.append((engine, client))
        wait_ready(engine, client, port=free_port, ready_path="/v1/models", timeout_s=30)
        return running[-1]

    yield run
    for engine, client in running:
        client.close()
        engine.terminate(0.0)
