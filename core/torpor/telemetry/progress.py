"""What long work says about how far it is: told by core and plugins, heard by whoever shows it, else by nobody."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["followed_lines", "followed_value", "is_heard", "listening", "tell"]

_LOOK_S = 0.3
_listeners: list[Callable[[str], None]] = []  # of the process, whatever the thread: work is told from threads, too


def tell(text: str) -> None:
    """Say how far the present work is, a few words: `request 2 of 4`. Without a listener it costs nothing."""
    for listener in tuple(_listeners):
        listener(text)


def is_heard() -> bool:
    """Whether somebody listens: what would cost something to find out need not be found out otherwise."""
    return bool(_listeners)


@contextlib.contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Have `listener` called with everything that is told; from any thread."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextlib.contextmanager
def followed_lines(lines: Callable[[], Sequence[str]], meaning: Callable[[str], str]) -> Iterator[None]:
    """Tell what new lines mean, three times a second, while the block runs.

    Args:
        lines: the last lines of a log, oldest first.
        meaning: a few words for a line that says how far the work is; empty for any other.
    """
    seen = 0

    def look() -> str:
        nonlocal seen
        found = lines()
        new, seen = _after(found, seen), hash(found[-1]) if found else 0
        return next((words for line in reversed(new) if (words := meaning(line))), "")

    with _followed(look):
        yield


@contextlib.contextmanager
def followed_value(value: Callable[[], str]) -> Iterator[None]:
    """Tell a value whenever it is another one, three times a second, while the block runs."""
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
            with contextlib.suppress(OSError):  # what is looked at may be gone
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


def _after(lines: Sequence[str], seen: int) -> Sequence[str]:
    """The lines after the one whose hash is known; all of them when it is no longer there."""
    for number in range(len(lines) - 1, -1, -1):
        if hash(lines[number]) == seen:
            return lines[number + 1 :]
    return lines
