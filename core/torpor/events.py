"""Torpor's log events. structlog is imported with the first one that somebody sees: it takes 135 ms of CPU, half a restore's."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

__all__ = ["STAGE", "Level", "log", "warnings_only"]

Level = Literal["info", "warning", "error"]

STAGE = "stage"
_LOGGER = "torpor"
_quiet = False


def log(level: Level, event: str, **facts: object) -> None:
    """Log an event through structlog, as the process has configured it.

    Args:
        level: its level.
        event: its name, snake_case.
        facts: what belongs to it.
    """
    if _quiet and (level == "info" or event == STAGE):
        return
    getattr(_logger(), level)(event, **facts)


def warnings_only() -> None:
    """From now on log warnings only, on standard error: for a command whose own output tells the stages."""
    global _quiet  # noqa: PLW0603 - as global as the log itself
    _quiet = True


def _logger() -> FilteringBoundLogger:
    import structlog  # noqa: PLC0415 - see above

    if _quiet and not structlog.is_configured():
        structlog.configure(
            processors=[structlog.processors.add_log_level, structlog.dev.ConsoleRenderer(colors=False)],
            logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        )
    logger: FilteringBoundLogger = structlog.get_logger(_LOGGER)
    return logger
