"""The metrics' own address, and the control path of `torpor serve`: who may read, and what a bad client can do."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.platforms.local.serve.served import ask, write_app
from torpor import ConfigurationError, PortInUseError
from torpor.cli.metrics import metrics_served
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.metrics import server as module
from torpor.platforms.local.metrics.collector import CommandMetrics
from torpor.platforms.local.metrics.figures import Figures
from torpor.platforms.local.metrics.server import MetricsServer, metrics_address
from torpor.platforms.local.serve.server import ServeHere
from torpor.telemetry.observers import observers
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    """Of a command with one deployment."""
    metrics = CommandMetrics(lambda: [Figures(deployment="tiny", state="serving")])
    with MetricsServer(metrics, host="127.0.0.1", port=0) as made:
        yield made


def get(port: int, path: str = "/metrics", method: str = "GET") -> httpx.Response:
    """Ask once."""
    return httpx.request(method, f"http://127.0.0.1:{port}{path}", trust_env=False, timeout=30)


def test_only_the_metrics_are_there(server: MetricsServer) -> None:
    """GET /metrics; another path or method is told so."""
    answer = get(server.port)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert 'torpor_deployment_state{deployment="tiny",state="serving"} 1.0' in answer.text
    assert get(server.port, method="HEAD").content == b""
    assert (get(server.port, "/").status_code, get(server.port, method="POST").status_code) == (404, 405)


@pytest.mark.fault("a figure cannot be read at a scrape", area="metrics", outcome="held")
def test_a_scrape_that_fails_is_an_error_and_the_next_one_works() -> None:
    """Prometheus sees a failed scrape, and not stale figures."""
    fails = [True]

    def figures() -> Sequence[Figures]:
        if fails.pop() if fails else False:
            raise OSError("no")
        return [Figures(deployment="tiny", state="serving")]

    with MetricsServer(CommandMetrics(figures), host="127.0.0.1", port=0) as server:
        assert get(server.port).status_code == 500
        assert get(server.port).status_code == 200


@pytest.mark.fault("clients hold the metrics' port open", area="metrics", outcome="held")
def test_silent_clients_do_not_pile_up(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limited number is served at once; each gets a time limit, after which others have room again."""
    monkeypatch.setattr(module._Handler, "timeout", 0.3)
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(40)]
    try:
        for one in silent:
            one.settimeout(5)
            assert one.recv(1) == b""
        assert get(server.port).status_code == 200
    finally:
        for one in silent:
            one.close()
    assert sum("process_request_thread" in thread.name for thread in threading.enumerate()) <= module._MOST_CLIENTS


def _is_closed(client: socket.socket, part: bytes) -> bool:
    """Send a part of a request; whether the server has closed the connection."""
    try:
        client.send(part)
        return client.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.mark.fault("a client sends its request for metrics byte by byte", area="metrics", outcome="held")
def test_a_client_that_drips_is_disconnected(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a deadline for the whole connection, however often a byte comes."""
    monkeypatch.setattr(module, "_CLIENT_DEADLINE_S", 0.1)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.settimeout(0.02)
        until = time.monotonic() + 5
        while not _is_closed(client, b"G"):
            assert time.monotonic() < until
    monkeypatch.undo()
    assert get(server.port).status_code == 200


@pytest.mark.fault("no thread can be started for a client of the metrics", area="metrics", outcome="held")
def test_a_client_without_a_thread_keeps_no_place(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is disconnected, and the next ones are served."""

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        for _ in range(module._MOST_CLIENTS + 1):
            with pytest.raises(httpx.TransportError):
                get(server.port)
    assert get(server.port).status_code == 200


def test_an_address_in_use_is_an_error(server: MetricsServer) -> None:
    """Before anything starts; nothing goes on counting."""
    before = observers()
    with (
        pytest.raises(PortInUseError, match="choose another with --metrics"),
        metrics_served(f"{server.port}", list, engines=False, tell=print),
    ):
        pass
    assert observers() == before


@pytest.mark.parametrize(
    ("given", "read"),
    [("9464", ("127.0.0.1", 9464)), ("0.0.0.0:9464", ("0.0.0.0", 9464)), ("[::1]:9464", ("::1", 9464))],
)
def test_an_address_is_a_port_or_host_and_port(given: str, read: tuple[str, int]) -> None:
    """A port alone is this machine's."""
    assert metrics_address(given) == read


@pytest.mark.parametrize("given", ["", "x", "http://a:1", "1:2:3", "127.0.0.1:", ":9464x", "127.0.0.1:99999", "a/b:1"])
def test_anything_else_is_refused(given: str) -> None:
    """With what was given and what is allowed."""
    with pytest.raises(ConfigurationError, match="--metrics"):
        metrics_address(given)


def test_engine_metrics_need_an_address() -> None:
    """Otherwise nobody could read them."""
    with (
        pytest.raises(ConfigurationError, match="give --metrics PORT"),
        metrics_served("", list, engines=True, tell=print),
    ):
        pass


def test_serve_shows_metrics_with_the_control_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None without it. They hold starts, states, and what the engine says, with the names of deployment and replica."""
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path / "c"))
    monkeypatch.setattr(CriuBackend, "available", lambda *_: ("there is no CRIU",))
    with ServeHere([write_app(tmp_path, "a")], port=unused_port(), engine_metrics=True) as server:
        port = server.address[1]
        before = httpx.get(f"http://127.0.0.1:{port}/torpor/metrics", trust_env=False, timeout=30)
        assert before.status_code == 401
        assert ask(port, "model-a", prompt="a prompt that no label may hold").status == 200
        key = {"authorization": f"Bearer {server.key}"}
        answer = httpx.get(f"http://127.0.0.1:{port}/torpor/metrics", headers=key, trust_env=False, timeout=30)
    assert answer.status_code == 200
    for line in (
        'torpor_starts_total{deployment="a",kind="cold",outcome="ok"} 1.0',
        'torpor_deployment_state{deployment="a",state="serving"} 1.0',
        'torpor_requests_waiting{deployment="a"} 0.0',
        'torpor_engine_scrape_ok{deployment="a",replica="a-1"} 1.0',
        'sglang:num_running_reqs{torpor_deployment="a",torpor_replica="a-1"} 0.0',
    ):
        assert line in answer.text.splitlines()
    assert "prompt" not in answer.text
