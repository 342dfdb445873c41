"""`torpor up`: the whole lifecycle on this machine, with its progress and its stage table."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from torpor.app_file import App, load_app
from torpor.cli import later
from torpor.cli.announcing import Announcement
from torpor.cli.console import console as make_console
from torpor.cli.ending import drained, finished_or_ended
from torpor.cli.gpus import engine_gpus
from torpor.cli.interrupts import Signals, ends_on_sigterm
from torpor.cli.listening import engine_at, given_address, public_warning
from torpor.cli.outputs import check_output
from torpor.cli.progress import Progress, stage_table
from torpor.cli.terminal import result
from torpor.errors import ConfigurationError, TorporError
from torpor.network import descriptors
from torpor.platforms.local.backends import BACKENDS, CRIU, make_backend
from torpor.platforms.local.requirements import missing_packages
from torpor.platforms.local.server import LocalServer
from torpor.platforms.local.start import StartOptions, start_here
from torpor.snapshots.store.paths import records_file, snapshot_folder
from torpor.telemetry.events import warnings_only
from torpor.telemetry.records import StageRecord, read_records
from torpor.telemetry.stage_report import StageReport
from torpor.values.addresses import check_free, nearest, url
from torpor.values.plain_text import plain

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from rich.console import Console

    from torpor.cli.restore import Served
    from torpor.deployment import Deployment
    from torpor.platforms.local.replicas import Replicas
    from torpor.platforms.local.start import Way
    from torpor.runtime.supervision import ReplicaEvent
    from torpor.snapshots.gpu.placement import GpuPlace
    from torpor.snapshots.remote.source import Source
    from torpor.tasks.routes import Task

__all__ = ["run_up"]

_ANSWER_TOKENS = 64


@dataclass(frozen=True)
class _Options:
    """What the command line asks for.

    Attributes:
        backend: how the sleeping engine is kept.
        snapshot: a snapshot's folder, to restore or to capture into; None for none.
        source: a snapshot of a store, to restore; None for none.
        question: asked once the server is up, in place of serving until a signal; empty for none.
        as_json: print JSON.
        prove: whether a new snapshot is tried before it is put in place.
        host: the address that was given; None for the deployment's.
        port: the port that was given; None for the deployment's.
        gpus: the GPUs that were given; empty for none.
        metrics: the address that was given for metrics; empty for none.
        engine_metrics: whether the engine's own are passed on.
    """

    backend: str
    snapshot: Path | None
    source: Source | None
    question: str
    as_json: bool
    prove: bool | None
    host: str | None
    port: int | None
    gpus: tuple[GpuPlace, ...] = ()
    metrics: str = ""
    engine_metrics: bool = False

    @property
    def torpor_listens(self) -> bool:
        """Whether Torpor's gateway has the public port; otherwise the engine has it."""
        return self.snapshot is not None or self.backend == CRIU


def run_up(
    app: App | str,
    *,
    backend: str | None,
    snapshot: Path | None,
    question: str,
    as_json: bool,
    source: Source | None = None,
    records: Path | None = None,
    prove: bool | None = None,
    host: str | None = None,
    port: int | None = None,
    gpus: str = "",
    metrics: tuple[str, bool] = ("", False),
) -> None:
    """Start, serve until a signal (or one question) and stop; everything but the answer goes to standard error.

    Args:
        app: the app, or the path of its file.
        backend: `none`, `standby` or `criu`; None for `criu` with a snapshot, else `standby`.
        snapshot: see `_Options`, as the others.
        source: see there.
        question: see there.
        as_json: see there.
        records: file for the stage records; by default one under the cache root.
        prove: see there.
        host: see there.
        port: see there.
        gpus: the value of `--gpus`.
        metrics: the values of `--metrics` and `--engine-metrics`.
    """
    (host, port), backend = given_address(host, port), _chosen(backend, snapshot or (source and source.url))
    app = app if isinstance(app, App) else load_app(app)
    places = engine_gpus(gpus, app.deployment)
    options = _Options(backend, snapshot, source, question, as_json, prove, host, port, places, *metrics)
    _run(app, options, records)


def _run(app: App, options: _Options, records: Path | None) -> None:
    console = make_console()
    progress = Progress(console, as_json=options.as_json)
    app = _at_address(app, options, progress)
    record_file = _record_file(records, app.deployment)
    warnings_only()
    ends_on_sigterm()
    descriptors.raise_limit()
    _Up(app, options, progress, console, record_file).run()


class _Up:
    """One run of the command, from the start to its end.

    Args:
        app: what to serve, at its address.
        options: of the command line.
        progress: shows the stages.
        console: for everything else but the answer.
        record_file: where stage records go.
    """

    def __init__(self, app: App, options: _Options, progress: Progress, console: Console, record_file: Path) -> None:
        self._app = app
        self._options = options
        self._progress = progress
        self._console = console
        self._record_file = record_file
        self._announced = _announced(app, options)
        self._served = self._served_here() if options.torpor_listens or options.source else None
        self._report = StageReport(record_file, on_begin=progress.begin, on_end=progress.end)
        self._signals = Signals()
        self._signals.note_sleeps()
        self._started: LocalServer | Replicas | None = None
        self._answer: dict[str, object] | None = None

    def _served_here(self) -> Served:
        """What serves restored replicas."""
        return later.Served(as_json=self._options.as_json and not self._options.question, announced=self._announced)

    def run(self) -> None:
        """Start, serve, stop."""
        with self._progress.listening(), self._announced, self._metrics():
            try:
                self._started = self._start()
                if isinstance(self._started, LocalServer):
                    self._serve_engine(self._started)
                else:
                    self._serve_replicas(self._started)
            except KeyboardInterrupt:
                if self._signals.end and isinstance(self._started, LocalServer):
                    self._started.boot.running_engine.terminate(0.0)  # asked twice: nothing is waited for
                raise
            finally:
                if self._started is not None:
                    self._started.stop()
        if isinstance(self._started, LocalServer) and not self._signals.hung_up:
            self._print_end(self._report.records)

    def _metrics(self) -> AbstractContextManager[None]:
        options = self._options
        if not options.metrics and not options.engine_metrics:
            return nullcontext()
        figures = later.CommandFigures(self._app.deployment.name, lambda: self._started)
        return later.metrics_served(options.metrics, figures, engines=options.engine_metrics, tell=self._say)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def _start(self) -> LocalServer | Replicas:
        options, console = self._options, self._console
        start = StartOptions(
            snapshot=options.snapshot,
            source=options.source,
            backend=make_backend(
                options.backend, app_file=self._app.file, host=options.host, port=options.port, gpus=options.gpus
            ),
            host=options.host,
            port=options.port,
            gpus=options.gpus,
            prove=options.prove,
            report=self._report,
            supervised=not options.question,
            on_way=lambda way: _say_way(way, console),
            on_cold=lambda server: _say_missing(server, console),
            on_step=self._progress.step,
            on_stage=self._served.note if self._served else None,
            on_event=self._tell,
        )
        return start_here(self._app, start)

    def _serve_replicas(self, replicas: Replicas) -> None:
        """Serve restored replicas until a signal, or ask the question."""
        question = self._options.question
        assert self._served is not None  # there is a snapshot
        self._served.serve(replicas, 1, self._ask if question else None)
        if question and not self._signals.hung_up:
            self._print_end(read_records(self._record_file))

    def _serve_engine(self, server: LocalServer) -> None:
        """Serve the engine of this process until a signal, or ask the question."""
        self._signals.listen()
        self._announced.engine_serves(server)
        question = self._options.question
        if not question:
            _say_serving(server, self._console)
            _serve_until_signal(server, self._console, self._signals, self._announced)
        finished_or_ended(self._ask if question else None, self._signals, lambda: drained(server, self._signals))

    def _ask(self) -> None:
        """Ask the question as a client would; the answer goes to standard output as it comes."""
        assert self._started is not None
        stream, deployment = not self._options.as_json, self._app.deployment
        host, port = self._started.address
        root = url(nearest(host), port)
        if deployment.task != "chat":
            self._ask_task(root, deployment.task)
            return
        told = later.chat(
            root,
            model=deployment.model.served_name,
            prompt=self._options.question,
            max_tokens=_ANSWER_TOKENS,
            timeout_s=deployment.wake_timeout_s,
            on_text=(lambda text: result(plain(text), end="")) if stream else None,
        )
        if stream:
            result()
            said = f"first token after {told.ttft_s:.3f} s, {told.tokens} tokens in {told.total_s:.3f} s"
            self._console.print(said)
        self._answer = asdict(told)

    def _ask_task(self, root: str, task: Task) -> None:
        """Ask a deployment of another task the text of the question."""
        deployment = self._app.deployment
        asked = later.Asked(text=self._options.question, model=deployment.model.served_name, max_tokens=_ANSWER_TOKENS)
        limits = later.WaitingLimits(timeout_s=deployment.wake_timeout_s, connect_s=None)
        told = later.ask_task(root, task, asked, limits=limits)
        if not self._options.as_json:
            for line in later.answer_lines(told):
                result(plain(line))
            self._console.print(f"the answer after {told.total_s:.3f} s")
        self._answer = asdict(told)

    def _tell(self, event: ReplicaEvent) -> None:
        self._progress.event(event)
        self._announced.event(event)
        if self._served:
            self._served.look()

    def _print_end(self, records: list[StageRecord]) -> None:
        """Show the stages and, as JSON, the answer."""
        file = self._record_file
        if self._options.as_json:
            told = {"stages": [asdict(record) for record in records], "records": str(file), "answer": self._answer}
            result(json.dumps(told, indent=2))
            return
        self._console.print(stage_table(records))
        if file.exists():  # a log line has said why there is none
            self._console.print(f"records: {file}", soft_wrap=True)


def _announced(app: App, options: _Options) -> Announcement:
    """What others are told of the command from its start on."""
    deployment, snapshot = app.deployment, options.snapshot
    backend = options.backend if snapshot is None else CRIU
    if snapshot is None and backend == CRIU:
        snapshot = snapshot_folder(deployment.name)
    announced = Announcement("up")
    announced.starting(
        deployment,
        app_file=app.file,
        backend=backend,
        url=url(options.host or deployment.host, options.port or deployment.port),
        snapshot=snapshot,
    )
    return announced


def _chosen(backend: str | None, snapshot: object) -> str:
    """The backend to use; a snapshot implies CRIU.

    Raises:
        ConfigurationError: there is no such backend, or it keeps no snapshot in a folder.
    """
    if backend is not None and backend not in BACKENDS:
        raise ConfigurationError(f"--backend is {backend!r}; there are: {', '.join(BACKENDS)}.")
    if snapshot and backend not in (None, "criu"):
        raise ConfigurationError(
            f"--snapshot {snapshot} needs the backend criu, and --backend is {backend}. Leave one of the two out."
        )
    return backend or ("criu" if snapshot else "standby")


def _at_address(app: App, options: _Options, progress: Progress) -> App:
    """The app at the address that was given, which is free.

    If Torpor listens there itself, the engine keeps its own address.
    """
    host, port = options.host or app.deployment.host, options.port or app.deployment.port
    if options.torpor_listens:
        check_free(host, port)
    else:
        app = engine_at(app, options.host, options.port)
    if warning := public_warning(app.deployment, host, port):
        progress.warn(warning)
    return app


def _say_serving(server: LocalServer, console: Console) -> None:
    model = server.deployment.model
    name = f"{model.served_name} with the adapters {', '.join(model.adapters)}" if model.adapters else model.served_name
    console.print(f"serving {name} on {url(*server.address)} - Ctrl-C ends it", markup=False, soft_wrap=True)


def _record_file(given: Path | None, deployment: Deployment) -> Path:
    """The file of the stage records, checked before the start.

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
                console.print("the engine ended while it was asleep; SIGUSR2 starts it cold")
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
    """Whether it sleeps now. If it cannot, the engine serves on, is woken, or was ended and is started again."""
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
