"""The lifecycle key reaches only the engine. Another process on its port never gets a byte of it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from torpor import Deployment, Engine, EngineTimeoutError, ForeignServerError, Model, start_engine
from torpor.engine import listeners
from torpor.guard import GuardRules
from torpor.runtime import transport
from torpor.runtime.boot import Boot
from torpor.runtime.canary import record_canary
from torpor.runtime.guard_client import GuardControl, open_client
from torpor.runtime.readiness import wait_ready
from torpor.testing import StandIn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SLEEPER = (sys.executable, "-c", "import time; time.sleep(60)")
RULES = GuardRules(public=("/v1/chat/completions", "/v1/models"))
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
PROOF = b'{"proof": "%s"}' % (b"0" * 64)

ANSWERS: dict[str, bytes | None] = {
    "hangs up": b"",
    "never answers": None,
    "answers 200": OK,
    "claims a proof": b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(PROOF), PROOF),
    "answers 404": b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
    "speaks something else": b"SSH-2.0-OpenSSH_9.6\r\n",
    "answers garbage": bytes(range(256)) * 8,
    "answers without an end": b"HTTP/1.1 200 OK\r\nx: " + b"y" * 20_000,
    "answers deep JSON": b"HTTP/1.1 200 OK\r\ncontent-length: 6000\r\n\r\n" + b"[" * 6000,
}
"""What a thief answers on a connection; None: nothing, and it keeps the connection open."""


class Thief:
    """Listens on the engine's port and keeps every byte that it gets.

    Args:
        port: the engine's port.
        answer: what it answers to the first packet of each connection; None: nothing.
    """

    def __init__(self, port: int, answer: bytes | None) -> None:
        self.heard = b""
        self._lock = threading.Lock()
        self._answer = answer
        self._kept: list[socket.socket] = []
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", port))
        self._listener.listen(50)
        threading.Thread(target=self._run, daemon=True).start()

    def has_heard(self) -> bytes:
        """What it heard, once that is a whole head: its thread may still be on the way."""
        deadline = time.monotonic() + 30
        while b"\r\n\r\n" not in self.heard and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.heard

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        self._kept.append(connection)
        with contextlib.suppress(OSError):
            self._hear(connection.recv(65536))
            if self._answer is not None:
                connection.sendall(self._answer)
                connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                self._hear(chunk)

    def _hear(self, data: bytes) -> None:
        with self._lock:
            self.heard += data

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for one in (self._listener, *self._kept):
            one.close()


def wait(engine: Engine, port: int, timeout_s: float = 10) -> None:
    """Wait until the engine is ready, with a new client."""
    with open_client(engine, port=port, timeout_s=timeout_s) as client:
        wait_ready(engine, client, port=port, ready_path="/v1/models", timeout_s=timeout_s)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """An engine with a guard's key that never opens its port. No test changes it."""
    engine = start_engine(SLEEPER, guard=RULES)
    yield engine
    engine.terminate(0.0)


@pytest.fixture
def steal(free_port: int) -> Iterator[Callable[[str], Thief]]:
    """Takes the port, behaving as one of `ANSWERS`."""
    with contextlib.ExitStack() as stack:

        def start(kind: str) -> Thief:
            thief = Thief(free_port, ANSWERS[kind])
            stack.callback(thief.close)
            return thief

        yield start


@pytest.fixture
def no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that does not show which process owns a socket, as gVisor may."""
    monkeypatch.setattr(listeners, "_TABLES", ())


@pytest.mark.fault(
    "another program listens on the port while the engine loads", area="lifecycle key", outcome="refused"
)
@pytest.mark.parametrize("kind", list(ANSWERS))
def test_a_foreign_listener_ends_the_start_at_once(
    kind: str, engine: Engine, free_port: int, steal: Callable[[str], Thief]
) -> None:
    """So does a listener that closes the connection or stays silent. The message names process, command and user."""
    thief = steal(kind)
    began = time.monotonic()
    with pytest.raises(ForeignServerError) as caught:
        wait(engine, free_port, 60)
    assert time.monotonic() - began < 40
    for part in (
        f"Port {free_port}",
        f"process {os.getpid()} (",
        f"uid {os.getuid()}",
        "was not sent",
        "choose another",
    ):
        assert part in str(caught.value)
    assert str(engine.guard_key).encode() not in thief.heard


@pytest.mark.fault(
    "another program listens on the port where /proc tells nothing", area="lifecycle key", outcome="refused"
)
@pytest.mark.parametrize("kind", [kind for kind in ANSWERS if kind not in ("hangs up", "never answers")])
@pytest.mark.usefixtures("no_proc")
def test_a_wrong_answer_is_enough_to_know_a_stranger(
    kind: str, engine: Engine, free_port: int, steal: Callable[[str], Thief]
) -> None:
    """The proof works without information from the kernel."""
    thief = steal(kind)
    with pytest.raises(ForeignServerError, match=r"identity gave .*was not sent.*Another program"):
        wait(engine, free_port)
    assert b"GET /_torpor/identity?nonce=" in thief.has_heard()
    assert str(engine.guard_key).encode() not in thief.heard


CALLS: dict[str, Callable[[GuardControl, httpx.Client, Deployment], object]] = {
    "drain": lambda control, _, __: control.drain(1.0),
    "asleep": lambda control, _, __: control.asleep(),
    "wake": lambda control, _, __: control.wake(new_replica_id="1" * 16),
    "serve": lambda control, _, __: control.serve(),
    "check_asleep": lambda control, _, __: control.check_asleep(),
    "canary": lambda _, client, deployment: record_canary(deployment, client),
    "a hook's own": lambda _, client, __: client.post("/release_memory_occupation", json={}),
    "a hook's streamed": lambda _, client, __: client.send(client.build_request("GET", "/metrics"), stream=True),
}
"""Every call of core or a hook that sends the key."""


@pytest.mark.fault(
    "another program has the port when a lifecycle call is made", area="lifecycle key", outcome="refused"
)
@pytest.mark.parametrize("call", list(CALLS))
@pytest.mark.parametrize("kind", list(ANSWERS))
@pytest.mark.usefixtures("no_proc")
def test_no_call_shows_the_key_to_a_stranger(  # noqa: PLR0917 - fixtures
    kind: str, call: str, engine: Engine, free_port: int, steal: Callable[[str], Thief], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server proves its identity before anything is sent on a connection. A new key is not sent either."""
    monkeypatch.setattr(transport, "PROOF_TIMEOUT_S", 0.1)
    thief, key = steal(kind), str(engine.guard_key)
    deployment = Deployment(name="d", model=Model(path="/m"), plugins=(StandIn(),), port=free_port)
    client = open_client(engine, port=free_port, timeout_s=0.3)
    with client, pytest.raises((ForeignServerError, httpx.TransportError)):
        CALLS[call](GuardControl(engine, client), client, deployment)
    assert key.encode() not in thief.heard
    assert thief.has_heard().startswith(b"GET /_torpor/identity?nonce=")
    assert thief.heard.count(b"\r\n\r\n") == 1, "nothing but the question was sent"
    assert engine.guard_key == key


def test_a_client_without_the_key_asks_for_no_proof(
    engine: Engine, free_port: int, steal: Callable[[str], Thief]
) -> None:
    """Without a key there is nothing to protect."""
    thief = steal("answers 200")
    with open_client(engine, port=free_port, timeout_s=2) as client:
        client.headers.pop("torpor-key")
        assert client.get("/health").status_code == 200
    assert thief.has_heard().startswith(b"GET /health ")


@pytest.mark.fault("a hook calls another server with the lifecycle's client", area="lifecycle key", outcome="refused")
@pytest.mark.parametrize(
    "url", ["https://models.example/list", "http://10.0.0.1/", "https://127.0.0.1/", "http://[::2]/"]
)
def test_the_lifecycles_client_goes_nowhere_else(engine: Engine, free_port: int, url: str) -> None:
    """With an absolute address the key would go to another server."""
    client = open_client(engine, port=free_port, timeout_s=2)
    with (
        client,
        pytest.raises(httpx.UnsupportedProtocol, match=r"reaches the engine on 127\.0\.0\.1 alone.*of your own"),
    ):
        client.get(url)


@pytest.mark.fault("the engine ends and another program takes its port", area="lifecycle key", outcome="refused")
def test_a_port_that_was_taken_over_gets_no_key(free_port: int) -> None:
    """The error says that the engine has ended and which process has its port."""
    boot = Boot(Deployment(name="d", model=Model(path="/m"), plugins=(StandIn(),), port=free_port))
    thief = None
    try:
        boot.cold_start()
        boot.serve()
        key = str(boot.running_engine.guard_key)
        boot.running_engine.terminate(0.0)
        thief = Thief(free_port, OK)
        with pytest.raises(ForeignServerError, match=rf"ended with code -?\d+.*process {os.getpid()} \("):
            boot.sleep()
        assert key.encode() not in thief.heard
    finally:
        boot.stop()
        if thief:
            thief.close()


RELAY = """
import socket, sys, threading
port = int(sys.argv[1])
listener = socket.create_server(("127.0.0.1", port))
def pump(one, other):
    while data := one.recv(65536): other.sendall(data)
    other.shutdown(socket.SHUT_WR)
while True:
    near, _ = listener.accept()
    far = socket.create_connection(("127.0.0.2", port))
    for pair in ((near, far), (far, near)): threading.Thread(target=pump, args=pair, daemon=True).start()
"""


@pytest.mark.fault("another program relays core's calls to the engine", area="lifecycle key", outcome="refused")
@pytest.mark.usefixtures("no_proc")
def test_a_relay_to_the_engine_gets_no_key(free_port: int) -> None:
    """It forwards to the engine on another address. The engine's proof is for that other connection."""
    argv = [sys.executable, "-m", "torpor.testing.standin", "--host", "127.0.0.2", "--port", str(free_port)]
    engine = start_engine(argv, guard=RULES)
    with contextlib.ExitStack() as ends:
        ends.callback(engine.terminate, 0.0)
        _until_open("127.0.0.2", free_port)
        relay = subprocess.Popen([sys.executable, "-c", RELAY, str(free_port)])
        ends.callback(relay.wait)
        ends.callback(relay.kill)
        _until_open("127.0.0.1", free_port)
        relayed = r'identity gave .HTTP/1.1 200 OK {"proof": "[0-9a-f]{64}"}'
        client = open_client(engine, port=free_port, timeout_s=30)
        with client, pytest.raises(ForeignServerError, match=relayed):
            client.get("/_torpor/state")


LATE = """
import socket, sys, time
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
listener.settimeout(0.05)
until = time.monotonic() + 0.5
while time.monotonic() < until:
    try: listener.accept()[0].close()
    except TimeoutError: pass
listener.close()
from torpor.testing.standin.server import main
main(["--port", sys.argv[1]])
"""


def test_an_engine_that_is_not_ready_yet_is_no_stranger(free_port: int) -> None:
    """The engine's own listener may close connections for a while. The start goes on."""
    engine = start_engine([sys.executable, "-c", LATE, str(free_port)], guard=RULES)
    try:
        _until_open("127.0.0.1", free_port)
        wait(engine, free_port, 20)
    finally:
        engine.terminate(0.0)


LEFT = """
import os, signal, socket, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
        while True: listener.accept()[0].close()
    os._exit(0)
os.wait()
time.sleep(60)
"""


def test_a_process_that_left_the_engines_tree_is_no_stranger(free_port: int) -> None:
    """It has the engine's replica id, even after a wake gave the engine a new one. The start waits until the deadline."""
    engine = start_engine([sys.executable, "-c", LEFT, str(free_port)], guard=RULES)
    first = engine.replica_id
    assert first
    try:
        _until_open("127.0.0.1", free_port)
        engine.replica_id = "0" * 16
        assert listeners.foreign_listener(engine, free_port) is None
        with pytest.raises(EngineTimeoutError, match=r"not ready within 0\.5 s; last seen: GET /v1/models: R"):
            wait(engine, free_port, 0.5)
    finally:
        for pid in psutil.pids():
            if listeners._replica_id(pid) == first:
                os.kill(pid, signal.SIGKILL)
        engine.terminate(0.0)


UNGUARDED = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200); self.send_header("content-length", "0"); self.end_headers()
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_an_engine_that_forgot_its_guard_is_told_so(free_port: int) -> None:
    """The engine itself has the port, so the error names no other process."""
    engine = start_engine([sys.executable, "-c", UNGUARDED, str(free_port)], guard=RULES)
    try:
        with pytest.raises(
            ForeignServerError, match=r"does not run torpor.guard.Guard with this start's boot document"
        ):
            wait(engine, free_port, 20)
    finally:
        engine.terminate(0.0)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process of another user")
@pytest.mark.fault(
    "another user of the machine listens on the port while the engine loads", area="lifecycle key", outcome="refused"
)
def test_another_users_listener_is_named(engine: Engine, free_port: int) -> None:
    """It closes each connection at once; this was once mistaken for an engine that is not ready."""
    code = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534)\n"
        "listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
        "while True: listener.accept()[0].close()"
    )
    thief = subprocess.Popen([sys.executable, "-c", code, str(free_port)])
    try:
        _until_open("127.0.0.1", free_port)
        with pytest.raises(ForeignServerError, match=rf"process {thief.pid} \(.*uid 65534"):
            wait(engine, free_port)
    finally:
        thief.kill()
        thief.wait()


def _until_open(address: str, port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection((address, port), 1).close()
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens on {address}:{port}"
            time.sleep(0.02)
        else:
            return
