"""The guard's cost: the same minimal streaming application with and without the guard, each in its own server.

    .venv/bin/python benchmarks/guard.py [--runs 25] [--seconds 0.4] [--http h11]

Both servers are uvicorn with h11, as SGLang's own dependencies give it (0.5.16, 0.5.23: uvicorn without httptools; with
`--http httptools` the guard's 4 us weigh more), and run side by side; the load goes to one of them at a time, in many short
pairs whose order alternates, so a change of the machine's speed affects both. Every figure is the median of the pairs'
ratios or differences. Next to the rates it prints the processor time of the server itself, which other programs on
the machine disturb less. The client writes its bytes itself and counts those that come back. Prints a table and writes
benchmarks/results/guard.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeAlias, cast

from typing_extensions import override

from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.guard.messages import App, Receive, Scope, Send

ROOT = Path(__file__).resolve().parent.parent
Parser: TypeAlias = Literal["h11", "httptools"]

CONNECTIONS = 64
STREAMS = 8
CHUNKS = 1000
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":" token"}}]}\n\n'
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Tell me about the moon. " * 10}]}).encode()
# Headers of usual clients: the guard checks all of them.
HEADERS = (
    b"Host: 127.0.0.1:8000\r\nAccept: application/json\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
    b"User-Agent: OpenAI/Python 1.0\r\nContent-Type: application/json\r\nAuthorization: Bearer none\r\nX-Request-Id: 1\r\n"
)
KEY = "benchmark-key-of-no-secrecy"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure: what the guard changes, and its limit."""

    name: str
    bare: float
    guarded: float
    change: float
    low: float
    high: float
    limit: float
    met: bool
    runs: int


# The servers ---------------------------------------------------------------------------------------------------------


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """A small answer on /v1/chat, a stream on /v1/stream."""
    while (await receive()).get("more_body"):
        pass
    if scope["path"] == "/v1/chat":
        body = b'{"choices":[{"message":{"content":"The moon."}}]}'
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for _ in range(CHUNKS):
        await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
        await asyncio.sleep(0)  # tokens come one by one
    await send({"type": "http.response.body", "body": b""})


def serve(port: int, *, guarded: bool, parser: Parser) -> None:
    """Run one of the two servers until it is killed."""
    import uvicorn  # noqa: PLC0415 - the client needs none

    from torpor.guard import Guard, GuardRules  # noqa: PLC0415

    rules = GuardRules(public=("/v1/chat", "/v1/stream"))
    app: App = Guard(application, rules, key=KEY, replica_id="benchmark") if guarded else application
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False, lifespan="off", http=parser)


class Running:
    """A server process of this file's, `bare` or `guarded`, on a free port."""

    def __init__(self, name: str, parser: Parser) -> None:
        self.name = name
        self.port = unused_port()
        argv = [sys.executable, __file__, "--serve", name, "--port", str(self.port), "--http", parser]
        self._process = subprocess.Popen(argv, cwd=ROOT)

    def __enter__(self) -> Self:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.02)
        self.__exit__()
        raise SystemExit(f"the {self.name} server did not start")

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def cpu_us(self) -> float:
        """Processor time of its one thread so far (schedstat counts nanoseconds)."""
        return int(Path(f"/proc/{self._process.pid}/schedstat").read_text().split()[0]) / 1000


# The client ----------------------------------------------------------------------------------------------------------


class Connection(asyncio.Protocol):
    """Sends one request after another on one connection; each answer has a known number of bytes."""

    def __init__(self, request: bytes) -> None:
        self.answers = 0
        self.seconds: list[float] = []
        self._request = request
        self._size = 0
        self._left = 0
        self._sent_at = 0.0
        self._until = 0.0
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._first = bytearray()

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    async def run(self, size: int, seconds: float) -> None:
        """Send requests for this long; `size` is the size of an answer in bytes."""
        self._size = size
        self._until = time.perf_counter() + seconds
        self._ask()
        await self._done
        assert self._transport is not None
        self._transport.close()

    def _ask(self) -> None:
        assert self._transport is not None
        self._left = self._size
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)

    @override
    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left > 0:
            return
        assert self._left == 0, f"an answer of another size: {data[:200]!r}"
        now = time.perf_counter()
        self.answers += 1
        self.seconds.append(now - self._sent_at)
        if now < self._until:
            self._ask()
        else:
            self._done.set_result(None)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(exc or ConnectionError("the server closed the connection"))


def request_bytes(path: str) -> bytes:
    """A POST request."""
    return b"POST %s HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n%s" % (path.encode(), HEADERS, len(BODY), BODY)


async def answer_size(port: int, path: str) -> int:
    """Bytes of one whole answer on a connection that stays open."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request_bytes(path))
    data = b""
    end = b"\r\n0\r\n\r\n" if path == "/v1/stream" else b'"}}]}'
    while not data.endswith(end):
        piece = await reader.read(65536)
        assert piece, data
        data += piece
    writer.close()
    await writer.wait_closed()
    assert data.startswith(b"HTTP/1.1 200 "), data[:200]
    return len(data)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The result of one load.

    Attributes:
        rate: answers (or chunks) per second.
        p50_ms: median time of one answer.
        cpu_us: the server's processor time per answer (or chunk).
    """

    rate: float
    p50_ms: float
    cpu_us: float


async def load(server: Running, path: str, connections: int, seconds: float) -> Sample:
    """Load a server with this many connections for this long."""
    size = await answer_size(server.port, path)
    loop = asyncio.get_running_loop()
    made = [
        (await loop.create_connection(lambda: Connection(request_bytes(path)), "127.0.0.1", server.port))[1]
        for _ in range(connections)
    ]
    cpu, started = server.cpu_us(), time.perf_counter()
    await asyncio.gather(*(connection.run(size, seconds) for connection in made))
    took, cpu = time.perf_counter() - started, server.cpu_us() - cpu
    total = sum(connection.answers for connection in made) * (CHUNKS if path == "/v1/stream" else 1)
    p50 = statistics.median(second for connection in made for second in connection.seconds)
    return Sample(rate=total / took, p50_ms=p50 * 1000, cpu_us=cpu / total)


# The measurement -----------------------------------------------------------------------------------------------------


Pairs: TypeAlias = list[tuple[Sample, Sample]]


async def pairs(servers: Sequence[Running], path: str, connections: int, args: argparse.Namespace) -> Pairs:
    """Pairs of bare and guarded in alternating order, after one that is not counted."""
    found = []
    for number in range(max(5, args.runs) + 1):
        taken = {}
        for server in servers if number % 2 else reversed(servers):
            taken[server.name] = await load(server, path, connections, args.seconds)
        found.append((taken["bare"], taken["guarded"]))
    return found[1:]


def figure(name: str, field: Literal["rate", "p50_ms", "cpu_us"], samples: Pairs, limit: float) -> Figure:
    """Sum up one field of the samples: rates and processor times as ratios, latencies as differences."""
    values = [(getattr(bare, field), getattr(guarded, field)) for bare, guarded in samples]
    changes = [guarded - bare if field == "p50_ms" else guarded / bare for bare, guarded in values]
    change = statistics.median(changes)
    return Figure(
        name=name,
        bare=round(statistics.median(bare for bare, _ in values), 3),
        guarded=round(statistics.median(guarded for _, guarded in values), 3),
        change=round(change, 4),
        low=round(min(changes), 4),
        high=round(max(changes), 4),
        limit=limit,
        met=change >= limit if field == "rate" else change <= limit,
        runs=len(samples),
    )


async def measure(servers: Sequence[Running], args: argparse.Namespace) -> list[Figure]:
    """Take every figure."""
    many = await pairs(servers, "/v1/chat", CONNECTIONS, args)
    one = await pairs(servers, "/v1/chat", 1, args)
    streams = await pairs(servers, "/v1/stream", STREAMS, args)
    return [
        figure(f"requests/s, {CONNECTIONS} connections", "rate", many, 0.95),
        figure("latency p50, one connection, ms", "p50_ms", one, 0.15),
        figure(f"streamed chunks/s, {STREAMS} streams", "rate", streams, 0.97),
        figure("server's CPU per request, us", "cpu_us", many, round(1 / 0.95, 3)),
        figure("server's CPU per chunk, us", "cpu_us", streams, round(1 / 0.97, 3)),
    ]


def open_door(server: Running) -> None:
    """Let the guard accept public requests."""
    url = f"http://127.0.0.1:{server.port}/_torpor/serve"
    urllib.request.urlopen(urllib.request.Request(url, method="POST", headers={"torpor-key": KEY}), timeout=10).close()


def main() -> int:
    """Measure, print, write; exit code 1 when a figure misses its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=25, help="pairs per figure (default 25, at least 5)")
    parser.add_argument("--seconds", type=float, default=0.4, help="load per sample, seconds (default 0.4)")
    parser.add_argument("--http", choices=("h11", "httptools"), default="h11", help="uvicorn's parser (default h11)")
    parser.add_argument("--serve", choices=("bare", "guarded"), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.port, guarded=args.serve == "guarded", parser=args.http)
        return 0
    with Running("bare", args.http) as bare, Running("guarded", args.http) as guarded:
        open_door(guarded)
        figures = asyncio.run(measure((bare, guarded), args))
    report(figures)
    return int(not all(item.met for item in figures))


def report(figures: list[Figure]) -> None:
    """Print the table and write the JSON."""
    print(f"{'figure':<32}{'bare':>10}{'guarded':>10}{'change':>9}{'limit':>8}{'min':>9}{'max':>9}")
    for item in figures:
        verdict = "met" if item.met else "MISSED"
        print(
            f"{item.name:<32}{item.bare:>10.6g}{item.guarded:>10.6g}{item.change:>9.4f}{item.limit:>8.2f}"
            f"{item.low:>9.4f}{item.high:>9.4f}   {verdict}"
        )
    machine = {"python": platform.python_version(), "kernel": platform.release(), "cpus": os.cpu_count()}
    results = ROOT / "benchmarks" / "results" / "guard.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps({"machine": machine, "figures": [asdict(item) for item in figures]}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
