"""`torpor up`: the whole lifecycle on this machine, with its progress and its stage table."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from torpor import descriptors
from torpor.apps import load_deployment
from torpor.cli.interrupts import ends_on_sigterm
from torpor.cli.restore import run_restore
from torpor.errors import ConfigurationError, DrainTimeoutError, PortInUseError, SnapshotError, TorporError
from torpor.events import warnings_only
from torpor.platforms.local import LocalServer, cache_root, missing_packages, stops_on_failure
from torpor.progress import listening
from torpor.records import StageRecord, StageReport
from torpor.snapshots.backend import BACKENDS, CriuBackend, make_backend

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.deployment import Deployment

__all__ = ["Progress", "run_up", "stage_table"]

_ANSWER_TOKENS = 64
_DOING = {
    "preflight": "checking the port and the preflight checks",
    "launch": "starting the engine process",
    "ready": "waiting for the engine to be ready",
    "warmup": "warming up with real requests",
    "canary": "recording the canary",
    "drain": "finishing requests in flight",
    "pre_snapshot": "putting the engine to sleep",
    "post_restore": "waking the engine",
    "canary_check": "demanding the canary again",
    "serve": "opening the guard",
}


def run_up(
    app_file: str, *, backend: str, snapshot: Path | None, question: str, as_json: bool, records: Path | None = None
) -> None:
    """Start, serve until a signal (or one question) and stop; everything but the answer goes to standard error."""
    if backend not in BACKENDS:
        raise ConfigurationError(f"--backend is {backend!r}; there are: {', '.join(BACKENDS)}.")
    if snapshot is not None and _restored(app_file, snapshot, question=question, as_json=as_json):
        return
    deployment = load_deployment(app_file)
    console = Console(stderr=True, highlight=False)
    warnings_only()
    progress = Progress(console, as_json=as_json)
    record_file = records or cache_root() / "records" / f"{deployment.name}-{int(time.time())}.jsonl"
    report = StageReport(record_file, on_begin=progress.begin, on_end=progress.end)
    keeper = make_backend(backend, app_file=Path(app_file))
    if snapshot is not None:
        keeper = CriuBackend(folder=snapshot, app_file=Path(app_file), leave_running=True)
    server = LocalServer(deployment, backend=keeper, report=report, on_step=progress.step)
    for package, plugin in missing_packages(deployment, server.recipe).items():
        console.print(f"note: {package} is not installed here; plugin {plugin} lists it")
    ends_on_sigterm()
    descriptors.raise_limit()
    try:
        with stops_on_failure(server.boot), progress.listening():
            server.start()
            answer = _ask(deployment, console, question, stream=not as_json) if question else None
            if answer is None:
                console.print(
                    f"serving {deployment.model.served_name} on http://127.0.0.1:{deployment.port} - Ctrl-C ends it"
                )
                _serve_until_signal(server, console)
    finally:
        server.stop()
    if as_json:
        payload = {
            "stages": [asdict(record) for record in report.records],
            "records": str(record_file),
            "answer": answer,
        }
        print(json.dumps(payload, indent=2))
    else:
        console.print(stage_table(report.records))
        console.print(f"records: {record_file}", soft_wrap=True)


def _restored(app_file: str, folder: Path, *, question: str, as_json: bool) -> bool:
    """Serve from a snapshot where a fitting one is there; say which way is taken, and why."""
    from torpor.snapshots.manifest import MANIFEST  # noqa: PLC0415 - only with --snapshot
    from torpor.snapshots.serving import misfits  # noqa: PLC0415
    from torpor.snapshots.store import check_target, inspect  # noqa: PLC0415

    console = Console(stderr=True, highlight=False)
    check_target(folder)
    deployment = load_deployment(app_file)
    if not (folder / MANIFEST).is_file():
        console.print(f"cold: there is no snapshot in {folder}; it is made after the start", markup=False)
        return False
    try:
        reasons = misfits(folder, inspect(folder), deployment)
    except SnapshotError as error:
        reasons = [str(error)]
    if reasons:
        console.print(f"cold: the snapshot {folder} does not fit and is made anew after the start", markup=False)
        for reason in reasons:
            console.print(f"  - {reason}", markup=False)
        return False
    console.print(f"restored: the snapshot {folder} fits", markup=False)
    serves = False

    def ask_once() -> None:
        nonlocal serves
        serves = True
        answer = _ask(deployment, console, question, stream=not as_json)
        if as_json:
            print(json.dumps({"answer": answer}))

    try:
        run_restore(
            folder=folder,
            replicas=1,
            port=deployment.port,
            verify="fast",
            as_json=as_json and not question,
            then=ask_once if question else None,
        )
    except (PortInUseError, ConfigurationError):
        raise  # a cold start would fail in the same way, later
    except TorporError as error:
        if serves:
            raise
        console.print(f"cold: the snapshot could not be restored: {error}", markup=False)
        return False
    return True


def _ask(deployment: Deployment, console: Console, question: str, *, stream: bool) -> dict[str, object]:
    """Ask one question as a client would; the answer goes to standard output as it comes."""
    from torpor.client import chat  # noqa: PLC0415 - httpx only when there is something to ask

    result = chat(
        f"http://127.0.0.1:{deployment.port}",
        model=deployment.model.served_name,
        prompt=question,
        max_tokens=_ANSWER_TOKENS,
        timeout_s=deployment.wake_timeout_s,
        on_text=(lambda text: print(text, end="", flush=True)) if stream else None,
    )
    if stream:
        print(flush=True)
        console.print(f"first token after {result.ttft_s:.3f} s, {result.tokens} tokens in {result.total_s:.3f} s")
    return asdict(result)


def _serve_until_signal(server: LocalServer, console: Console) -> None:
    """Serve; SIGUSR1 sends the engine to sleep, SIGUSR2 wakes it, the engine's death ends the command."""
    wanted: list[str] = []
    signal.signal(signal.SIGUSR1, lambda *_: wanted.append("sleep"))
    signal.signal(signal.SIGUSR2, lambda *_: wanted.append("wake"))
    asleep = False
    while True:
        if asleep and not server.backend.process_stays:
            time.sleep(0.1)
        elif server.boot.running_engine.wait(0.1) is not None:
            from torpor.readiness import exited_error  # noqa: PLC0415

            raise exited_error(
                server.boot.running_engine, "while it was serving" if not asleep else "while it was asleep"
            )
        if not wanted:
            continue
        action = wanted.pop(0)
        if (action == "sleep") == asleep:
            console.print(f"already {'asleep' if asleep else 'awake'}")
            continue
        try:
            server.sleep() if action == "sleep" else server.wake()
        except DrainTimeoutError as error:
            console.print(str(error))
            continue
        asleep = action == "sleep"


class Progress:
    """What long work is at: one live line on a terminal, a plain line for each change elsewhere, or lines of JSON.

    Args:
        console: where to.
        as_json: print lines of JSON on standard error, and nothing else: `build_step`; `stage` with `progress`; `stage` with
            `seconds` and `ok` at its end.
    """

    def __init__(self, console: Console, *, as_json: bool) -> None:
        self._console = console
        self._as_json = as_json
        self._stage = ""
        self._status = console.status("") if console.is_terminal and not as_json else None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Show what is told of how far the work is (`torpor.progress`), while the block runs."""
        with listening(self._told):
            try:
                yield
            finally:
                if self._status:
                    self._status.stop()

    def step(self, name: str) -> None:
        """A build step begins."""
        if self._as_json:
            self._print_json(build_step=name)
        else:
            self._console.print(f"build step: {name}", markup=False)

    def begin(self, stage: str) -> None:
        """A stage begins."""
        self._stage = stage
        self._show_live("")

    def end(self, record: StageRecord) -> None:
        """A stage ended."""
        self._stage = ""
        if self._status:
            self._status.stop()
        if self._as_json:
            self._print_json(stage=record.stage, seconds=record.seconds, ok=record.ok)
        else:
            mark = "ok" if record.ok else "FAILED"
            self._console.print(f"{mark:<6} {record.stage:<13} {record.seconds:8.3f} s  {_DOING.get(record.stage, '')}")

    def _told(self, text: str) -> None:
        if self._as_json:
            self._print_json(stage=self._stage, progress=text)
        elif self._status:
            self._show_live(text)
        else:
            self._console.print(f"{'':<6} {self._stage:<13} {text}", markup=False)

    def _show_live(self, text: str) -> None:
        """Show what is done, and how far it is; between two stages (a snapshot is written there) the latter alone."""
        if self._status:
            doing = _DOING.get(self._stage, self._stage)
            self._status.update(f"{': '.join(filter(None, (doing, text)))} ...")
            self._status.start()

    def _print_json(self, **facts: object) -> None:
        print(json.dumps(facts), file=sys.stderr, flush=True)


def stage_table(records: list[StageRecord]) -> Table:
    """The stages of a boot as a table: seconds of each, and of the plugins inside it."""
    table = Table(title="stages", title_justify="left")
    for column in ("boot", "stage"):
        table.add_column(column)
    table.add_column("seconds", justify="right")
    table.add_column("plugins")
    for record in records:
        boot = record.boot if not record.restore_count else f"{record.boot} #{record.restore_count}"
        plugins = ", ".join(f"{name} {seconds:.3f}" for name, seconds in record.plugins.items())
        table.add_row(boot, record.stage, f"{record.seconds:.3f}", plugins)
    for kind in ("cold", "restored"):
        seconds = [record.seconds for record in records if record.boot == kind]
        if seconds:
            table.add_row(kind, "total", f"{sum(seconds):.3f}", "")
    return table
