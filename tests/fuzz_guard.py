"""Sends raw bytes to the guard of the stand-in engine: `python -m tests.fuzz_guard --requests 50000`.

The requests are malformed, write a path in many ways, carry wrong keys, give contradictory lengths, smuggle a second request,
have heads without an end, or are noise. Both of uvicorn's parsers are tested, with the limits that launchers set. Half of the
requests come while the engine serves, half while it sleeps. Afterwards

* the engine's journal shows calls of public paths only, and none while it slept;
* the engine lives, sleeps, wakes and answers;
* each request that is ambiguous, or has a head over a limit, got one refusal and a closed connection; nothing after it was read;
* the guard raised nothing that a server would log as an error, and no answer was a 500;
* the server's memory and descriptors have not grown.

Only the lifecycle, which runs at the same time, knows the lifecycle key.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil

from torpor.engine.start import start_engine
from torpor.guard import GuardRules
from torpor.guard.keys import LifecycleKey
from torpor.guard.protocol import IDENTITY
from torpor.runtime.guard_client import open_client
from torpor.testing import StandIn, StandInVLLM
from torpor.testing.ports import unused_port
from torpor.testing.standin.vllm import RENEW

if TYPE_CHECKING:
    from torpor.engine.handle import Engine

__all__ = ["FuzzReport", "fuzz"]

PUBLIC = ("/v1/chat/completions", "/v1/models")
DIALECTS: dict[str, type[StandIn]] = {standin.dialect: standin for standin in (StandIn, StandInVLLM)}
KEYED = StandIn.keyed_paths + StandInVLLM.keyed_paths
STEPS = tuple(path for standin in DIALECTS.values() for steps in standin.steps for path in steps)
CLOSED = ("/update_weights_from_disk", "/health_generate", "/docs", "/openapi.json", "/load_lora_adapter", "/")
CONTROL = tuple(
    f"/_torpor/{name}" for name in ("state", "serve", "drain", "asleep", "wake", "identity", "", "../metrics")
)
TARGETS = (*PUBLIC, *PUBLIC, *KEYED, *STEPS, *STEPS, *CLOSED, *CONTROL, "/health", "/ready")
METHODS = (
    "GET",
    "POST",
    "POST",
    "HEAD",
    "OPTIONS",
    "PUT",
    "DELETE",
    "PATCH",
    "TRACE",
    "CONNECT",
    "get",
    "PRI",
    "X" * 40,
)
CHAT = {"model": "standin", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
NOISE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)),  # a TLS handshake
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(30),  # an HTTP/2 preface
    b"GET /metrics\r\n",  # HTTP/0.9
    b"\r\n" * 50,
    b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 3000,
    b"GET /" + b"a" * 70_000,
    b"\x00" * 100,
)
AMBIGUOUS = (
    "Content-Length: 2\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: 2",
    "Content-Length: 2\r\nContent-Length: 3",
    "Content-Length: 2, 3",
    "Content-Length: -2",
    "Content-Length: 0x2",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: gzip",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding:\x0bchunked",
)
_CLOSES_S = 10.0
_CONNECTIONS = 24
_IDLE_S = 0.03
_PROBE = b"GET /health HTTP/1.1\r\nHost: fuzz\r\nConnection: close\r\n\r\n"
_PROBE_S = 30.0


@dataclass(kw_only=True)
class FuzzReport:
    """The result.

    Attributes:
        seed: of the random numbers.
        requests: how many were sent.
        seconds: how long that took.
        statuses: how often each status came back.
        reached: calls that reached the engine while it served, by path.
        reached_asleep: calls that reached it while it slept.
        broken: descriptions of what must not happen and did.
        memory_growth_mib: of the server process, from the first tenth on.
        descriptor_growth: of the server process, from the first tenth on.
    """

    seed: int
    requests: int = 0
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    reached: Counter[str] = field(default_factory=Counter)
    reached_asleep: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    memory_growth_mib: float = 0.0
    descriptor_growth: int = 0


def fuzz(requests: int, *, seed: int, folder: Path, standin: type[StandIn] = StandIn, http: str = "h11") -> FuzzReport:
    """Start a stand-in engine and fuzz its guard.

    Args:
        requests: how many, about; half while serving and half while asleep.
        seed: the same one gives the same bytes.
        standin: the plugin class of the engine's dialect.
        http: uvicorn's parser.
        folder: for the engine's journal and log.
    """
    report = FuzzReport(seed=seed)
    journal, log = folder / "journal", folder / "log"
    journal.touch()
    port = unused_port()
    argv = [
        sys.executable,
        "-m",
        "torpor.testing.standin",
        "--port",
        str(port),
        "--journal",
        str(journal),
        "--http",
        http,
    ]
    sleep, wake = standin.steps
    rules = GuardRules(
        public=PUBLIC, keyed=standin.keyed_paths, sleep=sleep, wake=wake, max_body_bytes=4096, max_in_flight=50
    )
    env = {"TORPOR_ENGINE_LOG": str(log), **standin.engine_env}
    engine = start_engine([*argv, "--dialect", standin.dialect], env=env, guard=rules)
    try:
        _Run(report, engine, port, journal, rules).run(requests)
    finally:
        engine.terminate(5)
    report.broken += [f"the server logged: {error}" for error in _errors(log.read_text(errors="replace"))]
    return report


def _errors(log: str) -> list[str]:
    """Return the last lines of tracebacks, except those of the server itself.

    Where garbage follows a request in the same packet, uvicorn answers 400 itself while the application runs, and h11 then
    refuses the application's answer. That happens to any application (uvicorn 0.54, h11_impl.send_400_response).
    """
    ends = re.findall(r"^Traceback .*\n(?: .*\n)+(\S.*)", log, re.MULTILINE)
    return [end for end in ends if not re.match(r"h11\._util\.(Local|Remote)ProtocolError: ", end)]


class _Run:
    def __init__(self, report: FuzzReport, engine: Engine, port: int, journal: Path, rules: GuardRules) -> None:
        self._report = report
        self._engine = engine
        self._port = port
        self._journal = journal
        self._rules = rules
        self._random = random.Random(report.seed)
        key = engine.guard_key or ""
        self._client = open_client(
            engine, port=port, timeout_s=_PROBE_S
        )  # makes the guard prove its identity during the fuzzing
        self._key = key
        self._kept = tuple(LifecycleKey(key).digests.values())

    def run(self, requests: int) -> None:
        with self._client:
            self._wait_ready()
            self._post("/_torpor/serve")
            self._fuzz(requests // 10)
            process = psutil.Process(self._engine.pid)
            memory, descriptors = process.memory_info().rss, process.num_fds()
            started = time.monotonic()
            self._fuzz(requests // 2 - requests // 10)
            self._check_state("serving")
            self._sleep()
            self._report.reached = self._new_calls(0, ignore=self._rules.sleep)
            slept = self._lines()
            self._fuzz(requests - requests // 2)
            self._report.seconds = time.monotonic() - started
            self._check_state("asleep")
            self._report.reached_asleep = self._new_calls(slept)
            self._wake()
            answer = self._client.post("/v1/chat/completions", json=CHAT)
            if answer.status_code != 200:
                self._report.broken.append(f"after all of it a chat gave {answer.status_code}")
            self._report.memory_growth_mib = (process.memory_info().rss - memory) / 2**20
            self._report.descriptor_growth = process.num_fds() - descriptors
            self._judge()

    def _judge(self) -> None:
        report = self._report
        for path in set(report.reached) - set(PUBLIC):
            report.broken.append(f"{path} reached the engine while it served")
        for path in report.reached_asleep:
            report.broken.append(f"{path} reached the engine while it slept")
        if report.statuses[500]:
            report.broken.append(f"{report.statuses[500]} answers were 500")
        if self._engine.poll() is not None:
            report.broken.append(f"the engine ended with {self._engine.poll()}")

    def _fuzz(self, count: int) -> None:
        asyncio.run(self._fuzz_all(self._report.requests + count))

    async def _fuzz_all(self, until: int) -> None:
        async def worker() -> None:
            while self._report.requests < until:
                if self._random.random() < 0.03:
                    self._report.requests += 1
                    await self._send_closing(*self._closing())
                    continue
                pieces = [self._one() for _ in range(self._random.choice((1, 1, 2, 5)))]
                self._report.requests += len(pieces)
                await self._send(b"".join(pieces))

        await asyncio.gather(*(worker() for _ in range(_CONNECTIONS)))

    async def _send(self, data: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(data)
        answer = bytearray()
        try:
            while await self._more(reader, answer):
                pass
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()
        self._report.statuses.update(int(found) for found in re.findall(rb"^HTTP/1\.1 (\d{3})", answer, re.MULTILINE))

    async def _send_closing(self, what: str, pieces: list[bytes], allowed: set[int]) -> None:
        """Send a request that must be refused once, and after which the server must close the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        answer = b""
        try:
            async with asyncio.timeout(_CLOSES_S):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                while data := await reader.read(65536):
                    answer += data
        except ConnectionError:
            pass  # the server closed while we wrote
        except TimeoutError:
            self._report.broken.append(f"{what}: the connection stayed open")
        finally:
            writer.transport.abort()
        found = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", answer)]
        self._report.statuses.update(found)
        if len(found) > 1 or set(found) - allowed:
            self._report.broken.append(f"{what}: got {found}")

    async def _more(self, reader: asyncio.StreamReader, answer: bytearray) -> bool:
        """Read more. False at the end, or if no answer is due: the request is unfinished, or all are answered.

        That is so when nothing comes although the server has had time: it has answered somebody who came later.
        """
        for waiting_for_the_server in (True, False):
            try:
                piece = await asyncio.wait_for(reader.read(65536), _IDLE_S)
            except TimeoutError:
                if waiting_for_the_server:
                    await asyncio.wait_for(self._probe(), _PROBE_S)
                continue
            answer += piece
            return bool(piece)
        return False

    async def _probe(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(_PROBE)
            await reader.read()
        finally:
            writer.transport.abort()

    # The requests

    def _one(self) -> bytes:
        choice = self._random.random()
        if choice < 0.03:
            return self._random.choice(NOISE)
        if choice > 0.92:
            return self._good()
        data = self._request()
        if choice < 0.08:
            return data[: self._random.randrange(len(data))]
        if choice < 0.16:
            return self._damaged(data)
        return data

    def _good(self) -> bytes:
        """Return a request that must pass while the engine serves, unless it is too large."""
        body = self._random.choice((json.dumps(CHAT),) * 4 + ("x" * 5000,))
        length = f"Content-Length: {len(body)}\r\n\r\n{body}"
        head = self._random.choice(("GET /v1/models", "POST /v1/chat/completions"))
        return f"{head} HTTP/1.1\r\nHost: fuzz\r\n{length}".encode()

    def _closing(self) -> tuple[str, list[bytes], set[int]]:
        """Return a request that is ambiguous or over a limit: its description, its bytes and the statuses that it may get."""
        pick = self._random
        path = pick.choice((*PUBLIC, *CLOSED, *CONTROL[:2], *STEPS, "/health"))
        start = f"{pick.choice(('GET', 'POST'))} {path} HTTP/1.1\r\nHost: fuzz\r\n"
        good = f"GET {PUBLIC[1]} HTTP/1.1\r\nHost: fuzz\r\n\r\n".encode()
        if pick.random() < 0.5:
            more = pick.choice(AMBIGUOUS)
            return more, [f"{start}{more}\r\n\r\n0\r\n\r\n".encode("latin-1") + good * pick.randint(1, 3)], {400, 501}
        chunks = f"POST {PUBLIC[0]} HTTP/1.1\r\nHost: fuzz\r\nTransfer-Encoding: chunked\r\n\r\n"
        large = {
            "a long value": [f"{start}a: ".encode(), *[b"x" * pick.randint(1, 65536)] * 400],
            "many headers": [start.encode(), *[b"a: b\r\n" * pick.randint(100, 9000)] * 300],
            "a long target": [f"GET {path}?".encode(), *[b"x" * 4096] * 400],
            "a whole head": [f"{start}a: {'x' * pick.randint(50_000, 200_000)}\r\n\r\n".encode() + good],
            "chunk extensions": [chunks.encode(), *[b"1;" + b"x" * 20_000 + b"\r\ny\r\n"] * 200],
            "trailers": [f"{chunks}0\r\n".encode(), *[b"t: x\r\n" * 5000] * 100],
        }
        what = pick.choice(tuple(large))
        return what, large[what], {400, 404, 413, 414, 431, 503}

    def _damaged(self, data: bytes) -> bytes:
        damaged = bytearray(data)
        for _ in range(self._random.randint(1, 4)):
            damaged[self._random.randrange(len(damaged))] = self._random.choice(b"\x00\r\n \t:/%.?#\xff" + b"aZ0")
        return bytes(damaged)

    def _request(self) -> bytes:
        method = self._random.choice(("GET", "POST") * 6 + METHODS)
        version = self._random.choice(("HTTP/1.1",) * 40 + ("HTTP/1.0", "HTTP/2", "http/1.1", "HTTP/1.1 "))
        body, lines = self._body()
        lines += [self._header() for _ in range(self._random.choice((0, 0, 1, 3)))]
        if self._random.random() < 0.95:
            lines.append("Host: fuzz")
        if self._random.random() < 0.5:
            lines.append("Connection: close")
        self._random.shuffle(lines)
        end = self._random.choice(("\r\n",) * 30 + ("\n", "\r"))
        return end.join((f"{method} {self._target()} {version}", *lines, "", "")).encode("latin-1", "replace") + body

    def _target(self) -> str:
        path = self._random.choice(TARGETS)
        for _ in range(self._random.choice((0, 0, 1, 1, 2))):
            path = self._written(path)
        return path

    def _written(self, path: str) -> str:
        """Return a spelling of the path that a careless parser may take for the path."""
        pick = self._random
        at = pick.randrange(len(path) + 1)
        forms = (
            path.upper(),
            f"/{path}",
            f"{path}/",
            f"http://fuzz{path}",
            f"{IDENTITY}?nonce={pick.choice(('0' * 64, '0' * 63, 'f' * 65, 'F' * 64, '%30' * 64, '0' * 9000, '', chr(0xFF)))}",
            f"{pick.choice(PUBLIC)}{pick.choice(('/..', '/../..', '/../../', '%2f..', ';', '?', '#', '%00', '%0d%0a', ''))}{path}",
            f"{path}{pick.choice(('?x=1', '#x', ';x', '%20', '%00', '.', '/.', '/..', '%2e', '*', '.json', chr(0xFF)))}",
            f"/{pick.choice(('.', '..', '%2e', '%2e%2e', 'x/..', '_torpor/..', 'health/..', 'v1', 'api'))}{path}",
            path[:at] + "".join(f"%{byte:02x}" for byte in path[at : at + 3].encode()) + path[at + 3 :],
            path[:at]
            + pick.choice(("/", "//", "\\", "%2f", "%5c", "%25", "%c0%af", "\t", "%", "%u002f", "+"))
            + path[at:],
            path.lstrip("/"),
            "".join(chr(pick.randrange(33, 256)) for _ in range(pick.randint(1, 60))),
        )
        return pick.choice(forms)

    def _header(self) -> str:
        pick = self._random
        path, key = pick.choice(TARGETS), self._wrong_key()
        return pick.choice(
            (
                f"torpor-key: {key}",
                f"Torpor-Key:{key}",
                f"torpor-key : {key}",
                f"torpor-key: {key}\r\ntorpor-key: {key}",
                f"torpor_key: {key}",
                f"x: y\r\n torpor-key: {key}",
                f"Authorization: Bearer {key}",
                f"X-HTTP-Method-Override: {pick.choice(METHODS)}",
                f"X-Original-URL: {path}",
                f"X-Rewrite-URL: {path}",
                f"X-Forwarded-Prefix: {path}",
                f"X-Forwarded-Host: {path}",
                "X-Forwarded-For: 127.0.0.1",
                "Expect: 100-continue",
                f"Connection: upgrade\r\nUpgrade: {pick.choice(('websocket', 'h2c', 'x'))}",
                "Origin: http://a\r\nAccess-Control-Request-Method: POST",
                "Connection: torpor-key",
                f"Cookie: {'a' * pick.choice((10, 9000))}",
                "no colon here",
                f"{chr(pick.randrange(256))}: {chr(pick.randrange(256))}",
            )
        )

    def _wrong_key(self) -> str:
        """Return a key that is nearly the right one."""
        key, pick = self._key, self._random
        at = pick.randrange(len(key))
        other = "A" if key[at] != "A" else "B"
        return pick.choice(
            (
                *self._kept,
                "",
                key[:-1],
                key + "A",
                key.swapcase(),
                key[:at] + other + key[at + 1 :],
                f"{key},{key}",
                "x" * 8000,
            )
        )

    def _body(self) -> tuple[bytes, list[str]]:
        """Return a body and the headers that give its length, or a wrong one."""
        pick = self._random
        inner = f"POST {pick.choice(STEPS)} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode()
        body = pick.choice((b"", b"", b"{}", json.dumps(CHAT).encode(), inner, pick.randbytes(50), b"x" * 5000))
        chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        if pick.random() < 0.6:
            return pick.choice(((body, [f"Content-Length: {len(body)}"]), (chunked, ["Transfer-Encoding: chunked"])))
        return pick.choice(
            (
                (body, []),
                (body, [f"Content-Length: {len(body) + pick.randint(-2, 2)}"]),
                (chunked, [f"Content-Length: {len(chunked)}", "Transfer-Encoding: chunked"]),
                (chunked, ["Content-Length: 4", "Transfer-Encoding: chunked"]),
                (
                    chunked,
                    [f"Transfer-Encoding: {pick.choice(('xchunked', 'gzip', 'chunked, gzip', ' chunked', 'CHUNKED'))}"],
                ),
                (b"ffffffffff\r\n" + body, ["Transfer-Encoding: chunked"]),
                (body, [f"Content-Length: {pick.choice(('-1', '1e3', '9' * 30, '0x5', '', '+2', '2, 3'))}"]),
                (body, ["Content-Length: 0", f"Content-Length: {len(body)}"]),
            )
        )

    # The lifecycle during the requests

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                if self._client.get("/v1/models").status_code == 200:
                    return
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.02)

    def _post(self, path: str, body: object = None) -> None:
        self._client.post(path, json={} if body is None else body).raise_for_status()

    def _sleep(self) -> None:
        self._post("/_torpor/drain", {"deadline_s": 10})
        for path in self._rules.sleep:
            self._post(path)
        self._post("/_torpor/asleep")

    def _wake(self) -> None:
        self._post("/_torpor/wake")
        for path in self._rules.wake:
            self._post(path, {"method": RENEW, "args": ["1"]})
        self._post("/_torpor/serve")

    def _check_state(self, state: str) -> None:
        deadline = time.monotonic() + 10
        while (told := self._client.get("/_torpor/state").json())["in_flight"] and time.monotonic() < deadline:
            time.sleep(0.02)
        if (told["state"], told["in_flight"]) != (state, 0):
            self._report.broken.append(f"the guard is {told}, not {state} with nothing in flight")

    def _lines(self) -> int:
        return len(self._journal.read_text().splitlines())

    def _new_calls(self, start: int, *, ignore: tuple[str, ...] = ()) -> Counter[str]:
        """Count what reached the engine since a line of its journal, without one call of each path in `ignore`."""
        calls = Counter(str(json.loads(line)["path"]) for line in self._journal.read_text().splitlines()[start:])
        calls.subtract(ignore)
        return +calls


def main() -> int:
    """Fuzz, and print the result. Return 1 if anything was broken."""
    parser = argparse.ArgumentParser(description="Raw HTTP against the guard in front of the stand-in engine.")
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, which is printed")
    parser.add_argument("--dialect", choices=DIALECTS, default="sglang")
    parser.add_argument("--http", choices=("h11", "httptools"), default="h11", help="uvicorn's parser")
    args = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if args.seed is None else args.seed
    with tempfile.TemporaryDirectory() as folder:
        report = fuzz(args.requests, seed=seed, folder=Path(folder), standin=DIALECTS[args.dialect], http=args.http)
    rate = report.requests / max(report.seconds, 0.001)
    print(f"{args.http}, seed {report.seed}: {report.requests} requests, {report.seconds:.0f} s, about {rate:.0f}/s")
    print(f"statuses: {', '.join(f'{status} {count}' for status, count in sorted(report.statuses.items()))}")
    print(f"reached the engine while it served: {dict(report.reached)}; while it slept: {dict(report.reached_asleep)}")
    print(f"server: {report.memory_growth_mib:+.1f} MiB, {report.descriptor_growth:+d} descriptors")
    if report.memory_growth_mib > 32 or report.descriptor_growth > 8:
        report.broken.append("the server grew")
    for line in report.broken:
        print(f"BROKEN: {line}")
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
