"""Fuzz of the gateway of several models with raw bytes: `python -m tests.fuzz_gateway --streams 20000`.

Half of the streams go to a gateway in front of two engines that read with h11, a parser that shares no code with the gateway. Half
go to `torpor serve` with two stand-ins behind their guards. Each stream is one connection: whole requests, requests that two
parsers could read differently, and random damage, cut into random pieces. Afterwards

* every request that an engine read is one that h11 reads in a stream, the same in method, target, headers and body (but an alias);
* h11 found nothing wrong in what reached an engine;
* each stream got whole answers, no more than it has requests, and then the end of the connection;
* the process lives, answers, and has not grown; no stand-in was asked for anything but what its engine offers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import h11
import psutil

from tests.platforms.local.serve.served import ask, serving_command, write_app
from tests.raw_streams import ALIAS, MODELS, Seen, h11_server, read_by_h11, seen_by, stream, without_alias
from tests.serving.scripted import Engine, Leases
from torpor.serving.bodies import ChunkedBody
from torpor.serving.gateway import HttpGateway

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["FuzzResult", "H11Engine", "fuzz", "send", "wrong_answers"]

GROWTH_BYTES = 16_000_000
_CLOSES_S = 15.0
_ANSWERS_S = 5.0
_AT_ONCE = 16
_MOST_DESCRIBED = 20
_OK, _FAILED = 200, 500
_HEAD = re.compile(rb"HTTP/1\.[01] (\d{3})[^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n")
_STATUS = re.compile(rb"HTTP/1\.1 ([2-5]\d\d) [A-Z\r]")
_LENGTH = re.compile(rb"(?i)\ncontent-length: *(\d+)")


class H11Engine(Engine):
    """An engine that reads with h11, writes down what it read, and what it could not read.

    Attributes:
        seen: whole requests.
        refused: what h11 said about others.
    """

    def __init__(self) -> None:
        super().__init__(self._talk)
        self.seen: list[Seen] = []
        self.refused: list[str] = []

    async def _talk(self, talk: object) -> None:
        reader, writer = talk.reader, talk.writer  # type: ignore[attr-defined]
        connection, request, body = h11_server(), None, b""
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                if connection.trailing_data[1]:
                    return  # the client left in the middle of its request
                self.refused.append(f"{error}: {request}")
                writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Request):
                request, body = event, b""
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage) and request is not None:
                self.seen.append(seen_by(request, body))
                with_body = b"" if request.method == b"HEAD" else b"ok"
                head = h11.Response(status_code=200, headers=[("content-length", "2")])
                writer.write((connection.send(head) or b"") + with_body)
                if connection.their_state is not h11.DONE:
                    return
                connection = _after(connection)
            else:
                return


def _after(connection: h11.Connection) -> h11.Connection:
    """A parser for the next request on the same connection."""
    fresh = h11_server()
    fresh.receive_data(connection.trailing_data[0])
    return fresh


# One connection


class Got(NamedTuple):
    """What a stream got: every byte, and whether the gateway closed the connection in time."""

    answer: bytes
    closed: bool


async def send(port: int, data: bytes, dice: random.Random, *, answers: int = 0) -> Got:
    """Send a stream in pieces, close the sending side, and read until the end.

    Args:
        port: of the gateway.
        data: the stream.
        dice: decides about the pieces.
        answers: close the sending side only after so many answers, or a while later: uvicorn drops the request of a client that
            has closed it.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    cuts = sorted(dice.randrange(len(data) + 1) for _ in range(dice.choice((0, 0, 1, 3, 8))))
    answer, came = bytearray(), asyncio.Event()

    async def write() -> None:
        for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            writer.write(data[begin:end])
            await writer.drain()
            await asyncio.sleep(dice.choice((0, 0, 0, 0.002)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ANSWERS_S):
                while len(_STATUS.findall(answer)) < answers and not reader.at_eof():
                    came.clear()
                    await came.wait()
        writer.write_eof()

    async def read() -> None:
        while piece := await reader.read(65536):
            answer.extend(piece)
            came.set()
        came.set()

    closed = True
    try:
        async with asyncio.timeout(_CLOSES_S):
            await asyncio.gather(write(), read(), return_exceptions=True)
    except TimeoutError:
        closed = False
    finally:
        writer.transport.abort()
    return Got(bytes(answer), closed)


def wrong_answers(got: Got, requests: Sequence[Seen], *, whole: bool) -> str:
    """What is wrong with the answers of a stream; empty if nothing is.

    Args:
        got: the answers.
        requests: what h11 read in the stream.
        whole: whether h11 read all of it.
    """
    if not got.closed:
        return f"the connection stayed open after {got.answer[:100]!r}"
    statuses, last, heads = list[int](), b"", [request.method == b"HEAD" for request in requests]
    position = 0
    while position < len(got.answer):
        head = _HEAD.match(got.answer, position)
        if head is None:
            return f"no answer begins at {got.answer[position : position + 100]!r}"
        status, position, last = int(head[1]), head.end(), head[0]
        if status >= _OK:
            to_head = len(statuses) < len(heads) and heads[len(statuses)]
            has_body = (
                not to_head or b"\r\nconnection: close" in last.lower()
            )  # a head that cannot be read has no method
            position = _end_of_body(got.answer, head) if has_body else position
            statuses.append(status)
    if len(statuses) > len(requests) + 1:
        return f"{len(statuses)} answers to {len(requests)} requests"
    if _FAILED in statuses:
        return "an answer is 500"
    if whole and len(statuses) < len(requests) and b"\r\nconnection: close" not in last.lower():
        return f"{len(statuses)} answers to {len(requests)} whole requests"
    return ""


def _end_of_body(answer: bytes, head: re.Match[bytes]) -> int:
    """The index behind the body of an answer with this head."""
    if length := _LENGTH.search(head[0]):
        return head.end() + int(length[1])
    body = ChunkedBody(limited=False)
    return body.feed(answer, head.end())


# Many of them


@dataclass(kw_only=True)
class FuzzResult:
    """What a fuzz has seen.

    Attributes:
        seed: of the streams.
        streams: how many were sent.
        requests: that h11 read in them.
        reached: requests that reached an engine.
        statuses: of all answers.
        growth_bytes: of each gateway after the first tenth.
        broken: descriptions of what must not happen and did.
    """

    seed: int
    streams: int = 0
    requests: int = 0
    reached: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    growth_bytes: list[int] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def complain(self, what: str) -> None:
        """Note what must not happen."""
        if len(self.broken) < _MOST_DESCRIBED:
            self.broken.append(what)


class _Streams:
    """Sends streams to one gateway and judges the answers; collects what engines may see."""

    def __init__(self, result: FuzzResult, port: int, gateway: psutil.Process) -> None:
        self._result, self._port, self._gateway = result, port, gateway
        self._sent = 0
        self.allowed: set[Seen] = set()

    def run(self, count: int) -> None:
        """Send this many, and look at the process before and after."""
        asyncio.run(self._send(max(1, count // 10)))
        before = self._gateway.memory_info().rss
        asyncio.run(self._send(count - count // 10))
        grown = self._gateway.memory_info().rss - before
        self._result.growth_bytes.append(grown)
        if grown > GROWTH_BYTES:
            self._result.complain(f"the gateway grew by {grown} bytes")

    async def _send(self, count: int) -> None:
        left = iter(range(count))

        async def worker() -> None:
            for _ in left:
                self._sent += 1
                await self._one(random.Random(f"{self._result.seed} {self._port} {self._sent}"))

        await asyncio.gather(*(worker() for _ in range(_AT_ONCE)))

    async def _one(self, dice: random.Random) -> None:
        result, data = self._result, stream(dice)
        requests, whole = read_by_h11(data)
        self.allowed.update(requests, map(without_alias, requests))
        try:
            answers = len(requests) if whole else 0
            got = await send(self._port, data, dice, answers=answers)
        except OSError as error:
            result.complain(f"nobody takes connections: {error}")
            return
        result.streams += 1
        result.requests += len(requests)
        result.statuses.update(map(int, _STATUS.findall(got.answer)))
        if wrong := wrong_answers(got, requests, whole=whole):
            result.complain(f"{wrong}; sent {data[:1000]!r}")


def fuzz(folder: Path, *, streams: int, seed: int) -> FuzzResult:
    """Fuzz both gateways. Everything that it starts ends with it.

    Args:
        folder: for app files, journals and logs; the environment's `TORPOR_CACHE` lies below it.
        streams: how many, half to each gateway.
        seed: of the streams.
    """
    result = FuzzResult(seed=seed)
    _fuzz_the_data_path(result, streams // 2)
    _fuzz_the_command(result, folder, streams - streams // 2)
    return result


def _fuzz_the_data_path(result: FuzzResult, count: int) -> None:
    with H11Engine() as a, H11Engine() as b, _gateway([a.port, b.port]) as (gateway, port):
        streams = _Streams(result, port, gateway)
        streams.run(count)
        for engine in (a, b):
            result.reached += len(engine.seen)
            for refused in engine.refused:
                result.complain(f"an engine could not read: {refused}")
            for seen in set(engine.seen) - streams.allowed:
                result.complain(f"an engine read what no stream holds: {seen}")
        if not gateway.is_running():
            result.complain("the gateway ended")


def _fuzz_the_command(result: FuzzResult, folder: Path, count: int) -> None:
    journals = [folder / f"journal-{name}" for name in MODELS]
    files = [
        write_app(folder, name, more=f"journal={str(journal)!r}")
        for name, journal in zip(MODELS, journals, strict=True)
    ]
    config = folder / "serve.toml"
    names = {MODELS[0]: [MODELS[0], ALIAS], MODELS[1]: [MODELS[1]]}
    config.write_text("".join(f'[deployment.{one}]\naliases = {names[one]}\ncapture = "never"\n' for one in MODELS))
    with serving_command(folder, files, "--config", str(config)) as command:
        for name in MODELS:
            ask(command.port, name)
        before = [_asked(journal) for journal in journals]
        gateway = psutil.Process(command.process.pid)
        streams = _Streams(result, command.port, gateway)
        streams.run(count)
        targets = {seen.target.decode("ascii").partition("?")[0] for seen in streams.allowed}
        for journal, known in zip(journals, before, strict=True):
            asked = _asked(journal)[len(known) :]
            result.reached += len(asked)
            for path in set(asked) - targets:
                result.complain(f"a stand-in was asked for {path!r}, which no stream holds")
            if "/poison" in asked:
                result.complain("a stand-in was asked for /poison")
        for name in MODELS:
            if (status := ask(command.port, name).status) != _OK:
                result.complain(f"afterwards a chat with {name} got {status}")
        if command.process.poll() is not None or "Traceback" in command.log.read_text():
            result.complain(f"the command failed: {command.log.read_text()[-500:]}")


def _asked(journal: Path) -> list[str]:
    """The paths of every request that reached a stand-in."""
    return [str(json.loads(line)["path"]) for line in journal.read_text().splitlines()] if journal.exists() else []


@contextlib.contextmanager
def _gateway(engines: Sequence[int]) -> Iterator[tuple[psutil.Process, int]]:
    """Run the data path in its own process; yield the process and the port."""
    argv = [sys.executable, "-m", "tests.fuzz_gateway", "--gateway", *map(str, engines)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        try:
            yield psutil.Process(process.pid), int(process.stdout.readline())
        finally:
            process.communicate()  # closes its standard input, which ends it


class _Way(Engine):
    """The way to an engine in another process."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._loop.close()
        self.port = port


def _run_gateway(engines: Sequence[int]) -> None:
    """Run the gateway until standard input ends."""
    leases = Leases(
        ways={name: _Way(port) for name, port in zip(MODELS, engines, strict=True)}, aliases={ALIAS: MODELS[0]}
    )
    with HttpGateway(leases) as gateway:
        print(gateway.port, flush=True)
        sys.stdin.read()


def main() -> int:
    """Run the fuzz, or its gateway. Return 1 if something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_gateway", description=__doc__)
    parser.add_argument("--streams", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--gateway", type=int, nargs=2, metavar="PORT", help="be the gateway of a running fuzz")
    args = parser.parse_args()
    if args.gateway:
        _run_gateway(args.gateway)
        return 0
    seed, began = random.SystemRandom().randrange(2**32) if args.seed is None else args.seed, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torpor-fuzz-") as place:
        os.environ["TORPOR_CACHE"] = str(Path(place) / "cache")
        result = fuzz(Path(place), streams=args.streams, seed=seed)
    print(f"seed {seed}: {result.streams} streams with {result.requests} requests, {time.monotonic() - began:.0f} s")
    print(f"statuses: {', '.join(f'{status} {count}' for status, count in sorted(result.statuses.items()))}")
    print(f"{result.reached} requests reached an engine; the gateways grew by {result.growth_bytes} bytes")
    for line in result.broken:
        print(f"BROKEN: {line}")
    return 1 if result.broken else 0


if __name__ == "__main__":
    sys.exit(main())
