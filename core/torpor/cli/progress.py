"""How a command shows what a start is doing: stages while they run, and their table at the end."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from rich.table import Table

from torpor.cli.console import shown
from torpor.cli.terminal import say
from torpor.telemetry.progress import listening
from torpor.telemetry.records import BOOT_KINDS
from torpor.telemetry.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from torpor.runtime.supervision import ReplicaEvent
    from torpor.telemetry.records import StageRecord

__all__ = ["Progress", "stage_table"]

_DOING: dict[str, str] = {
    Stage.PREFLIGHT: "checking the port and the preflight checks",
    Stage.LAUNCH: "starting the engine process",
    Stage.READY: "waiting for the engine to be ready",
    Stage.WARMUP: "warming up with real requests",
    Stage.CANARY: "recording the canary",
    Stage.DRAIN: "finishing requests in flight",
    Stage.PRE_SNAPSHOT: "putting the engine to sleep",
    Stage.POST_RESTORE: "waking the engine",
    Stage.CANARY_CHECK: "comparing the canary's answer",
    Stage.SERVE: "opening the guard",
}


class Progress:
    """Shows the progress of a start: one live line on a terminal, elsewhere a plain line for each change, or lines of JSON.

    Args:
        console: prints it.
        as_json: print only lines of JSON, on standard error: `build_step`; `stage` with `progress`; `stage` with
            `seconds` and `ok` at its end.
    """

    def __init__(self, console: Console, *, as_json: bool) -> None:
        self._console = console
        self._as_json = as_json
        self._stage = ""
        self._status = console.status("") if console.is_terminal and not as_json else None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While the block runs, show what hooks and core report of their progress (`torpor.telemetry.progress`)."""
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
            told = _compiled(record) if record.compiled else _DOING.get(record.stage, "")
            self._console.print(f"{mark:<6} {record.stage:<13} {record.seconds:8.3f} s  {told}")

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
        """Show the stage and its progress; between two stages (a snapshot is written there) only the progress."""
        if self._status:
            doing = _DOING.get(self._stage, self._stage)
            self._status.update(shown(f"{': '.join(filter(None, (doing, text)))} ..."))  # a string would be markup
            self._status.start()

    def _print_json(self, **facts: object) -> None:
        say(json.dumps(facts))


def _compiled(record: StageRecord) -> str:
    """What was compiled for the first requests after a start, in words."""
    counts = record.compiled
    return (
        f"compiled for the first {counts['requests']} requests: {counts['cache_files']} files, "
        f"{counts['log_lines']} log lines"
    )


def stage_table(records: list[StageRecord]) -> Table:
    """The stages of a start as a table: seconds of each, and of the plugins in it."""
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
        seconds = [record.seconds for record in records if record.boot == kind and record.stage != Stage.FIRST_REQUESTS]
        if seconds:
            table.add_row(kind, "total", f"{sum(seconds):.3f}", "")
    return table
