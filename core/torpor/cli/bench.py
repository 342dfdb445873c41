"""`torpor bench`: cold starts against restored starts or wakes of one app, in turn, on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from typing import TYPE_CHECKING

from rich.table import Table

from torpor._version import __version__
from torpor.app_file import load_app
from torpor.cli.console import console as make_console
from torpor.cli.interrupts import ends_on_sigterm
from torpor.cli.listening import check_chats, engine_at, given_address, public_warning
from torpor.cli.outputs import STANDARD_OUTPUT, check_output, write_output
from torpor.cli.terminal import claim_output
from torpor.cli.timed import bench_snapshot, cold_start, restored_start, standby_wake, without_left_overs
from torpor.errors import ConfigurationError, SnapshotError
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.server import LocalServer
from torpor.platforms.local.snapshots import check_before_start, create_snapshot
from torpor.report import Bench, Floor, Machine
from torpor.report.figures import bytes_text, seconds_text
from torpor.report.measured import BACKENDS
from torpor.report.page import page
from torpor.report.starts import P95_FROM
from torpor.snapshots.store.index import remove
from torpor.snapshots.store.manifest import IMAGES
from torpor.snapshots.store.stored import inspect
from torpor.telemetry.events import warnings_only
from torpor.values.bounds import checked_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rich.console import Console

    from torpor.app_file import App
    from torpor.deployment import Deployment
    from torpor.report import Start

__all__ = ["read_bandwidth", "run_bench"]

_MAX_STARTS = 1000
_READ_BYTES = 1 << 20
_READ_AT_MOST_BYTES = 2 << 30
_READ_AT_LEAST_S = 0.2
_READINGS = 3
_CLOCK_NAMES = {"port_s": "port", "ready_s": "ready", "first_token_s": "first token"}


def run_bench(
    app_file: str,
    *,
    starts: int,
    backend: str,
    json_file: str,
    html_file: str,
    host: str | None = None,
    port: int | None = None,
) -> None:
    """Measure, print the table, write the files.

    Args:
        app_file: the app.
        starts: how many of each kind.
        backend: `criu` or `standby`; empty for CRIU if it works here.
        json_file: file for the JSON; `-` for standard output, empty for none.
        html_file: file for the page; likewise.
        host: where the servers listen; the deployment's by default.
        port: their port; the deployment's by default.

    Raises:
        ConfigurationError: an option is wrong; nothing was started.
        PortInUseError: somebody else has the deployment's port.
        TorporError: a start failed; everything that was started was ended.
    """
    _check_options(starts, backend, json_file, html_file)
    claim_output()
    host, port = given_address(host, port)
    given = load_app(app_file)
    check_chats(given.deployment, "torpor bench")
    app = engine_at(given, host, port)
    console = make_console()
    warnings_only()
    ends_on_sigterm()
    measured = _bench(given, app, starts, backend, console)
    _show(measured, console)
    write_output("--json", json_file, json.dumps(measured.as_json(), indent=2) + "\n")
    write_output("--html", html_file, page([measured]))


def _bench(given: App, app: App, starts: int, backend: str, console: Console) -> Bench:
    """Measure an app.

    Args:
        given: the app as its file has it.
        app: the same at its address for the bench.
        starts: how many of each kind.
        backend: `criu` or `standby`; empty for CRIU if it works here.
        console: for progress.
    """
    if warning := public_warning(app.deployment, app.deployment.host, app.deployment.port):
        console.print(warning, markup=False, soft_wrap=True)
    chosen = _chosen(backend, app.deployment, console)
    with without_left_overs():
        _build(app, chosen, console)
        return _measured(given, app, chosen, starts, console)


def _check_options(starts: int, backend: str, json_file: str, html_file: str) -> None:
    checked_count("--starts", starts, most=_MAX_STARTS, what="starts of each kind")
    if json_file == html_file == STANDARD_OUTPUT:
        raise ConfigurationError("--json and --html both name standard output; give one of them a file.")
    check_output("--json", json_file)
    check_output("--html", html_file)
    if backend and backend not in BACKENDS:
        raise ConfigurationError(f"--backend is {backend!r}; bench knows {' and '.join(BACKENDS)}.")


def _build(app: App, backend: str, console: Console) -> None:
    """Check and build everything that would otherwise be part of the first start."""
    if backend == CriuBackend.name:
        check_before_start(app.lifecycle, bench_snapshot(app.deployment.name))
    LocalServer(
        app.deployment,
        lifecycle=app.lifecycle,
        on_step=lambda step: console.print(f"build step: {step}", markup=False),
    ).build()


def _show(measured: Bench, console: Console) -> None:
    console.print(_table(measured))
    if len(measured.starts) // 2 < P95_FROM:
        console.print(f"p95: from --starts {P95_FROM} on")
    _print_floor(measured, console)
    console.print(f"a {_word(measured)} is {measured.ratio:.1f} times as fast as a cold start")


def read_bandwidth(folder: Path) -> float:
    """Bytes per second at which one thread reads a folder's files out of the page cache.

    It reads at most 2 GB of them: once to fill the page cache, then at least three times and for a fifth of a second. The
    fastest reading counts, so that other load on the machine does not raise the floor.

    Raises:
        SnapshotError: there is nothing to read.
    """
    if not _read(folder):
        raise SnapshotError(f"{folder} is empty, so there is nothing to measure; capture the snapshot again.")
    began, rates = time.perf_counter(), list[float]()
    while len(rates) < _READINGS or time.perf_counter() - began < _READ_AT_LEAST_S:
        before = time.perf_counter()
        total = _read(folder)
        rates.append(total / (time.perf_counter() - before))
    return max(rates)


def _read(folder: Path) -> int:
    total, buffer = 0, bytearray(_READ_BYTES)
    for file in sorted(folder.iterdir()):
        if file.is_file():
            with file.open("rb", buffering=0) as stream:
                while total < _READ_AT_MOST_BYTES and (count := stream.readinto(buffer)):
                    total += count
    return total


def _chosen(backend: str, deployment: Deployment, console: Console) -> str:
    """The backend to use; CRIU is tried only if it is wanted."""
    if backend == "standby" or not (reasons := CriuBackend().available(deployment)):
        return backend or "criu"
    listed = "; ".join(reasons)
    if backend:
        raise ConfigurationError(f"--backend criu cannot be used here: {listed}. --backend standby works anywhere.")
    console.print(f"standby, as CRIU cannot be used here: {listed}", markup=False)
    return "standby"


def _measured(given: App, app: App, backend: str, count: int, console: Console) -> Bench:
    facts, deployment = os.uname(), app.deployment
    machine = Machine(
        cpus=len(os.sched_getaffinity(0)),
        architecture=platform.machine(),
        kernel=facts.release,
        load=os.getloadavg()[0],
    )
    at, done, floor = time.time(), [], None
    with _restoring(given, app, backend, console) as (restored, folder):
        for number in range(1, count + 1):
            for start in (cold_start(given.file, deployment, number=number), restored(number)):
                done.append(start)
                console.print(f"{start.boot:<8} {number:>3}  {seconds_text(start.total_s)} to the first token")
        if folder is not None:
            floor = _floor(folder)
    return Bench(
        torpor=__version__,
        app=str(given.file),
        deployment=deployment.name,
        engine=type(deployment.engine).__name__,
        model=deployment.model.served_name,
        backend=backend,
        at=at,
        machine=machine,
        starts=tuple(done),
        floor=floor,
    )


@contextlib.contextmanager
def _restoring(
    given: App, app: App, backend: str, console: Console
) -> Iterator[tuple[Callable[[int], Start], Path | None]]:
    """What times one restored start or wake; with CRIU also the snapshot, which is removed after the block."""
    if backend == "standby":
        yield lambda number: standby_wake(app, number=number), None
        return
    deployment = app.deployment
    folder = bench_snapshot(deployment.name)
    manifest = create_snapshot(given, folder)
    console.print(
        f"snapshot      {bytes_text(manifest.image_bytes + manifest.side_file_bytes)} in {folder}", soft_wrap=True
    )
    try:
        yield lambda number: restored_start(folder, deployment, number=number)[0], folder
    finally:
        remove(folder)


def _floor(folder: Path) -> Floor:
    manifest = inspect(folder)
    return Floor(
        image_bytes=manifest.image_bytes,
        mapped_bytes=manifest.mapped_bytes,
        side_file_bytes=manifest.side_file_bytes,
        bandwidth_bytes_per_s=read_bandwidth(folder / IMAGES),
    )


def _word(measured: Bench) -> str:
    return "restored start" if measured.backend == "criu" else "wake"


def _table(measured: Bench) -> Table:
    count = len(measured.starts) // 2
    table = Table(title=f"{measured.deployment}: seconds, {count} of each kind", title_justify="left")
    for column in ("start", "until"):
        table.add_column(column)
    for column in ("median", "min", "p95", "max"):
        table.add_column(column, justify="right")
    for boot, clocks in measured.spread.items():
        for clock, of in clocks.items():
            values = ["-" if value is None else f"{value:.3f}" for value in (of.median, of.min, of.p95, of.max)]
            table.add_row("cold" if boot == "cold" else _word(measured), _CLOCK_NAMES[clock], *values)
    return table


def _print_floor(measured: Bench, console: Console) -> None:
    if (floor := measured.floor) is None:
        console.print("bytes moved: none through files, the process stays")
        return
    console.print(
        f"bytes of the snapshot: images {bytes_text(floor.image_bytes)}; mapped memory {bytes_text(floor.mapped_bytes)}; "
        f"side files {bytes_text(floor.side_file_bytes)}; copied into each replica {bytes_text(floor.copied_bytes)}"
    )
    console.print(
        f"floor: {floor.copied_s:.4f} s for what is copied ({floor.all_s:.4f} s if all were), at "
        f"{bytes_text(floor.bandwidth_bytes_per_s)}/s, the fastest at which one thread"
        " read the images from the page cache just now"
    )
