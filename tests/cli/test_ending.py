"""Commands that serve: signals drain, clients keep nobody awake, and a sleep that cannot be done ends nothing."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest
from rich.console import Console
from typing_extensions import override

from tests.cli.test_snapshot_commands import INTERRUPTED, Cli, Running
from tests.snapshots.conftest import wait_for
from tests.snapshots.kept import chat, engines_on, write_app
from torpor.app_file import load_app
from torpor.cli.interrupts import Signals
from torpor.cli.up import _put_to_sleep
from torpor.errors import SnapshotError
from torpor.platforms.local.backends import Standby
from torpor.platforms.local.server import LocalServer
from torpor.runtime.captured_secrets import secret_names
from torpor.snapshots.criu.program import PREFIX_VARIABLE
from torpor.snapshots.store.paths import criu_prefix
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torpor.runtime.boot import Boot

pytestmark = pytest.mark.slow

BODY = b'{"model": "standin", "messages": [{"role": "user", "content": "x"}], "stream": true, "max_tokens": 100000}'
TOKENS = 40
TOKEN_S = 0.03
READY_S = 30


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """The command line, with a cache of its own."""
    env = {name: value for name, value in os.environ.items() if name not in secret_names(os.environ)}
    env |= {
        "TORPOR_CACHE": str(tmp_path / "cache"),
        PREFIX_VARIABLE: os.environ.get(PREFIX_VARIABLE) or str(criu_prefix()),
    }
    return Cli(env=env, cache=tmp_path / "cache")


@pytest.fixture
def app(tmp_path: Path) -> tuple[Path, int]:
    """An app whose answers take a second, and its port."""
    port = unused_port()
    path = write_app(tmp_path / "app", port=port, token_s=TOKEN_S, warmups=0)
    path.write_text(path.read_text().replace("drain_timeout_s=0.3", "drain_timeout_s=60"))
    return path, port


def answers(port: int) -> bool:
    """Whether it serves."""
    try:
        return bool(chat(port, tokens=1))
    except (OSError, AssertionError, http.client.HTTPException):
        return False


def health(port: int) -> int:
    """The status of /health; 0 for no answer."""
    try:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
            connection.request("GET", "/health", headers={"connection": "close"})
            with connection.getresponse() as response:
                return response.status
    except OSError:
        return 0


@contextlib.contextmanager
def begun_stream(port: int, tokens: int) -> Iterator[http.client.HTTPResponse]:
    """A streamed answer of which the first line has come."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        body = json.dumps({**json.loads(BODY), "max_tokens": tokens})
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        with connection.getresponse() as response:
            assert response.readline().startswith(b"data: ")
            yield response


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.fault("a command that serves is told to end while it answers", area="end", outcome="held")
def test_up_finishes_requests_in_flight_and_exits_0(cli: Cli, app: tuple[Path, int], number: int) -> None:
    """It prints how many it waits for, refuses new requests, and leaves no process."""
    path, port = app
    with cli.running("up", path) as up:
        up.says("Ctrl-C ends it")
        with begun_stream(port, TOKENS) as response:
            up.process.send_signal(number)
            assert wait_for(lambda: health(port) == 503)
            assert response.read().endswith(b"data: [DONE]\n\n")
        assert up.process.wait(20) == 0
        if number != signal.SIGHUP:
            assert "finishing 1 request(s) in flight" in up.said
            assert "cut off" not in up.said
    assert engines_on(port) == []


@pytest.mark.fault("a command that serves is told twice to end", area="end", outcome="held")
def test_a_second_signal_ends_at_once(cli: Cli, app: tuple[Path, int]) -> None:
    """The stream is cut; nothing is left."""
    path, port = app
    with cli.running("up", path) as up:
        up.says("Ctrl-C ends it")
        with begun_stream(port, 10_000):
            up.process.send_signal(signal.SIGTERM)
            up.says("finishing 1 request(s)")
            started = time.monotonic()
            assert up.end(signal.SIGTERM) == INTERRUPTED
            assert time.monotonic() - started < 30
    assert engines_on(port) == []


def test_a_request_that_takes_too_long_is_cut_and_reported(cli: Cli, app: tuple[Path, int]) -> None:
    """After `drain_timeout_s`; the exit code is still 0."""
    path, port = app
    path.write_text(path.read_text().replace("drain_timeout_s=60", "drain_timeout_s=0.5"))
    with cli.running("up", path) as up:
        up.says("Ctrl-C ends it")
        with begun_stream(port, 10_000):
            assert up.end(signal.SIGTERM) == 0
        assert "1 request(s) took longer than Deployment.drain_timeout_s" in up.said
    assert engines_on(port) == []


def test_up_ask_answers_before_a_signal_ends_it(cli: Cli, app: tuple[Path, int]) -> None:
    """Its own question is a request in flight like any other."""
    path, port = app
    with cli.running("up", path, "--ask", "Go on.") as up:
        assert wait_for(lambda: up.answered != "" or up.process.poll() is not None, READY_S)
        assert up.end(signal.SIGTERM) == 0
        assert len(up.answered.split()) == 64
    assert engines_on(port) == []


@pytest.mark.criu
@pytest.mark.fault("a command that serves replicas is told to end while they answer", area="end", outcome="held")
def test_restore_finishes_requests_in_flight_and_exits_0(cli: Cli, app: tuple[Path, int], tmp_path: Path) -> None:
    """Those of each replica; an idle connection is not waited for."""
    path, port = app
    cli.run("snapshot", "create", path, tmp_path / "kept")
    with cli.running("snapshot", "restore", tmp_path / "kept", "--replicas", "2") as restore:
        restore.says("Ctrl-C ends it")
        restore.process.send_signal(signal.SIGUSR1)
        restore.says("restored replicas do not sleep")
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(begun_stream(port, TOKENS)) for _ in range(2)]
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            idle.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
            assert idle.recv(1000).startswith(b"HTTP/1.1 200")
            restore.process.send_signal(signal.SIGTERM)
            for response in streams:
                assert response.read().endswith(b"data: [DONE]\n\n")
            assert restore.process.wait(20) == 0
        assert "finishing 2 request(s) in flight" in restore.said
        assert "cut off" not in restore.said
    assert engines_on(port) == []


class Clients:
    """Those who keep a server awake: by keeping a connection, by not reading, by dripping, by waiting after Expect."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.open: list[socket.socket] = []

    def connect(self) -> None:
        """All of them, and one who is just connected."""
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n" % len(BODY)
        for sent in (
            b"",
            b"GET /v1/models HTTP/1.1\r\nHost: t\r\n\r\n",
            head + b"\r\n" + BODY,
            head + b"\r\n" + BODY[:5],
            head + b"Expect: 100-continue\r\n\r\n",
        ):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.connect(("127.0.0.1", self._port))
            connection.sendall(sent)
            self.open.append(connection)

    def close(self) -> None:
        """Leave."""
        for connection in self.open:
            connection.close()


@pytest.fixture(params=["standby", pytest.param("criu", marks=pytest.mark.criu)])
def sleeper(request: pytest.FixtureRequest, cli: Cli, app: tuple[Path, int]) -> Iterator[tuple[Running, int]]:
    """A server that can sleep, and its port."""
    path, port = app
    path.write_text(path.read_text().replace("drain_timeout_s=60", "drain_timeout_s=1"))
    with cli.running("up", path, "--backend", request.param) as up:
        up.says("Ctrl-C ends it")
        assert wait_for(lambda: answers(port), READY_S)
        yield up, port
    assert engines_on(port) == []


@pytest.mark.fault("clients hold connections when a sleep is asked for", area="sleep", outcome="held")
def test_no_client_keeps_a_server_awake(sleeper: tuple[Running, int]) -> None:
    """Idle connections are closed at once, the others at the deadline; then it sleeps, wakes and serves."""
    up, port = sleeper
    clients = Clients(port)
    clients.connect()
    time.sleep(0.5)
    up.process.send_signal(signal.SIGUSR1)
    up.says("\nasleep")
    assert health(port) == 503
    clients.close()
    up.process.send_signal(signal.SIGUSR2)
    assert wait_for(lambda: answers(port), READY_S)
    assert up.end(signal.SIGTERM) == 0


@pytest.mark.fault("a sleep is asked for that cannot be done", area="sleep", outcome="refused")
def test_a_failed_sleep_ends_nothing(cli: Cli, app: tuple[Path, int]) -> None:
    """It prints one message, and the server serves on."""
    path, port = app
    with cli.running("up", path, "--backend", "none") as up:
        up.says("Ctrl-C ends it")
        up.process.send_signal(signal.SIGUSR1)
        assert "use --backend standby" in up.says("not asleep: ")
        assert answers(port)
        assert up.end(signal.SIGINT) == 0


class Unwritable(Standby):
    """A backend that puts the engine to sleep and then fails to keep it."""

    @override
    def capture(self, boot: Boot) -> None:
        super().capture(boot)
        raise SnapshotError("The disk is full.")


@pytest.mark.fault("a snapshot cannot be written when a server is put to sleep", area="sleep", outcome="held")
def test_a_server_whose_snapshot_cannot_be_written_wakes_again(app: tuple[Path, int], tmp_path: Path) -> None:
    """The engine was asleep already; the same process serves on."""
    path, port = app
    server = LocalServer(load_app(str(path)).deployment, backend=Unwritable(), root=tmp_path / "cache")
    said = io.StringIO()
    try:
        server.cold_start()
        server.boot.serve()
        before = server.boot.running_engine.pid
        assert not _put_to_sleep(server, Console(file=said, width=200), Signals())
        assert answers(port)
        assert server.boot.running_engine.pid == before
    finally:
        server.stop()
    assert said.getvalue() == "not asleep: The disk is full.\nwoken again; it serves on\n"
