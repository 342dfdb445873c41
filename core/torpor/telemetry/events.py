"""Torpor's log events. structlog is imported with the first one that somebody sees: it takes 135 ms of CPU, half a restore's.

With `TORPOR_LOG_FORMAT=json` each event is one line of JSON in its place, which a program finds by its first key:

    {"torpor": "stage", "level": "info", "at": 1795651232.92, "boot": "cold", "seconds": 0.0105, ...}

Modal's containers write their log so, and `torpor boots` reads it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Literal

from torpor.values.plain_text import plain

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

__all__ = ["LOG_FORMAT_VARIABLE", "STAGE", "Level", "json_line", "log", "warnings_only"]

Level = Literal["info", "warning", "error"]

LOG_FORMAT_VARIABLE = "TORPOR_LOG_FORMAT"
"""`json` has every event written as one line of JSON; anything else leaves the log to structlog, as the process configured it."""

STAGE = "stage"
_LOGGER = "torpor"
_quiet = False


def log(level: Level, event: str, **facts: object) -> None:
    """Log an event, through structlog as the process has configured it, or as a line of JSON where that is asked for.

    Args:
        level: its level.
        event: its name, snake_case.
        facts: what belongs to it.
    """
    if _quiet and (level == "info" or event == STAGE):
        return
    if os.environ.get(LOG_FORMAT_VARIABLE) == "json":
        _write(json_line(level, event, **facts))
        return
    getattr(_logger(), level)(event, **facts)


def json_line(level: Level, event: str, **facts: object) -> str:
    """An event as one line of JSON, in ASCII; what JSON has no form for is written as text.

    Args:
        level: its level.
        event: its name.
        facts: what belongs to it.
    """
    values = {"torpor": event, "level": level, "at": round(time.time(), 3), **facts}
    try:
        return json.dumps(values, default=str, allow_nan=False)
    except ValueError:  # a number that is none, or a value that holds itself
        return json.dumps(
            {name: value if isinstance(value, str | bool) else str(value) for name, value in values.items()}
        )


def _write(line: str) -> None:
    """Whole lines, at once: another thread may write, too. A log that nobody reads ends no replica."""
    stream = sys.stderr if _quiet else sys.stdout
    with contextlib.suppress(OSError, ValueError):
        stream.write(f"{line}\n")
        stream.flush()


def warnings_only() -> None:
    """From now on log warnings only, on standard error: for a command whose own output tells the stages."""
    global _quiet  # noqa: PLW0603 - as global as the log itself
    _quiet = True


def _as_plain(_logger: object, _method: str, line: object) -> str:
    """A rendered event as a terminal may show it."""
    return plain(str(line))


def _logger() -> FilteringBoundLogger:
    import structlog  # noqa: PLC0415 - see above

    if _quiet and not structlog.is_configured():
        structlog.configure(
            processors=[structlog.processors.add_log_level, structlog.dev.ConsoleRenderer(colors=False), _as_plain],
            logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        )
    logger: FilteringBoundLogger = structlog.get_logger(_LOGGER)
    return logger
