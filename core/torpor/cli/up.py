"""`torpor up`: the whole lifecycle on this machine, with its progress and its stage table."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from torpor.app_file import load_app
from torpor.cli.announcing import Announcement
from torpor.cli.console import console as make_console
from torpor.cli.console import shown
from torpor.cli.ending import drained, finished_or_ended
from torpor.cli.interrupts import Signals, ends_on_sigterm
from torpor.cli.listening import engine_at, given_address, public_warning
from torpor.cli.outputs import check_output
from torpor.cli.restore import Served
from torpor.cli.terminal import result, say
from torpor.errors import ConfigurationError, TorporError
from torpor.network import descriptors
from torpor.platforms.local.backends import BACKENDS, CriuBackend, make_backend
from torpor.platforms.local.server import LocalServer, missing_packages
from torpor.platforms.local.start import start_here
from torpor.snapshots.store.paths import records_file, snapshot_folder
from torpor.telemetry.events import warnings_only
from torpor.telemetry.progress import listening
from torpor.telemetry.records import BOOT_KINDS, StageRecord, read_records
from torpor.telemetry.stage_report import StageReport
from torpor.telemetry.stages import Stage
from torpor.values.addresses import check_free, nearest, url
from torpor.values.plain_text import plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from torpor.app_file import App
    from torpor.deployment import Deployment
    from torpor.platforms.local.replicas import Replicas
    from torpor.platforms.local.start import Way
    from torpor.runtime.supervision import ReplicaEvent

__all__ = ["Progress", "run_up", "stage_table"]

_ANSWER_TOKENS = 64
_DOING: dict[str, str] = {
    Stage.PREFLIGHT: "checking the port and the preflight checks",
    Stage.LAUNCH: "starting the engine process",
    Stage.READY: "waiting for the engine to be ready",
    Stage.WARMUP: "warming up with real requests",
    Stage.CANARY: "recording the canary",
    Stage.DRAIN: "finishing requests in flight",
    Stage.PRE_SNAPSHOT: "putting the engine to sleep",
    Stage.POST_RESTORE: "waking the engine",
    Stage.CANARY_CHECK: "demanding the canary again",
    Stage.SERVE: "opening the guard",
}


def run_up(
    app_file: str,
    *,
    backend: str | None,
    snapshot: Path | None,
    question: str,
    as_json: bool,
    records: Path | None = None,
    prove: bool | None = None,
    host: str | None = None,
    port: int | None = None,
) -> None:
    """Start, serve until a signal (or one question) and stop; everything but the answer goes to standard error."""
    backend = _chosen(backend, snapshot)
    console = make_console()
    progress = Progress(console, as_json=as_json)
    host, port = given_address(host, port)
    own_front = snapshot is not None or backend == CriuBackend.name
    app = _at_address(load_app(app_file), host, port, progress, own_front=own_front)
    deployment = app.deployment
    warnings_only()
    address = url(host or deployment.host, port or deployment.port)
    announced = _announced(deployment, app_file, address, backend=backend, snapshot=snapshot)
    served = Served(as_json=as_json and not question, announced=announced)
    record_file = _record_file(records, deployment)
    report = StageReport(record_file, on_begin=progress.begin, on_end=progress.end)
    ends_on_sigterm()
    descriptors.raise_limit()
    signals = Signals()
    signals.note_sleeps()
    started: LocalServer | Replicas | None = None
    answer: dict[str, object] | None = None

    def ask() -> None:
        nonlocal answer
        answer = _ask(started, deployment, console, question, stream=not as_json)

    def tell(event: ReplicaEvent) -> None:
        progress.event(event)
        announced.event(event)
        served.look()

    with progress.listening(), announced:
        try:
            started = start_here(
                app,
                snapshot=snapshot,
                backend=make_backend(backend, app_file=Path(app_file), host=host, port=port),
                host=host,
                port=port,
                prove=prove,
                report=report,
                supervised=not question,
                on_way=lambda way: _say_way(way, console),
                on_cold=lambda server: _say_missing(server, console),
                on_step=progress.step,
                on_stage=served.note,
                on_event=tell,
            )
            if not isinstance(started, LocalServer):
                served.serve(started, 1, ask if question else None)
                if question and not signals.hung_up:
                    _print_end(read_records(record_file), record_file, answer, console, as_json=as_json)
                return
            signals.listen()
            announced.engine_serves(started)
            if not question:
                _say_serving(started, console)
                _serve_until_signal(started, console, signals, announced)
            finished_or_ended(ask if question else None, signals, partial(drained, started, signals))
        except KeyboardInterrupt:
            if signals.end and isinstance(started, LocalServer):
                started.boot.running_engine.terminate(0.0)  # asked twice: nothing is waited for
            raise
        finally:
            if started is not None:
                started.stop()
    if not signals.hung_up:
        _say_end(report, record_file, answer, console, as_json=as_json)


def _announced(
    deployment: Deployment, app_file: str, address: str, *, backend: str, snapshot: Path | None
) -> Announcement:
    """What others are told of the command from its start on."""
    kept = backend if snapshot is None else CriuBackend.name
    announced = Announcement("up")
    announced.starting(
        deployment,
        app_file=app_file,
        backend=kept,
        url=address,
        snapshot=snapshot_folder(deployment.name) if kept == CriuBackend.name and snapshot is None else snapshot,
    )
    return announced


def _say_end(
    report: StageReport, record_file: Path, answer: dict[str, object] | None, console: Console, *, as_json: bool
) -> None:
    """What it took."""
    _print_end(report.records, record_file, answer, console, as_json=as_json)


def _chosen(backend: str | None, snapshot: Path | None) -> str:
    """The backend to use; a snapshot's folder means CRIU.

    Raises:
        ConfigurationError: there is no such backend, or it keeps no snapshot in a folder.
    """
    if backend is not None and backend not in BACKENDS:
        raise ConfigurationError(f"--backend is {backend!r}; there are: {', '.join(BACKENDS)}.")
    if snapshot is not None and backend not in (None, "criu"):
        raise ConfigurationError(
            f"--snapshot {snapshot} keeps the server in a folder by CRIU, --backend {backend} does not. Leave one of the two out."
        )
    return backend or ("criu" if snapshot is not None else "standby")


def _print_end(
    records: list[StageRecord], file: Path, answer: dict[str, object] | None, console: Console, *, as_json: bool
) -> None:
    """What was done, however it was started."""
    if as_json:
        payload = {"stages": [asdict(record) for record in records], "records": str(file), "answer": answer}
        result(json.dumps(payload, indent=2))
    else:
        console.print(stage_table(records))
        if file.exists():  # a log line has said why there is none
            console.print(f"records: {file}", soft_wrap=True)


def _at_address(app: App, host: str | None, port: int | None, progress: Progress, *, own_front: bool) -> App:
    """The app at the address that was given, which is free; where Torpor listens itself, the engine's own stays."""
    if own_front:
        check_free(host or app.deployment.host, port or app.deployment.port)
    else:
        app = engine_at(app, host, port)
    deployment = app.deployment
    if warning := public_warning(deployment, host or deployment.host, port or deployment.port):
        progress.warn(warning)
    return app


def _say_serving(server: LocalServer, console: Console) -> None:
    name = server.deployment.model.served_name
    console.print(f"serving {name} on {url(*server.address)} - Ctrl-C ends it", markup=False, soft_wrap=True)


def _record_file(given: Path | None, deployment: Deployment) -> Path:
    """Where the stage records go; a file that cannot be written is told before the start.

    Raises:
        ConfigurationError: it cannot be written.
    """
    if given is None:
        return records_file(deployment.name)
    check_output("--records", str(given), makes_folders=True)
    return given


def _say_way(way: Way, console: Console) -> None:
    console.print(way.said, markup=False)
    for reason in way.reasons:
        console.print(f"  - {reason}", markup=False)


def _say_missing(server: LocalServer, console: Console) -> None:
    for package, plugin in missing_packages(server.deployment, server.recipe).items():
        console.print(f"note: {package} is not installed here; plugin {plugin} lists it")


def _ask(
    started: LocalServer | Replicas | None, deployment: Deployment, console: Console, question: str, *, stream: bool
) -> dict[str, object]:
    """Ask one question as a client would; the answer goes to standard output as it comes."""
    from torpor.client import chat  # noqa: PLC0415 - httpx only when there is something to ask

    assert started is not None
    host, port = started.address
    told = chat(
        url(nearest(host), port),
        model=deployment.model.served_name,
        prompt=question,
        max_tokens=_ANSWER_TOKENS,
        timeout_s=deployment.wake_timeout_s,
        on_text=(lambda text: result(plain(text), end="")) if stream else None,
    )
    if stream:
        result()
        console.print(f"first token after {told.ttft_s:.3f} s, {told.tokens} tokens in {told.total_s:.3f} s")
    return asdict(told)


def _serve_until_signal(server: LocalServer, console: Console, signals: Signals, announced: Announcement) -> None:
    """Serve; SIGUSR1 sends the engine to sleep, SIGUSR2 wakes it; an engine that ends by itself is started again."""
    asleep = ended_asleep = False
    while not signals.end:
        if (asleep and not server.backend.process_stays) or ended_asleep:
            signals.wait(0.1)
        elif server.boot.running_engine.wait(0.1) is not None:
            if asleep:
                ended_asleep = True
                announced.asleep()
                console.print("the engine ended while it was asleep; it is started cold when it is to wake")
            else:
                with signals.ended_at_once():
                    server.start_again()
                    announced.engine_serves(server)
        if not signals.wanted or signals.end:
            continue
        action = signals.wanted.pop(0)
        if (action == "sleep") == asleep:
            console.print(f"already {'asleep' if asleep else 'awake'}")
        elif action == "sleep":
            asleep = _put_to_sleep(server, console, signals)
            announced.asleep() if asleep else announced.engine_serves(server)
        else:
            with signals.ended_at_once():
                server.wake()
                announced.engine_serves(server)
            asleep = ended_asleep = False
    announced.ending()


def _put_to_sleep(server: LocalServer, console: Console, signals: Signals) -> bool:
    """Whether it sleeps; where it cannot be done the engine serves on, wakes again, or was ended and is started again."""
    try:
        server.sleep(woken_by=f"`kill -USR2 {os.getpid()}` on its machine")
    except TorporError as error:
        console.print(f"not asleep: {error}", markup=False, soft_wrap=True)
        if not signals.end and server.boot.running_engine.poll() is None and server.boot.asleep:
            with signals.ended_at_once():
                server.wake()
                console.print("woken again; it serves on")
        return False
    console.print("asleep")
    return True


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
        """Show what is told of how far the work is (`torpor.telemetry.progress`), while the block runs."""
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

    def event(self, event: ReplicaEvent) -> None:
        """Something happened to the engine by itself."""
        if self._status:
            self._status.stop()
        if self._as_json:
            self._print_json(**event.as_json())
        else:
            self._console.print(event.described(), markup=False, soft_wrap=True)

    def warn(self, warning: str) -> None:
        """Something that a user should know before the start."""
        if self._as_json:
            self._print_json(warning=warning.removeprefix("warning: "))
        else:
            self._console.print(warning, markup=False, soft_wrap=True)

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
            self._status.update(shown(f"{': '.join(filter(None, (doing, text)))} ..."))  # a string would be markup
            self._status.start()

    def _print_json(self, **facts: object) -> None:
        say(json.dumps(facts))


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
    for kind in BOOT_KINDS:
        seconds = [record.seconds for record in records if record.boot == kind]
        if seconds:
            table.add_row(kind, "total", f"{sum(seconds):.3f}", "")
    return table
