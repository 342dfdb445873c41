"""Progress of long work: core and plugins report it, and a listener shows it."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["followed_lines", "followed_value", "is_heard", "lines_after", "listening", "tell"]

_LOOK_S = 0.3
_listeners: list[Callable[[str], None]] = []  # of the whole process, because threads report progress too


def tell(text: str) -> None:
    """Report how far the current work is, in a few words: `request 2 of 4`. Costs nothing without a listener."""
    for listener in tuple(_listeners):
        listener(text)


def is_heard() -> bool:
    """Whether there is a listener. Without one, callers need not measure the progress."""
    return bool(_listeners)


@contextlib.contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Call `listener` with each report, from any thread, while the block runs."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextlib.contextmanager
def followed_lines(lines: Callable[[], Sequence[str]], meaning: Callable[[str], str]) -> Iterator[None]:
    """Report what new lines of a log mean while the block runs; they are read three times a second.

    Args:
        lines: the last lines of a log, oldest first.
        meaning: returns a few words for a line about the progress, and empty text for any other.
    """
    seen = 0

    def look() -> str:
        nonlocal seen
        found = lines()
        new, seen = lines_after(found, seen), hash(found[-1]) if found else 0
        return next((words for line in reversed(new) if (words := meaning(line))), "")

    with _followed(look):
        yield


@contextlib.contextmanager
def followed_value(value: Callable[[], str]) -> Iterator[None]:
    """Report a value whenever it changes while the block runs; it is read three times a second."""
    with _followed(value):
        yield


@contextlib.contextmanager
def _followed(look: Callable[[], str]) -> Iterator[None]:
    if not is_heard():
        yield
        return
    ended = threading.Event()

    def follow() -> None:
        last = ""
        while True:
            over = ended.wait(_LOOK_S)
            with contextlib.suppress(OSError):  # the file or process may be gone
                text = look()
                if text and text != last:
                    last = text
                    tell(text)
            if over:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def lines_after(lines: Sequence[str], seen: int) -> Sequence[str]:
    """The lines after the one with the known hash; all of them if it is no longer there."""
    for number in range(len(lines) - 1, -1, -1):
        if hash(lines[number]) == seen:
            return lines[number + 1 :]
    return lines
