"""Ctrl-C, SIGTERM and a closed terminal: recorded, and raised as KeyboardInterrupt.

Recorded, because the exception may get lost: raised by a signal handler during the import of an extension module, it can turn
into an error of that module (seen: `TypeError: expected a message argument` from `import ssl`).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["Signals", "end_as_hung_up", "ends_on_sigterm", "interrupted", "note_ctrl_c"]

_noted: list[int] = []
_LISTENED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGCHLD,
)


def note_ctrl_c() -> None:
    """Record SIGINT as well as raise it, and receive every signal that ends a command, whatever was inherited.

    A shell script starts `torpor ... &` with SIGINT ignored, and ends it with `kill -INT`. The parent may also have blocked
    signals, or ignored SIGCHLD: then the kernel would keep no child's exit code.
    """
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _LISTENED)


def ends_on_sigterm() -> None:
    """Let SIGTERM end the command as Ctrl-C does, and SIGHUP (a closed terminal) too, unless it is ignored (`nohup`)."""
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _interrupt)


def interrupted() -> bool:
    """Whether one of these signals has come."""
    return bool(_noted)


def end_as_hung_up() -> None:
    """End by SIGHUP if that came, so that the parent sees that signal."""
    if signal.SIGHUP in _noted:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGHUP)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    _noted.append(number)
    raise KeyboardInterrupt


_MANY = 4096  # one byte each


class Signals:
    """What the signals ask for while a command serves: the first one drains and ends, the second one ends at once.

    Signals write to a pipe, and `wait` reads it. With an event instead, a signal just before the wait would be seen only with the
    next one (seen: a command that had just said that it serves did not end).

    Attributes:
        end: SIGINT or SIGTERM came, or the terminal was closed.
        hung_up: the terminal was closed: nobody reads messages.
        again: SIGHUP asked to restore missing replicas (only for commands where it means that).
        wanted: `sleep` and `wake`, in the order in which SIGUSR1 and SIGUSR2 came.
    """

    def __init__(self) -> None:
        self.end = self.hung_up = self.again = False
        self.wanted: list[str] = []
        self._woken = self._waker = -1
        self._raising = self._had_terminal = False

    def note_sleeps(self) -> None:
        """From now on record SIGUSR1 and SIGUSR2; their default would end the command."""
        signal.signal(signal.SIGUSR1, lambda *_: self.wanted.append("sleep"))
        signal.signal(signal.SIGUSR2, lambda *_: self.wanted.append("wake"))

    def listen(self, *, hup_means_again: bool = False) -> None:
        """From now on record signals; the first one no longer raises.

        Args:
            hup_means_again: SIGHUP asks to restore missing replicas, unless the terminal was closed.
        """
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        self._had_terminal = _has_terminal()
        signal.signal(signal.SIGTERM, self._note_end)
        signal.signal(signal.SIGINT, self._note_end)
        if hup_means_again:
            signal.signal(signal.SIGHUP, self._note_again)
        elif signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._note_end)
        self.note_sleeps()

    def look(self) -> None:
        """Wake `wait` from another thread, as a signal does: something has changed."""
        if self._waker >= 0:
            with contextlib.suppress(OSError):
                os.write(self._waker, b"\0")

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait for a signal or a call of `look` since the last call, or for the time-out."""
        if timeout_s is None or select.select([self._woken], [], [], timeout_s)[0]:
            os.read(self._woken, _MANY)

    @contextlib.contextmanager
    def ended_at_once(self) -> Iterator[None]:
        """While nothing serves, let the first signal raise, too; it leaves the block."""
        self._raising = True
        try:
            if not self.end:
                yield
        except KeyboardInterrupt:
            if not self._raising:
                raise
        finally:
            self._raising = False

    def _note_end(self, number: int, _frame: FrameType | None) -> None:
        if self.end:
            self._raising = False
            _interrupt(number, None)  # the second signal: stop at once
        self.end = True
        self.hung_up = number == signal.SIGHUP
        if self._raising:
            raise KeyboardInterrupt

    def _note_again(self, number: int, frame: FrameType | None) -> None:
        if self._had_terminal and not _has_terminal():
            self._note_end(number, frame)
        else:
            self.again = True


def _has_terminal() -> bool:
    """Whether this process still has a terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
