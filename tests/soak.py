"""Soak test: mixed load on the stand-in, which sleeps and wakes all the time. `python -m tests.soak --seconds 600`.

Three processes: the framework (this one), the engine with the guard in it, and the clients. Every request has to be
answered, by 200 or by 503 with Retry-After, and neither the framework nor the guard may grow. Loopback only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import httpx
import psutil
import structlog

from torpor import Deployment, Model
from torpor.runtime.boot import Boot
from torpor.testing import StandIn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["GROWTH_BYTES", "Size", "SoakResult", "soak"]

CLIENTS = 8
AWAKE_S = (0.3, 2.0)
ASLEEP_S = (0.0, 1.0)
CLOSED = ("/release_memory_occupation", "/sleep")
PAUSE_S = 0.02
"""Seconds that a client waits between two requests: this is a mixed load, not a benchmark."""

GROWTH_BYTES = 8_000_000
"""How much a process may grow, bytes of resident memory. A leak of 100 bytes per request shows in ten minutes."""

_SETTLING_CYCLES = 3
_DRAIN_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Size:
    """Descriptors and memory of a process."""

    descriptors: int
    threads: int
    rss_bytes: int


@dataclass(kw_only=True)
class SoakResult:
    """Counts and sizes of a soak.

    Attributes:
        cycles: sleeps and wakes.
        answers: number of requests by kind and outcome, e.g. `chat 200`.
        bad: requests with a wrong answer or none; the first few are described.
        framework, guard: sizes of the two processes after the first cycles and at the end.
    """

    cycles: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    framework: tuple[Size, Size] | None = None
    guard: tuple[Size, Size] | None = None

    def complaints(self) -> list[str]:
        """List what is wrong; empty if the soak went well."""
        found = list(self.bad)
        for name, sizes in (("framework", self.framework), ("guard", self.guard)):
            if sizes is None:
                found.append(f"{name}: it was never measured")
                continue
            before, after = sizes
            if after.descriptors > before.descriptors or after.threads > before.threads:
                found.append(f"{name}: {before} became {after}")
            if after.rss_bytes - before.rss_bytes > GROWTH_BYTES:
                found.append(f"{name}: grew by {after.rss_bytes - before.rss_bytes} bytes")
        return found


def soak(
    *, seconds: float, port: int, seed: int = 0, standin: type[StandIn] = StandIn, http: str = "h11"
) -> SoakResult:
    """Run the soak. The engine and the clients end with it.

    Args:
        seconds: how long, at least `_SETTLING_CYCLES` cycles.
        port: a free one.
        seed: of the pauses between sleeps and wakes.
        standin: the plugin class of the engine's dialect.
        http: uvicorn's parser in the engine, h11 or httptools.
    """
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])
    engine = standin(token_s=0.002, extra_args=("--http", http))
    deployment = Deployment(
        name="soak", model=Model(path="/models/soak"), plugins=(engine,), port=port, drain_timeout_s=_DRAIN_S
    )
    boot, result = Boot(deployment), SoakResult()
    try:
        boot.cold_start()
        boot.serve()
        sizes = _cycles(boot, result, seconds, random.Random(seed))
        result.framework, result.guard = sizes
    finally:
        boot.stop()
        structlog.reset_defaults()
    return result


def _cycles(
    boot: Boot, result: SoakResult, seconds: float, pauses: random.Random
) -> tuple[tuple[Size, Size], tuple[Size, Size]]:
    """Let the engine sleep and wake under load, in two runs of clients. Measure sizes while no client is connected."""
    sizes = []
    end = time.monotonic() + seconds
    for least, until in ((_SETTLING_CYCLES, time.monotonic() + seconds / 4), (1, end)):
        with subprocess.Popen(
            [sys.executable, "-m", "tests.soak", "--client", str(boot.deployment.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        ) as clients:
            done = 0
            while done < least or time.monotonic() < until:
                time.sleep(pauses.uniform(*AWAKE_S))
                boot.sleep(for_snapshot=False)
                time.sleep(pauses.uniform(*ASLEEP_S))
                boot.wake()
                done += 1
            said, _ = clients.communicate(timeout=60)
        result.cycles += done
        seen = json.loads(said)
        result.answers = dict(Counter(result.answers) + Counter(seen["answers"]))
        result.bad += seen["bad"]
        sizes.append((_size(os.getpid()), _size(boot.running_engine.pid)))
    before, after = sizes
    return (before[0], after[0]), (before[1], after[1])


def _size(pid: int) -> Size:
    """Descriptors and memory of a process, after recently closed connections are released."""
    process = psutil.Process(pid)
    best = _now(process)
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        time.sleep(0.05)
        now = _now(process)
        best = Size(
            descriptors=min(best.descriptors, now.descriptors),
            threads=min(best.threads, now.threads),
            rss_bytes=now.rss_bytes,
        )
    return best


def _now(process: psutil.Process) -> Size:
    return Size(descriptors=process.num_fds(), threads=process.num_threads(), rss_bytes=int(process.memory_info().rss))


# --- the clients, in their own process -----------------------------------------------------------------------------


class _Clients:
    """Sends a mixed load until its input ends."""

    def __init__(self, port: int) -> None:
        self.answers: Counter[str] = Counter()
        self.bad: list[str] = []
        self._url = f"http://127.0.0.1:{port}"
        self._stop = threading.Event()

    def stop(self) -> None:
        self._stop.set()

    async def run(self) -> None:
        await asyncio.gather(*(self._one(number) for number in range(CLIENTS)))

    async def _one(self, number: int) -> None:
        """Run one client, with one connection for all requests or a new one for each."""
        dice = random.Random(number)
        kinds: tuple[tuple[str, Callable[[httpx.AsyncClient, random.Random], Awaitable[httpx.Response]]], ...] = (
            ("chat", _chat),
            ("stream", _stream),
            ("models", lambda client, _: client.get("/v1/models")),
            ("closed", lambda client, _: client.post(dice.choice(CLOSED), json={})),
            ("health", lambda client, _: client.get("/health")),
        )
        headers = {"connection": "close"} if number % 2 else {}
        async with httpx.AsyncClient(base_url=self._url, headers=headers, timeout=30.0, trust_env=False) as client:
            while not self._stop.is_set():
                kind, ask = dice.choice(kinds)
                try:
                    self._judge(kind, await ask(client, dice))
                except httpx.HTTPError as error:
                    self._complain(f"{kind}: no answer, {type(error).__name__}: {error}")
                await asyncio.sleep(PAUSE_S)

    def _judge(self, kind: str, response: httpx.Response) -> None:
        status = response.status_code
        self.answers[f"{kind} {status}"] += 1
        if kind == "closed":
            right = status == 404
        elif status == 503:
            right = response.headers.get("retry-after", "").isdigit()
        else:
            right = status == 200 and (kind != "stream" or response.text.endswith("data: [DONE]\n\n"))
        if not right:
            self._complain(f"{kind}: {status} {dict(response.headers)} {response.text[:200]!r}")

    def _complain(self, what: str) -> None:
        self.answers["bad"] += 1
        if len(self.bad) < 20:
            self.bad.append(what)


async def _chat(client: httpx.AsyncClient, dice: random.Random) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "a" * dice.randrange(4000)}], "max_tokens": dice.randrange(1, 50)}
    return await client.post("/v1/chat/completions", json=body)


async def _stream(client: httpx.AsyncClient, dice: random.Random) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "b"}], "max_tokens": dice.randrange(1, 200), "stream": True}
    return await client.post("/v1/chat/completions", json=body)


def _run_clients(port: int) -> None:
    """Send until standard input ends, then print the counts."""
    clients = _Clients(port)

    def wait_for_the_end() -> None:
        sys.stdin.read()
        clients.stop()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    asyncio.run(clients.run())
    print(json.dumps({"answers": clients.answers, "bad": clients.bad}))


def main() -> int:
    """Run the soak, or its clients. Return 1 if something was lost or grew."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--port", type=int, default=18431)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--http", choices=("h11", "httptools"), default="h11", help="uvicorn's parser in the engine")
    parser.add_argument("--client", type=int, default=0, metavar="PORT", help="be the clients of a running soak")
    args = parser.parse_args()
    if args.client:
        _run_clients(args.client)
        return 0
    result = soak(seconds=args.seconds, port=args.port, seed=args.seed, http=args.http)
    print(json.dumps(asdict(result), indent=2))
    for complaint in (complaints := result.complaints()):
        print(f"BAD: {complaint}")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
