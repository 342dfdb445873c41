"""`torpor.runtime.readiness`: an engine that ended, another server, the deadline, and the delay of polling."""

from __future__ import annotations

import statistics
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar

import pytest

from torpor import Engine, EngineExitedError, EngineTimeoutError, ForeignServerError, PortInUseError, start_engine
from torpor.guard import GuardRules
from torpor.runtime import readiness
from torpor.runtime.guard_client import open_client
from torpor.runtime.readiness import wait_ready
from torpor.values.addresses import LOOPBACK, check_free

if TYPE_CHECKING:
    from collections.abc import Iterator

SLEEPER = (sys.executable, "-c", "import time; print('loading', flush=True); time.sleep(60)")


class Handler(BaseHTTPRequestHandler):
    """Answers every GET with the server's next status; 0 means no answer."""

    statuses: ClassVar[list[int]] = []

    def do_GET(self) -> None:
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 0:
            time.sleep(1.0)
            return
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        pass


class Listener:
    """An HTTP server in this process that opens its port on `open`."""

    def __init__(self, port: int, *statuses: int) -> None:
        Handler.statuses[:] = statuses
        self.opened_at = 0.0
        self._port = port
        self._server: ThreadingHTTPServer | None = None

    def open(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self.opened_at = time.perf_counter()
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()


@pytest.fixture
def sleeper() -> Iterator[Engine]:
    """An engine that runs but opens no port."""
    engine = start_engine(SLEEPER)
    yield engine
    engine.terminate(0.0)


def wait(engine: Engine, port: int, timeout_s: float) -> None:
    """Wait until the engine is ready, with a new client."""
    with open_client(engine, port=port, timeout_s=timeout_s) as client:
        wait_ready(engine, client, port=port, ready_path="/v1/models", timeout_s=timeout_s)


def test_a_port_in_use_is_an_error_that_names_it(free_port: int) -> None:
    """Before the launch the error says which port, how to find the process that has it, and what to change."""
    check_free(LOOPBACK, free_port)
    listener = Listener(free_port)
    listener.open()
    try:
        with pytest.raises(PortInUseError, match=f"Port {free_port} is in use.*`ss -ltnp.*Deployment.port"):
            check_free(LOOPBACK, free_port)
    finally:
        listener.close()
    check_free(LOOPBACK, free_port)


def test_ready_comes_soon_after_the_port_opens(sleeper: Engine, free_port: int) -> None:
    """At most 60 ms from the opened port to "ready", as the median of five: a busy machine may be slower once."""
    lags = []
    for _ in range(5):
        listener = Listener(free_port)
        threading.Timer(0.1, listener.open).start()
        wait(sleeper, free_port, 5)
        lags.append(time.perf_counter() - listener.opened_at)
        listener.close()
    assert statistics.median(lags) < 0.1


def test_an_engine_that_ends_is_reported_at_once(free_port: int) -> None:
    """The error has exit code and last lines, and comes long before the deadline."""
    engine = start_engine((sys.executable, "-c", "print('out of memory'); raise SystemExit(3)"))
    began = time.monotonic()
    with pytest.raises(
        EngineExitedError, match=r"exited with code 3 before it was ready. Its last lines:\n.*out of memory"
    ) as caught:
        wait(engine, free_port, 60)
    assert time.monotonic() - began < 50
    assert (caught.value.exit_code_seen, caught.value.log_tail) == (3, ("out of memory",))


def test_an_engine_that_is_killed_names_the_signal(free_port: int) -> None:
    """A signal is the only trace of the kernel's out-of-memory killer."""
    engine = start_engine((sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"))
    with pytest.raises(EngineExitedError, match=r"was killed by signal 9 .*\n.*\(it printed nothing\)"):
        wait(engine, free_port, 60)


def test_a_deadline_says_what_was_seen_last(sleeper: Engine, free_port: int) -> None:
    """The error says whether nothing listened or the answer was 503."""
    with pytest.raises(EngineTimeoutError, match=r"not ready within 0.3 s; last seen: nothing listens.*\n.*loading"):
        wait(sleeper, free_port, 0.3)
    listener = Listener(free_port, *[503] * 1000)
    listener.open()
    try:
        with pytest.raises(EngineTimeoutError, match=r"last seen: GET /v1/models: 503.*Deployment.startup_timeout_s"):
            wait(sleeper, free_port, 0.3)
    finally:
        listener.close()


def test_a_request_without_an_answer_does_not_stop_the_waiting(
    sleeper: Engine, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request has its own time limit, and the next one may be answered."""
    monkeypatch.setattr(readiness, "REQUEST_TIMEOUT_S", 0.1)
    listener = Listener(free_port, 0, 503, 200)
    listener.open()
    try:
        wait(sleeper, free_port, 5)
        assert Handler.statuses == []
    finally:
        listener.close()


def test_another_program_on_the_port_is_not_taken_for_the_engine(free_port: int) -> None:
    """It answers 200 but cannot prove the replica id, so it is not the engine that was launched."""
    engine = start_engine(SLEEPER, guard=GuardRules(public=("/v1/models",)))
    listener = Listener(free_port)
    listener.open()
    try:
        with pytest.raises(
            ForeignServerError, match=f"Port {free_port} answers, but not as the engine.*replica id {engine.replica_id}"
        ):
            wait(engine, free_port, 5)
    finally:
        listener.close()
        engine.terminate(0.0)
