"""What the gateway costs before a restored replica: 1, 100 and 1,000 streams at once, and requests per second.

    .venv/bin/python -m benchmarks.gateway_restored [--runs 5] [--seconds 1] [--http h11]

The engine is the stand-in behind its guard, twice: as a process of its own (bare), and restored by `torpor snapshot restore`, which
has the gateway in its process. The load goes to one of them at a time, in short turns whose order alternates. Every ratio is the
median of the turns' ratios; beside it stands the gateway's processor time for each chunk or answer, which other programs on the
machine disturb less. Writes benchmarks/results/gateway-restored-HTTP.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import statistics
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from benchmarks.gateway import STREAM_END, Address, Sample, check_answer, engine, load, request_bytes
from benchmarks.ran import what_ran

from torpor.cli.timing import command, first_token, running
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
APP = """
from torpor import Deployment, Model, Scaling
from torpor.testing import StandIn

deployment = Deployment(
    name="gateway-restored",
    model=Model(path="/models/bench", served_name="bench"),
    plugins=(StandIn(token_s=0.0, warmup_requests=0, extra_args=("--http", "{http}")),),
    port={port},
    scaling=Scaling(target_concurrency=2000, max_concurrency=4000),
)
"""
LOADS = (
    ("requests/s", 32, 1, False),
    ("1 stream, chunks/s", 1, 500, True),
    ("100 streams, chunks/s", 100, 100, True),
    ("1000 streams, chunks/s", 1000, 20, True),
)
"""Name, connections, tokens of an answer, whether it is streamed."""
_CAPTURE_S, _RESTORE_S = 300, 120.0


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One figure: medians of all turns.

    Attributes:
        name: of the load.
        bare_rate: answers or chunks per second of the bare engine.
        gateway_rate: the same through the gateway.
        ratio: of both.
        bare_rates: of each turn.
        gateway_rates: of each turn.
        gateway_cpu_us: the gateway's processor time for each answer or chunk.
    """

    name: str
    bare_rate: float
    gateway_rate: float
    ratio: float
    bare_rates: list[float]
    gateway_rates: list[float]
    gateway_cpu_us: float


@contextlib.contextmanager
def restored(http: str) -> Iterator[Address]:
    """Capture the stand-in and restore it behind the gateway."""
    with tempfile.TemporaryDirectory() as work:
        app, folder, port = Path(work) / "app.py", Path(work) / "snapshot", unused_port()
        app.write_text(APP.format(http=http, port=unused_port()))
        subprocess.run(command("snapshot", "create", str(app), str(folder)), check=True, timeout=_CAPTURE_S)
        words = ("snapshot", "restore", str(folder), "--json", "--port", str(port))
        with running(command(*words)) as (process, began):
            first_token(process, began, port=port, model="bench", timeout_s=_RESTORE_S)
            yield Address(kind="gateway", port=port, pid=process.pid)


async def measure(bare: Address, gateway: Address, runs: int, seconds: float) -> list[Seen]:
    """Take every figure; the first turn of each is not counted."""
    await check_answer(bare.port)
    await check_answer(gateway.port)
    return [await _measured((bare, gateway), runs, seconds, one) for one in LOADS]


async def _measured(
    addresses: tuple[Address, Address], runs: int, seconds: float, wanted: tuple[str, int, int, bool]
) -> Seen:
    name, connections, tokens, stream = wanted
    request, ending = request_bytes(tokens=tokens, stream=stream), STREAM_END if stream else b"}"
    samples: dict[str, list[Sample]] = {"bare": [], "gateway": []}
    for number in range(runs + 1):
        for address in addresses if number % 2 else reversed(addresses):
            sample = await load(address, request, ending, connections, seconds)
            if number:
                samples[address.kind].append(sample)
    rates = {kind: [one.rate for one in taken] for kind, taken in samples.items()}
    medians = {kind: statistics.median(taken) for kind, taken in rates.items()}
    return Seen(
        name=name,
        bare_rate=round(medians["bare"], 1),
        gateway_rate=round(medians["gateway"], 1),
        ratio=round(statistics.median(two / one for one, two in zip(rates["bare"], rates["gateway"], strict=True)), 4),
        bare_rates=[round(one, 1) for one in rates["bare"]],
        gateway_rates=[round(one, 1) for one in rates["gateway"]],
        gateway_cpu_us=round(statistics.median(one.cpu_us for one in samples["gateway"]), 2),
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="turns per figure and address (default 5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds of one load (default 1)")
    parser.add_argument("--http", choices=("h11", "httptools"), default="h11", help="the engines' parser (default h11)")
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])
    with engine(options.http) as port, restored(options.http) as gateway:
        bare = Address(kind="bare", port=port)
        found = asyncio.run(measure(bare, gateway, options.runs, options.seconds))
    kind = f"gateway-restored-{options.http}"
    results = what_ran(kind, http=options.http, runs=options.runs, figures=[asdict(one) for one in found])
    target = ROOT / "benchmarks" / "results" / f"{kind}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{'load':<26}{'bare':>10}{'gateway':>10}{'ratio':>8}{'gateway CPU us':>16}")
    for one in found:
        print(
            f"{one.name:<26}{one.bare_rate:>10.0f}{one.gateway_rate:>10.0f}{one.ratio:>8.3f}{one.gateway_cpu_us:>16.1f}"
        )


if __name__ == "__main__":
    main()
