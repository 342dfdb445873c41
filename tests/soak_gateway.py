"""Soak test of the gateway: `python -m tests.soak_gateway --seconds 300 --connections 10000`.

Connections come and go, half of them badly behaved, and the gateway may open few descriptors. Three kinds of process: replicas
(stand-ins behind the guard, one for each of uvicorn's parsers), the gateway, and the clients (this one). Loopback only.
Nothing may be kept: no descriptor, no memory, and every request of a well-behaved client is answered.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import psutil
import structlog

from torpor import Deployment, Model
from torpor.platforms.local.gateway import Gateway
from torpor.platforms.local.gateway_route import GatewayReplica
from torpor.runtime.boot import Boot
from torpor.testing import StandIn
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from socket import socket as Socket  # noqa: N812 - a class, and `socket` is the name of a method

__all__ = ["GROWTH_BYTES", "GatewayResult", "soak_gateway"]

DESCRIPTORS = 300
HOLD_S = 12.0
PARSERS = ("h11", "httptools")
GROWTH_BYTES = 8_000_000
"""How much the gateway may grow after the first quarter of the time, bytes of resident memory."""

_SPARE = 16
"""About how many spare sockets the gateway keeps for each replica."""

_CHAT = json.dumps({"messages": [{"role": "user", "content": "a"}], "max_tokens": 5}).encode()
_STREAM = json.dumps({"messages": [{"role": "user", "content": "b"}], "max_tokens": 100000, "stream": True}).encode()
_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: s\r\nContent-Length: %d\r\n%s\r\n"
_GOOD = _HEAD % (len(_CHAT), b"Connection: close\r\n") + _CHAT
_BAD = {
    "leaves at once": b"",
    "drips its head": b"POST /v1/chat/comple",
    "drips its body": _HEAD % (len(_CHAT), b"") + _CHAT[:9],
    "waits after Expect": _HEAD % (len(_CHAT), b"Expect: 100-continue\r\n"),
    "reads nothing": _HEAD % (len(_STREAM), b"") + _STREAM,
    "keeps its connection": b"GET /v1/models HTTP/1.1\r\nHost: s\r\n\r\n",
}
_ANSWER_S = 20.0
_TRIES = 200


@dataclass(kw_only=True)
class GatewayResult:
    """Counts and sizes of a soak.

    Attributes:
        connections: how many were opened and closed.
        answers: number of requests of well-behaved clients by outcome; `503` asks the client to come again.
        bad: requests with a wrong answer or none; the first few are described.
        most: how many connections the gateway accepts at once, as it says.
        descriptors, rss_bytes: of the gateway, after a quarter of the time and at the end, when nobody was connected.
        busiest: the most descriptors that it had open.
        slowest_s: the longest that one answer took, 503 included.
    """

    connections: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    most: int = 0
    descriptors: tuple[int, int] = (0, 0)
    rss_bytes: tuple[int, int] = (0, 0)
    busiest: int = 0
    slowest_s: float = 0.0

    def complaints(self) -> list[str]:
        """List what is wrong; empty if the soak went well."""
        found = list(self.bad)
        if self.descriptors[1] > self.descriptors[0] + _SPARE * len(PARSERS) // 2:
            found.append(f"descriptors: {self.descriptors[0]} became {self.descriptors[1]}")
        if self.rss_bytes[1] - self.rss_bytes[0] > GROWTH_BYTES:
            found.append(f"the gateway grew by {self.rss_bytes[1] - self.rss_bytes[0]} bytes")
        if not self.answers.get("200"):
            found.append("no well-behaved client was answered")
        return found


def soak_gateway(
    *, seconds: float, connections: int, descriptors: int = DESCRIPTORS, hold_s: float = HOLD_S, seed: int = 0
) -> GatewayResult:
    """Run the soak. Everything that it starts ends with it.

    Args:
        seconds: how long connections come, in two runs: sizes are taken after each.
        connections: how many, half of them of clients that behave badly.
        descriptors: the gateway's limit.
        hold_s: seconds, at most, that a client which behaves badly keeps its connection.
        seed: of what the clients do.
    """
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])
    result = GatewayResult(connections=connections)
    try:
        with contextlib.ExitStack() as stack:
            ports = [stack.enter_context(_replica(parser)) for parser in PARSERS]
            gateway, port, result.most = stack.enter_context(_gateway(ports, descriptors))
            clients = _Clients(port, result, random.Random(seed), hold_s)
            asyncio.run(clients.run(connections // 4, seconds / 4, gateway))
            first = _size(gateway)
            asyncio.run(clients.run(connections - connections // 4, seconds * 3 / 4, gateway))
            last = _size(gateway)
            result.descriptors, result.rss_bytes = (first[0], last[0]), (first[1], last[1])
    finally:
        structlog.reset_defaults()
    return result


@contextlib.contextmanager
def _replica(parser: str) -> Iterator[int]:
    """Run a stand-in that serves with one of uvicorn's parsers; yield its port."""
    port = unused_port()
    engine = StandIn(token_s=0.001, warmup_requests=0, extra_args=("--http", parser))
    boot = Boot(Deployment(name="soak", model=Model(path="/models/soak"), plugins=(engine,), port=port))
    try:
        boot.cold_start()
        boot.serve()
        yield port
    finally:
        boot.stop()


@contextlib.contextmanager
def _gateway(replicas: Sequence[int], descriptors: int) -> Iterator[tuple[psutil.Process, int, int]]:
    """Run the gateway in its own process; yield the process, the port and how many connections it accepts."""
    argv = [
        sys.executable,
        "-m",
        "tests.soak_gateway",
        "--gateway",
        *map(str, replicas),
        "--descriptors",
        str(descriptors),
    ]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        try:
            port, most = json.loads(process.stdout.readline())
            yield psutil.Process(process.pid), port, most
        finally:
            process.communicate()  # closes its standard input, which ends it


def _size(gateway: psutil.Process) -> tuple[int, int]:
    """Descriptors and resident memory, after the release of recently closed connections."""
    best, deadline = gateway.num_fds(), time.monotonic() + 4.0
    while time.monotonic() < deadline:
        time.sleep(0.1)
        best = min(best, gateway.num_fds())
    return best, int(gateway.memory_info().rss)


class _Clients:
    """Opens well-behaved and badly behaved connections, spread over the time."""

    def __init__(self, port: int, result: GatewayResult, dice: random.Random, hold_s: float) -> None:
        self._port, self._result, self._dice, self._hold_s = port, result, dice, hold_s
        self._answers: Counter[str] = Counter()

    async def run(self, count: int, seconds: float, gateway: psutil.Process) -> None:
        """Open this many connections in this many seconds; return when the last one has ended."""
        began, tasks = time.monotonic(), []
        for number in range(count):
            await asyncio.sleep(max(0.0, began + seconds * number / count - time.monotonic()))
            tasks.append(asyncio.create_task(self._bad() if number % 2 else self._good()))
            if number % 20 == 0:
                self._result.busiest = max(self._result.busiest, gateway.num_fds())
        await asyncio.gather(*tasks)
        self._result.answers = dict(self._answers)

    async def _good(self) -> None:
        """Send a request; repeat it after a 503."""
        for _ in range(_TRIES):
            began = time.monotonic()
            try:
                async with asyncio.timeout(_ANSWER_S):
                    answer = await self._exchange()
            except (OSError, asyncio.IncompleteReadError) as error:
                self._complain(f"no answer: {type(error).__name__}: {error}")
                return
            self._result.slowest_s = max(self._result.slowest_s, time.monotonic() - began)
            status = answer.split(b" ", 2)[1].decode() if answer else "none"
            self._answers[status] += 1
            if status != "503":
                if status != "200" or b'"finish_reason": "length"' not in answer:
                    self._complain(f"{answer[:200]!r}")
                return
            await asyncio.sleep(self._dice.uniform(0.2, 1.0))
        self._complain(f"still 503 after {_TRIES} tries")

    async def _exchange(self) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(_GOOD)
            return await reader.read(-1)
        finally:
            writer.close()

    async def _bad(self) -> None:
        """Begin a request, wait, and close the connection by FIN or RST."""
        kind = self._dice.choice(tuple(_BAD))
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        with connection:
            with contextlib.suppress(OSError):
                loop = asyncio.get_running_loop()
                await loop.sock_connect(connection, ("127.0.0.1", self._port))
                await loop.sock_sendall(connection, _BAD[kind])
                await asyncio.sleep(0.0 if kind == "leaves at once" else self._dice.uniform(0.1, self._hold_s))
            if self._dice.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _complain(self, what: str) -> None:
        self._answers["bad"] += 1
        if len(self._result.bad) < 20:
            self._result.bad.append(what)


class _Place:
    """A stand-in's port as a replica of the gateway. It never reports that the replica ended."""

    def __init__(self) -> None:
        self._alive, self._end = os.pipe()

    def fileno(self) -> int:
        """Never readable."""
        return self._alive

    def socket(self) -> Socket:
        """Return an ordinary socket."""
        return socket.socket()

    def sockets(self, count: int) -> list[Socket]:
        """Return several sockets."""
        return [socket.socket() for _ in range(count)]


def _run_gateway(replicas: Sequence[int], descriptors: int) -> None:
    """Run the gateway until standard input ends."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    with Gateway() as gateway:
        for port in replicas:
            gateway.add(GatewayReplica(name=str(port), sandbox=_Place(), port=port))
        print(json.dumps([gateway.port, gateway.most_connections]), flush=True)
        sys.stdin.read()


def main() -> int:
    """Run the soak, or its gateway. Return 1 if something was lost or kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak_gateway", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--descriptors", type=int, default=DESCRIPTORS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gateway", type=int, nargs="+", metavar="PORT", help="be the gateway of a running soak")
    args = parser.parse_args()
    if args.gateway:
        _run_gateway(args.gateway, args.descriptors)
        return 0
    result = soak_gateway(
        seconds=args.seconds, connections=args.connections, descriptors=args.descriptors, seed=args.seed
    )
    print(json.dumps(asdict(result), indent=2))
    for complaint in (complaints := result.complaints()):
        print(f"BAD: {complaint}")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
