"""Torpor's log events, through structlog, which is imported with the first event that is shown.

With `TORPOR_LOG_FORMAT=json` each event is a line of JSON instead. A program finds it by its first key:

    {"torpor": "stage", "level": "info", "at": 1795651232.92, "boot": "cold", "seconds": 0.0105, ...}

Modal's containers log in this format, and `torpor boots` reads it.
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
"""With `json` each event is a line of JSON; with any other value structlog writes it, as the process configured it."""

STAGE = "stage"
_LOGGER = "torpor"
_quiet = False


def log(level: Level, event: str, **facts: object) -> None:
    """Log an event.

    Args:
        level: of the event.
        event: its name, snake_case.
        facts: its values, by name.
    """
    if _quiet and (level == "info" or event == STAGE):
        return
    if os.environ.get(LOG_FORMAT_VARIABLE) == "json":
        _write(json_line(level, event, **facts))
        return
    getattr(_logger(), level)(event, **facts)


def json_line(level: Level, event: str, **facts: object) -> str:
    """An event as one line of JSON, in ASCII. Values that JSON cannot express are written as text.

    Args:
        level: of the event.
        event: its name.
        facts: its values, by name.
    """
    values = {"torpor": event, "level": level, "at": round(time.time(), 3), **facts}
    try:
        return json.dumps(values, default=str, allow_nan=False)
    except ValueError:  # NaN, infinity, or a value that contains itself
        return json.dumps(
            {name: value if isinstance(value, str | bool) else str(value) for name, value in values.items()}
        )


def _write(line: str) -> None:
    """Write a whole line at once, because other threads write too. A closed log ends no replica."""
    stream = sys.stderr if _quiet else sys.stdout
    with contextlib.suppress(OSError, ValueError):
        stream.write(f"{line}\n")
        stream.flush()


def warnings_only() -> None:
    """From now on log warnings and errors only, on standard error: for a command that shows the stages itself."""
    global _quiet  # noqa: PLW0603 - the log is one for the whole process
    _quiet = True


def _as_plain(_logger: object, _method: str, line: object) -> str:
    """A rendered event as a terminal may show it."""
    return plain(str(line))


def _logger() -> FilteringBoundLogger:
    import structlog  # noqa: PLC0415 - structlog: 70 ms of a restore

    if _quiet and not structlog.is_configured():
        structlog.configure(
            processors=[structlog.processors.add_log_level, structlog.dev.ConsoleRenderer(colors=False), _as_plain],
            logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        )
    logger: FilteringBoundLogger = structlog.get_logger(_LOGGER)
    return logger
