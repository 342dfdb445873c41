"""The lifecycle key is not in the engine's memory: core sends its digests, and a wake brings digests of the next key."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from torpor import Engine, start_engine
from torpor.engine.process import session_members
from torpor.guard import GuardRules
from torpor.runtime.guard_client import GuardControl, open_client

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE = 16 * 1024 * 1024


def found_in_tree(engine: Engine, secret: str) -> dict[int, int]:
    """How often each process of an engine has a secret in memory that it can write, as text or as UTF-16 or UTF-32."""
    forms = [secret.encode(code) for code in ("ascii", "utf-16-le", "utf-32-le")]
    counts = {process.pid: count_in(process.pid, forms) for process in session_members(engine.pid)}
    assert len(counts) == 3, "the server and its two children were looked into"
    return {pid: count for pid, count in counts.items() if count}


def count_in(pid: int, forms: list[bytes]) -> int:
    """How often one process has one of the forms in its writable memory."""
    count, looked = 0, 0
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for begin, end in writable(pid):
            for at in range(begin, end, _PIECE):
                with contextlib.suppress(OSError):  # a guard page
                    memory.seek(at)
                    piece = memory.read(min(_PIECE, end - at))
                    looked += len(piece)
                    count += sum(piece.count(form) for form in forms)
    assert looked > 1_000_000, "memory was read"
    return count


def writable(pid: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each mapping that can be written."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, permissions = line.split()[:2]
        if permissions.startswith("rw"):
            begin, end = span.split("-")
            yield int(begin, 16), int(end, 16)


@pytest.fixture
def engine(free_port: int) -> Iterator[Engine]:
    """The stand-in behind its guard, with nothing to do for a sleep; it was asked without the key only."""
    argv = [sys.executable, "-m", "torpor.testing.standin", "--port", str(free_port)]
    engine = start_engine(argv, guard=GuardRules(public=("/v1/models",)))
    deadline = time.monotonic() + 10
    try:
        while not answers(free_port):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield engine
    finally:
        engine.terminate(0.0)


def answers(port: int) -> bool:
    """Whether the guard answers already."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 503
    return False


@pytest.mark.fault("somebody reads the engine's memory after its start", area="lifecycle key", outcome="held")
def test_a_started_engine_has_never_seen_its_key(engine: Engine) -> None:
    """Neither the server nor what it forked, before a call has shown the key."""
    assert found_in_tree(engine, str(engine.guard_key)) == {}
    assert engine.pid in found_in_tree(engine, engine.replica_id), "the search finds what is there"


@pytest.mark.fault("somebody reads the engine's memory after a wake", area="lifecycle key", outcome="held")
def test_a_wake_does_not_bring_the_next_key(engine: Engine, free_port: int) -> None:
    """What calls have shown of the old one stays in freed memory of the server alone, and opens nothing any more."""
    with open_client(engine, port=free_port, timeout_s=30) as client:
        control, old = GuardControl(engine, client), str(engine.guard_key)
        control.drain(1.0)
        control.asleep()
        control.wake()
        assert engine.guard_key != old
        assert found_in_tree(engine, str(engine.guard_key)) == {}
        assert set(found_in_tree(engine, old)) <= {engine.pid}
        assert client.get("/_torpor/state", headers={"torpor-key": old}).status_code == 403
        control.serve()
