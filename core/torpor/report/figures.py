"""Numbers as text for people."""

from __future__ import annotations

import time

__all__ = ["bytes_text", "date_text", "seconds_text"]

_MILLISECOND = 1e-3
_KILO, _MEGA, _GIGA = 1e3, 1e6, 1e9
_SECONDS_WITH_MS, _SECONDS_WITH_CS = 10.0, 100.0


def seconds_text(seconds: float) -> str:
    """Seconds, with milliseconds below 10 s, hundredths below 100 s, else tenths; milliseconds below 1 ms."""
    if 0 < seconds < _MILLISECOND:
        return f"{seconds / _MILLISECOND:.2f} ms"
    digits = 3 if seconds < _SECONDS_WITH_MS else 2 if seconds < _SECONDS_WITH_CS else 1
    return f"{seconds:.{digits}f} s"


def bytes_text(count: float) -> str:
    """Bytes in the decimal unit that suits them."""
    for size, unit in ((_GIGA, "GB"), (_MEGA, "MB"), (_KILO, "kB")):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} bytes"


def date_text(at: float) -> str:
    """A Unix time as date and minute, UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
