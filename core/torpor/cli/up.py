"""`torpor up`: the whole lifecycle on this machine, with its progress and its stage table."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import structlog
from rich.console import Console
from rich.table import Table

from torpor.apps import load_deployment
from torpor.errors import ConfigurationError, DrainTimeoutError
from torpor.platforms.local import BACKENDS, LocalServer, cache_root, missing_packages, stops_on_failure
from torpor.records import StageRecord, StageReport

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["run_up", "stage_table"]

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


def run_up(app_file: str, *, backend: str, question: str, as_json: bool) -> None:
    """Start, serve until a signal (or one question) and stop; everything but the answer goes to standard error."""
    if backend not in BACKENDS:
        raise ConfigurationError(f"--backend is {backend!r}; there are: {', '.join(BACKENDS)}.")
    deployment = load_deployment(app_file)
    console = Console(stderr=True, highlight=False)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])
    progress = _Progress(console, quiet=as_json)
    root = cache_root()
    record_file = root / "records" / f"{deployment.name}-{int(time.time())}.jsonl"
    report = StageReport(record_file, on_begin=progress.begin, on_end=progress.end)
    server = LocalServer(deployment, backend=BACKENDS[backend](), report=report, on_step=progress.step)
    for package, plugin in missing_packages(deployment, server.recipe).items():
        console.print(f"note: {package} is not installed here; plugin {plugin} lists it")
    _ends_on_sigterm()
    try:
        with stops_on_failure(server.boot):
            server.start()
            answer = _ask(server, console, question, stream=not as_json) if question else None
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
        console.print(f"records: {record_file}")


def _ask(server: LocalServer, console: Console, question: str, *, stream: bool) -> dict[str, object]:
    """Ask one question as a client would; the answer goes to standard output as it comes."""
    from torpor.client import chat  # noqa: PLC0415 - httpx only when there is something to ask

    deployment = server.deployment
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
        if server.boot.running_engine.wait(0.1) is not None:
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


def _ends_on_sigterm() -> None:
    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)


class _Progress:
    """One live line on a terminal, one plain line per finished stage anywhere."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._status = console.status("") if console.is_terminal and not quiet else None

    def step(self, name: str) -> None:
        if not self._quiet:
            self._console.print(f"build step: {name}")

    def begin(self, stage: str) -> None:
        if self._status:
            self._status.update(f"{_DOING.get(stage, stage)} ...")
            self._status.start()

    def end(self, record: StageRecord) -> None:
        if self._status:
            self._status.stop()
        if not self._quiet:
            mark = "ok" if record.ok else "FAILED"
            self._console.print(f"{mark:<6} {record.stage:<13} {record.seconds:8.3f} s  {_DOING.get(record.stage, '')}")


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
