"""Ctrl-C, SIGTERM and a closed terminal, noted and raised as KeyboardInterrupt.

Noted, because what is raised may not arrive: an exception out of a signal handler inside the import of an extension
module can come out as that module's own (seen: `TypeError: expected a message argument` out of `import ssl`).
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["end_as_hung_up", "ends_on_sigterm", "interrupted", "note_ctrl_c"]

_noted: list[int] = []


def note_ctrl_c() -> None:
    """Have SIGINT noted as well as raised; not where it is ignored (`nohup ... &`)."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def ends_on_sigterm() -> None:
    """Have SIGTERM end the command as Ctrl-C does, and SIGHUP (a closed terminal) unless it is ignored (`nohup`)."""
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _interrupt)


def interrupted() -> bool:
    """Whether one of them has come."""
    return bool(_noted)


def end_as_hung_up() -> None:
    """End by SIGHUP, if that came: whoever waits for this process sees what it would have seen."""
    if signal.SIGHUP in _noted:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGHUP)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    _noted.append(number)
    raise KeyboardInterrupt
