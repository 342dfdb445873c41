"""Clocks of a start as they are taken from outside."""

from __future__ import annotations

import http.server
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from torpor import EngineTimeoutError
from torpor.cli.timing import first_token, port_taken, ready
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Callable

CLOCKS: dict[str, Callable[[subprocess.Popen[str], int, float], object]] = {
    "connection on its port": lambda process, port, limit_s: port_taken(
        process, time.monotonic(), port=port, timeout_s=limit_s
    ),
    "answer 200 of /health": lambda process, port, limit_s: ready(
        process, time.monotonic(), port=port, timeout_s=limit_s
    ),
    "token": lambda process, port, limit_s: first_token(
        process, time.monotonic(), port=port, model="m", timeout_s=limit_s
    ),
}


@pytest.mark.parametrize("what", CLOCKS)
def test_the_end_of_the_command_ends_the_wait(what: str) -> None:
    """With its exit code and what was waited for, before the deadline."""
    with subprocess.Popen(["sh", "-c", "exit 3"], text=True) as ended:
        ended.wait(30.0)
        with pytest.raises(EngineTimeoutError, match=f"ended with code 3; it came to no {what}"):
            CLOCKS[what](ended, unused_port(), 60.0)


@pytest.mark.parametrize("what", CLOCKS)
def test_a_wait_ends_at_its_deadline(what: str) -> None:
    """Each wait has its deadline."""
    with subprocess.Popen(["sleep", "60"], text=True) as idle:
        try:
            with pytest.raises(EngineTimeoutError, match=f"no {what} after 0.05 s"):
                CLOCKS[what](idle, unused_port(), 0.05)
        finally:
            idle.kill()


def test_an_open_port_is_not_readiness() -> None:
    """A server that first answers 503 has its port open; it is ready once it answers 200."""
    asked: list[str] = []

    class Waking(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200 if len(asked) > 2 else 503)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Waking) as server,
        subprocess.Popen(["sleep", "60"], text=True) as idle,
    ):
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            began = time.monotonic()
            port_s = port_taken(idle, began, port=server.server_port, timeout_s=20.0)
            assert asked == []
            assert ready(idle, began, port=server.server_port, timeout_s=20.0) > port_s
            assert asked == ["/health"] * 3
        finally:
            idle.kill()
            server.shutdown()
            thread.join(10.0)
