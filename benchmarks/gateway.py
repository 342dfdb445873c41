"""The gateway's cost: the stand-in engine with and without the gateway before it, each in a process of its own.

    .venv/bin/python benchmarks/gateway.py [--runs 7] [--seconds 1] [--http h11] [--streams 1000]

The engine is the stand-in behind its guard, as every test has it. Three addresses lead to it: its own (bare), the gateway of one
deployment (`torpor up`), and the gateway of several, which looks for the model in each request's body (`torpor serve`). The load
goes to one address at a time, in short turns whose order alternates, so a change of the machine's speed affects all. Every
figure is a ratio of medians of one run. Next to the rates it prints the gateway's processor time for each answer or chunk,
which other programs on the machine disturb less. At last it opens many streams at once through the gateway of several and counts
those that did not arrive whole. Prints a table and writes benchmarks/results/gateway.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import structlog
from typing_extensions import override

from torpor import Deployment, Model, Scaling
from torpor.platforms.local.gateway import Gateway
from torpor.platforms.local.gateway_route import GatewayReplica
from torpor.runtime.boot import Boot
from torpor.serving.gateway import HttpGateway
from torpor.serving.values import ServedModel, Start
from torpor.testing import StandIn
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from socket import socket as Socket  # noqa: N812 - a class, and `socket` is the name of a method

    from torpor.serving.values import Way

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "gateway.json"
CONNECTIONS, STREAMS, TOKENS, MANY_TOKENS = 32, 8, 1000, 20
REQUESTS_LIMIT, CHUNKS_LIMIT = 0.95, 0.97
KINDS = ("bare", "one model", "by model")
HEADERS = (
    b"Host: 127.0.0.1:8000\r\nAccept: application/json\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
    b"User-Agent: OpenAI/Python 1.0\r\nContent-Type: application/json\r\nAuthorization: Bearer none\r\nX-Request-Id: 1\r\n"
)
MESSAGES = [{"role": "user", "content": "Tell me about the moon. " * 10}]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The result of one load: answers or chunks per second, and the gateway's processor time for each, microseconds."""

    rate: float
    cpu_us: float


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure: medians, and their ratio to the bare engine's."""

    name: str
    kind: str
    bare: float
    seen: float
    ratio: float
    cpu_us: float
    limit: float
    met: bool
    runs: int


# The gateways, in processes of their own -------------------------------------------------------------------------------


class LocalPlace:
    """The engine's port as a replica, and as a way to one."""

    def __init__(self, port: int) -> None:
        self.port = port
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

    async def connect(self) -> Socket:
        """Connect to the engine."""
        connection = socket.socket()
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self.port))
        return connection


@dataclass(frozen=True)
class Lease:
    """A lease of the one engine."""

    way: LocalPlace
    start: Start = "serving"
    waited_s: float = 0.0

    def release(self, *, failed: bool = False) -> None:
        """Nobody counts."""


class TwoModels:
    """Two models at one engine, so that each request's body has to be read."""

    by_model = True

    def __init__(self, port: int) -> None:
        self._way = LocalPlace(port)
        self._models = {name: ServedModel(name=name, deployment=name) for name in ("bench", "other")}

    def models(self) -> Sequence[ServedModel]:
        """Both."""
        return tuple(self._models.values())

    def find(self, model: str) -> ServedModel | None:
        """One of them."""
        return self._models.get(model)

    def default(self) -> ServedModel | None:
        """None: there are two."""
        return None

    def take(self, model: ServedModel, prefer: Way | None) -> Lease:  # noqa: ARG002 - both are one engine's
        """Always."""
        return Lease(self._way)

    async def acquire(self, model: ServedModel, prefer: Way | None) -> Lease:  # noqa: ARG002 - as above
        """Never asked."""
        return Lease(self._way)


def be_gateway(kind: str, port: int) -> None:
    """Serve until standard input ends."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])
    gateway = Gateway() if kind == "one model" else HttpGateway(TwoModels(port))
    with gateway:
        if isinstance(gateway, Gateway):
            gateway.add(GatewayReplica(name="a", sandbox=LocalPlace(port), port=port))
        print(gateway.port, flush=True)
        sys.stdin.read()


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where the load goes; the process is the gateway's."""

    kind: str
    port: int
    pid: int = 0

    def cpu_us(self) -> float:
        """Processor time of the gateway's threads so far."""
        if not self.pid:
            return 0.0
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1000


@contextlib.contextmanager
def gateway(kind: str, port: int) -> Iterator[Address]:
    """A gateway before the engine on this port."""
    argv = [sys.executable, __file__, "--gateway", kind, "--port", str(port)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield Address(kind=kind, port=int(process.stdout.readline()), pid=process.pid)
        finally:
            process.communicate()


@contextlib.contextmanager
def engine(http: str) -> Iterator[int]:
    """The stand-in behind its guard; its port."""
    port = unused_port()
    standin = StandIn(token_s=0.0, warmup_requests=0, extra_args=("--http", http))
    deployment = Deployment(
        name="bench",
        model=Model(path="/models/bench"),
        plugins=(standin,),
        port=port,
        scaling=Scaling(target_concurrency=2000, max_concurrency=4000),
    )
    boot = Boot(deployment)
    try:
        boot.cold_start()
        boot.serve()
        yield port
    finally:
        boot.stop()


# The client ------------------------------------------------------------------------------------------------------------


def request_bytes(*, tokens: int, stream: bool) -> bytes:
    """A chat request. The model stands behind the messages, where the clients of OpenAI's library put it."""
    body = json.dumps({"messages": MESSAGES, "model": "bench", "max_tokens": tokens, "stream": stream}).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n%s" % (HEADERS, len(body), body)


class Connection(asyncio.Protocol):
    """Sends one request after another on one connection, until the time is up."""

    def __init__(self, request: bytes, end: bytes, until: float) -> None:
        self.answers = self.chunks = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request, self._end, self._until = request, end, until
        self._tail = b""
        self._transport: asyncio.Transport | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    @override
    def data_received(self, data: bytes) -> None:
        self.chunks += data.count(b"data: ")
        self._tail = (self._tail + data)[-len(self._end) :]
        if self._tail != self._end or self._transport is None:
            return
        self.answers += 1
        self._tail = b""
        if time.perf_counter() < self._until:
            self._transport.write(self._request)
        elif not self.done.done():
            self.done.set_result(None)
            self._transport.close()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server closed the connection"))


async def load(address: Address, request: bytes, end: bytes, connections: int, seconds: float) -> Sample:
    """Load an address with this many connections for this long."""
    loop = asyncio.get_running_loop()
    cpu, began = address.cpu_us(), time.perf_counter()
    made = [
        (await loop.create_connection(lambda: Connection(request, end, began + seconds), "127.0.0.1", address.port))[1]
        for _ in range(connections)
    ]
    await asyncio.gather(*(one.done for one in made))
    took, cpu = time.perf_counter() - began, address.cpu_us() - cpu
    total = sum(one.chunks or one.answers for one in made)
    return Sample(rate=total / took, cpu_us=cpu / total)


async def many_streams(address: Address, count: int) -> dict[str, float]:
    """Open this many streams at once; how many arrived whole."""
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    request = request_bytes(tokens=MANY_TOKENS, stream=True)
    made = [
        (await loop.create_connection(lambda: Connection(request, STREAM_END, 0.0), "127.0.0.1", address.port))[1]
        for _ in range(count)
    ]
    done = await asyncio.wait_for(asyncio.gather(*(one.done for one in made), return_exceptions=True), 300)
    whole = sum(one.chunks >= MANY_TOKENS for one in made)
    errors = sum(one is not None for one in done)
    return {"streams": count, "whole": whole, "errors": errors, "seconds": time.perf_counter() - began}


STREAM_END = b"data: [DONE]\n\n\r\n0\r\n\r\n"


# The measurement -------------------------------------------------------------------------------------------------------


async def figures(addresses: Sequence[Address], args: argparse.Namespace) -> list[Figure]:
    """Take every figure."""
    await check_answer(addresses[0].port)
    found = []
    for name, request, ending, connections, limit in (
        ("requests/s", request_bytes(tokens=1, stream=False), b"}", CONNECTIONS, REQUESTS_LIMIT),
        ("streamed chunks/s", request_bytes(tokens=TOKENS, stream=True), STREAM_END, STREAMS, CHUNKS_LIMIT),
    ):
        samples: dict[str, list[Sample]] = {kind: [] for kind in KINDS}
        for number in range(args.runs + 1):
            for address in addresses if number % 2 else reversed(addresses):
                sample = await load(address, request, ending, connections, args.seconds)
                if number:
                    samples[address.kind].append(sample)
        bare = statistics.median(one.rate for one in samples["bare"])
        for kind in KINDS[1:]:
            seen = statistics.median(one.rate for one in samples[kind])
            cpu = statistics.median(one.cpu_us for one in samples[kind])
            found.append(
                Figure(
                    name=name,
                    kind=kind,
                    bare=round(bare, 1),
                    seen=round(seen, 1),
                    ratio=round(seen / bare, 4),
                    cpu_us=round(cpu, 1),
                    limit=limit,
                    met=seen / bare >= limit,
                    runs=args.runs,
                )
            )
    return found


async def check_answer(port: int) -> None:
    """See that an answer is 200 and ends as the client expects: its one brace at a line's end is the last byte."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request_bytes(tokens=1, stream=False))
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    body = await reader.readexactly(length)
    assert body.endswith(b"}"), body
    writer.close()


def main() -> int:
    """Measure, print, write; exit code 1 if a figure misses its limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="loads per figure and address (default 7)")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds of one load (default 1)")
    parser.add_argument("--http", choices=("h11", "httptools"), default="h11", help="the engine's parser (default h11)")
    parser.add_argument("--streams", type=int, default=1000, help="streams at once (default 1000)")
    parser.add_argument("--gateway", choices=KINDS[1:], help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    if args.gateway:
        be_gateway(args.gateway, args.port)
        return 0
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])
    with engine(args.http) as port, contextlib.ExitStack() as stack:
        addresses = [Address(kind="bare", port=port)]
        addresses += [stack.enter_context(gateway(kind, port)) for kind in KINDS[1:]]
        found = asyncio.run(figures(addresses, args))
        streams = asyncio.run(many_streams(addresses[-1], args.streams))
    report(found, streams, args)
    return int(not all(one.met for one in found) or streams["whole"] != streams["streams"] or streams["errors"] > 0)


def report(found: Sequence[Figure], streams: dict[str, float], args: argparse.Namespace) -> None:
    """Print the table and write the JSON."""
    print(f"{'figure':<20}{'gateway':<12}{'bare':>10}{'through':>10}{'ratio':>8}{'limit':>7}{'CPU us':>9}")
    for one in found:
        print(
            f"{one.name:<20}{one.kind:<12}{one.bare:>10.0f}{one.seen:>10.0f}{one.ratio:>8.3f}{one.limit:>7.2f}"
            f"{one.cpu_us:>9.1f}   {'met' if one.met else 'MISSED'}"
        )
    print(
        f"{streams['streams']:.0f} streams at once: {streams['whole']:.0f} whole, {streams['errors']:.0f} errors, "
        f"{streams['seconds']:.1f} s"
    )
    machine = {"python": platform.python_version(), "kernel": platform.release(), "cpus": os.cpu_count()}
    results = {
        "machine": {**machine, "load": os.getloadavg()},
        "http": args.http,
        "at": time.time(),
        "figures": [asdict(one) for one in found],
        "streams": streams,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
