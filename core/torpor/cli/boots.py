"""`torpor boots`: the starts of a Modal app, and the proof that restored ones were restored."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.table import Table

from torpor.cli.console import console as make_console
from torpor.cli.terminal import output, result
from torpor.errors import ConfigurationError
from torpor.platforms.modal.log import KINDS, classify
from torpor.platforms.modal.log_lines import read_lines
from torpor.values.bounds import checked_seconds
from torpor.values.given_files import read_given
from torpor.values.plain_text import one_line, plain

if TYPE_CHECKING:
    from pathlib import Path

    from torpor.platforms.modal.log import BootsReport, Kind, Start

__all__ = ["as_values", "plain_lines", "run_boots"]

_NAMES: dict[Kind, str] = {
    "cold": "cold",
    "snapshot_created": "snapshot created",
    "restored": "restored",
    "restore_failed": "restore failed, retried cold",
    "segfault": "segfault",
}
_COLUMNS = ("began (UTC)", "container", "boot", "start", "proof", "seconds", "wake s", "note")


def run_boots(app_name: str, *, file: Path | None, hours: float, timeout_s: float, as_json: bool) -> None:
    """Read the log of an app, or a saved one, and print its starts.

    Args:
        app_name: the app's name or id; empty with a file.
        file: a saved log; `-` is standard input.
        hours: how far back an app's log is read.
        timeout_s: deadline for fetching it, seconds.
        as_json: print JSON.

    Raises:
        ConfigurationError: both or neither were given, or the log cannot be read.
        ServerUnavailableError: Modal does not answer in time.
    """
    if bool(app_name) == (file is not None):
        raise ConfigurationError("Give the name of an app on Modal, or a saved log with --file FILE; one of the two.")
    if file is not None:
        report = classify(read_lines(_text(file)))
    else:
        from torpor.platforms.modal.account import app_logs  # noqa: PLC0415 - modal: 173 ms that a saved log does not need

        report = classify(app_logs(app_name, hours=hours, timeout_s=checked_seconds("--timeout", timeout_s)))
    if as_json:
        result(json.dumps(as_values(report), indent=2))
    elif output().isatty():
        _print_table(report)
    else:
        result(plain("\n".join(plain_lines(report))))


_MOST_LOG_BYTES = 512 << 20
_SAVE = "Save a log with `modal app logs NAME --since 1d --timestamps --show-container-id > FILE`."


def _text(file: Path) -> str:
    if str(file) == "-":
        data = sys.stdin.buffer.read(_MOST_LOG_BYTES + 1)
        if len(data) > _MOST_LOG_BYTES:
            raise ConfigurationError(f"The log on standard input has more than {_MOST_LOG_BYTES >> 20} MB. {_SAVE}")
    else:
        data = read_given(
            file, f"{_SAVE} From a pipe, read it with `--file -`.", name=f"The log {str(file)!r}", most=_MOST_LOG_BYTES
        )
    return data.decode(errors="replace")


def as_values(report: BootsReport) -> dict[str, object]:
    """The report as plain values, ready for JSON."""
    return {
        "starts": [asdict(start) for start in report.starts],
        "counts": report.counts,
        "median_s": {kind: report.median_s(kind) for kind in KINDS},
        "proofs": _proofs(report),
        "restores": {
            "tried": report.restores_tried,
            "succeeded": report.restores_succeeded,
            "success_rate": report.success_rate,
        },
        "lines": report.lines,
        "unreadable": report.unreadable,
    }


def _proofs(report: BootsReport) -> dict[str, int]:
    wanted = ("proved", "claimed", "record only", "contradicted")
    return {proof: sum(start.proof == proof for start in report.starts) for proof in wanted}


def _print_table(report: BootsReport) -> None:
    console = make_console(results=True)
    table = Table(title="starts", title_justify="left")
    for column in _COLUMNS:
        table.add_column(column, justify="right" if column in ("seconds", "wake s") else "left")
    for start in report.starts:
        table.add_row(*map(one_line, _cells(start)))
    console.print(table)
    for line in _summary(report):
        console.print(line)


def plain_lines(report: BootsReport) -> list[str]:
    """The report as lines for a pipe: one for each start, then the totals."""
    rows = [_COLUMNS, *(_cells(start) for start in report.starts)] if report.starts else []
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))] if rows else []
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*lines, *_summary(report)]


def _cells(start: Start) -> tuple[str, ...]:
    began = "" if start.began_at is None else f"{datetime.fromtimestamp(start.began_at, UTC):%Y-%m-%d %H:%M:%S}"
    kind = _NAMES[start.kind] + ("" if start.exit_code is None else f" (exit code {start.exit_code})")
    boot = start.replica_id + (f" #{start.restore_count}" if start.restore_count else "")
    return began, start.container, boot, kind, start.proof, _seconds(start.seconds), _seconds(start.wake_s), start.note


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _summary(report: BootsReport) -> list[str]:
    """The counts, with the median of each kind, and the success rate."""
    counts = report.counts
    if not report.starts:
        return [f"no start in {report.lines} lines"]
    lines = []
    for kind in filter(counts.__getitem__, KINDS):
        seconds = report.median_s(kind)
        lines.append(f"{counts[kind]:>5}  {_NAMES[kind]}" + ("" if seconds is None else f", median {seconds:.2f} s"))
    if (rate := report.success_rate) is not None:
        proofs = ", ".join(f"{count} {proof}" for proof, count in _proofs(report).items() if count)
        lines.append(
            f"restores: {report.restores_succeeded} of {report.restores_tried} succeeded ({rate:.0%})"
            + (f"; {proofs}" if proofs else "")
        )
    if report.unreadable:
        lines.append(f"{report.unreadable} records of replicas were cut off and are not counted")
    return lines
