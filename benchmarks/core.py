"""Torpor's own costs: imports, the command line, the delay until ready, and core's share of a wake.

    .venv/bin/python benchmarks/core.py [--runs 7]

Every figure is a median. Imports and commands are timed as whole processes, alternating with a bare interpreter, so a
change of the machine's speed affects both. The delay and the wake are measured on the stand-in engine: real processes and
real HTTP, no model. Prints a table and writes benchmarks/results/core.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from torpor import Deployment, Model
from torpor.runtime.boot import Boot
from torpor.runtime.transport import EngineTransport
from torpor.testing import StandIn
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    import httpx

ROOT = Path(__file__).resolve().parent.parent
TORPOR = str(Path(sys.executable).with_name("torpor"))

# Prints the Unix time at which a port accepts its first connection: from outside, so that none of this process's locks delays it.
WATCH_PORT = """
import socket, sys, time
while True:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", int(sys.argv[1]))) == 0:
            print(time.time())
            break
    time.sleep(0.001)
"""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured figure and its limit, milliseconds."""

    name: str
    limit_ms: float
    median_ms: float
    low_ms: float
    high_ms: float
    runs: int


def figure(name: str, limit_ms: float, samples: list[float]) -> Figure:
    """Sum up samples in milliseconds."""
    return Figure(
        name=name,
        limit_ms=limit_ms,
        median_ms=round(statistics.median(samples), 1),
        low_ms=round(min(samples), 1),
        high_ms=round(max(samples), 1),
        runs=len(samples),
    )


def process_ms(argv: list[str]) -> float:
    """Wall time of a whole process, milliseconds."""
    started = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT, timeout=60)
    return (time.perf_counter() - started) * 1000


def over_bare(argv: list[str], runs: int) -> list[float]:
    """Milliseconds of a process over a bare interpreter's, pair by pair, after one pair that is not counted."""
    bare = [sys.executable, "-c", "pass"]
    pairs = [(process_ms(argv), process_ms(bare)) for _ in range(runs + 1)]
    return [whole - start for whole, start in pairs[1:]]


def one_boot() -> tuple[float, float]:
    """Start, sleep and wake the stand-in once: readiness lag and core's own share of the wake, milliseconds."""
    port = unused_port()
    boot = Boot(Deployment(name="bench", model=Model(path="/tiny"), plugins=(StandIn(),), port=port))
    watcher = subprocess.Popen([sys.executable, "-c", WATCH_PORT, str(port)], stdout=subprocess.PIPE, text=True)
    answers = _count_answers()
    try:
        boot.cold_start()
        opened = float(watcher.communicate(timeout=10)[0])
        lag = next(record.ended_at for record in boot.report.records if record.stage == "ready") - opened
        boot.sleep()
        answers.clear()
        started = time.perf_counter()
        boot.wake()
        own = time.perf_counter() - started - sum(answers)
    finally:
        boot.stop()
        watcher.kill()
        watcher.wait()
    return lag * 1000, own * 1000


def _count_answers() -> list[float]:
    """Collect the seconds of every request from the moment it goes to the socket until its answer is there."""
    seconds: list[float] = []
    plain = _PLAIN_SEND

    def timed(self: EngineTransport, request: httpx.Request) -> httpx.Response:
        started = time.perf_counter()
        try:
            return plain(self, request)
        finally:
            seconds.append(time.perf_counter() - started)

    EngineTransport.handle_request = timed  # type: ignore[method-assign] # a benchmark's probe, gone with its process
    return seconds


_PLAIN_SEND = EngineTransport.handle_request


def measure(runs: int) -> list[Figure]:
    """Take every figure."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])
    boots = [one_boot() for _ in range(runs)]
    plan = [process_ms([TORPOR, "plan", "apps/qwen3_sglang.py"]) for _ in range(runs + 1)][1:]
    return [
        figure("import torpor, over bare Python", 60, over_bare([sys.executable, "-c", "import torpor"], runs)),
        figure("torpor --help, over bare Python", 200, over_bare([TORPOR, "--help"], runs)),
        figure("torpor plan apps/qwen3_sglang.py", 1500, plan),
        figure("port open -> ready", 60, [lag for lag, _ in boots]),
        figure("core's own share of a wake", 50, [own for _, own in boots]),
    ]


def main() -> int:
    """Measure, print, write; exit code 1 when a figure misses its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="samples per figure (default 7, at least 5)")
    runs = max(5, parser.parse_args().runs)
    figures = measure(runs)
    print(f"{'figure':<36}{'limit':>9}{'median':>10}{'min':>9}{'max':>9}   ms, {runs} runs")
    for item in figures:
        verdict = "met" if item.median_ms <= item.limit_ms else "MISSED"
        print(
            f"{item.name:<36}{item.limit_ms:>9.0f}{item.median_ms:>10.1f}{item.low_ms:>9.1f}{item.high_ms:>9.1f}   {verdict}"
        )
    machine = {"python": platform.python_version(), "kernel": platform.release()}
    results = ROOT / "benchmarks" / "results" / "core.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps({"machine": machine, "figures": [asdict(item) for item in figures]}, indent=2) + "\n")
    return int(any(item.median_ms > item.limit_ms for item in figures))


if __name__ == "__main__":
    sys.exit(main())
