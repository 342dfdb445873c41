"""Replaces replicas that ended: threads start them again, and end at once when the server stops."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from torpor.errors import SnapshotError
from torpor.runtime.supervision import ReplicaEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torpor.runtime.supervision import BackOff
    from torpor.snapshots.sandbox.start import StartingSandbox

__all__ = ["Attempt", "Replacement"]

_JOIN_S = 20.0


class Attempt:
    """The sandboxes of one start, in any thread, so that another thread can end the whole start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun: list[StartingSandbox] = []
        self._ended = False

    def begin(self, make: Callable[[], StartingSandbox]) -> StartingSandbox:
        """Begin one more.

        Raises:
            SnapshotError: the start was ended meanwhile.
        """
        with self._lock:
            if self._ended:
                raise SnapshotError("The start was ended before it was over.")
            self._begun.append(make())
            return self._begun[-1]

    @property
    def ended(self) -> bool:
        """Whether `end` was called."""
        return self._ended

    def end(self) -> None:
        """End all of them, and begin no more. Threads that work with one get an error. Harmless to repeat."""
        with self._lock:
            self._ended = True
            begun, self._begun = self._begun, []
        for sandbox in begun:
            sandbox.end()


class Replacement:
    """Starts ended replicas again, with pauses (`torpor.runtime.supervision.BackOff`).

    Args:
        start: starts a replica in place of the named one; it serves when this returns.
        tell: called with failures.
    """

    def __init__(self, start: Callable[[str, BackOff], None], tell: Callable[[ReplicaEvent], None]) -> None:
        self._start = start
        self._tell = tell
        self._changed = threading.Condition()
        self._threads: set[threading.Thread] = set()
        self._hurried = 0
        self._stopping = False

    @property
    def under_way(self) -> int:
        """How many are started again now, or wait for that."""
        with self._changed:
            return len(self._threads)

    @contextlib.contextmanager
    def expected(self) -> Iterator[None]:
        """Count the calling thread as under way from here on, before anybody is told that a replica ended."""
        thread = threading.current_thread()
        with self._changed:
            self._threads.add(thread)
        try:
            yield
        finally:
            with self._changed:
                self._threads.discard(thread)

    def run(self, name: str, back_off: BackOff) -> None:
        """Start a replica again, in the calling thread, until it serves, is given up, or `stop` is called."""
        with self.expected():
            given_up = not self._serves_again(name, back_off)
        if given_up:
            self._tell(ReplicaEvent("replica_given_up", name, restart=back_off.restarts))

    def hurry(self) -> None:
        """End the pauses: waiting replicas start now."""
        with self._changed:
            self._hurried += 1
            self._changed.notify_all()

    def stop(self) -> None:
        """Start nothing any more."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def join(self) -> None:
        """Wait for the threads that were under way at `stop`. End what they work with before."""
        deadline = time.monotonic() + _JOIN_S
        with self._changed:
            threads = self._threads - {threading.current_thread()}
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def allow(self) -> None:
        """Begin again after a `stop`."""
        with self._changed:
            self._stopping = False

    def _serves_again(self, name: str, back_off: BackOff) -> bool:
        """Whether it serves, or is no longer wanted."""
        while not self._stopping and (pause_s := back_off.ended()) is not None:
            if self._stopped_within(pause_s):
                return True
            try:
                self._start(name, back_off)
            except Exception as error:
                if self._stopping:
                    return True
                said = f"{type(error).__name__}: {error}"
                self._tell(ReplicaEvent("restart_failed", name, restart=back_off.restarts, error=said))
            else:
                return True
        return self._stopping

    def _stopped_within(self, pause_s: float) -> bool:
        deadline = time.monotonic() + pause_s
        with self._changed:
            hurried = self._hurried
            while not self._stopping and self._hurried == hurried and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            return self._stopping
