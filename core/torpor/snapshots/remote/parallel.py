"""Work in a bounded number of threads: the first error ends it, and so does a store that no longer answers.

The threads are daemons. A call that hangs in a network disk can be neither cancelled nor joined, and must not keep the command
from ending.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar

from torpor.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["STALLED_S", "each", "jobs_here", "share", "within"]

STALLED_S = 300.0
"""A transfer that finishes nothing for so long has stalled. The slowest chunk, 8 MiB, needs 30 kB/s."""

_LOOK_S = 0.2
_ENDING_S = 5.0
_MOST_JOBS = 16

_STEPS = 20

Job = TypeVar("Job")
Answer = TypeVar("Answer")


def jobs_here() -> int:
    """How many transfers run at once: two for each processor, so that some compute while others wait."""
    return min(_MOST_JOBS, 2 * len(os.sched_getaffinity(0)))


class _Team(Generic[Job]):
    """Threads that take jobs from one iterator until it ends or something fails."""

    def __init__(self, jobs: Iterable[Job], work: Callable[[Job], None], count: int) -> None:
        self._jobs: Iterator[Job] = iter(jobs)
        self._work = work
        self._changed = threading.Condition()
        self._stopped = False
        self._busy = count
        self.error: BaseException | None = None
        self.finished = 0
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait; whether all threads have ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._busy == 0, seconds)
            return self._busy == 0

    def stop(self) -> None:
        """Take no more jobs, and wait a moment for those that run."""
        with self._changed:
            self._stopped = True
        self.wait(_ENDING_S)

    def _next(self) -> tuple[Job] | None:
        with self._changed:
            if not self._stopped:
                for job in self._jobs:
                    return (job,)
            return None

    def _run(self) -> None:
        try:
            while job := self._next():
                self._work(*job)
                with self._changed:
                    self.finished += 1
        except BaseException as error:
            with self._changed:
                self.error = self.error or error
                self._stopped = True
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()


def each(jobs: Iterable[Job], work: Callable[[Job], None], *, count: int, stalled_s: float = STALLED_S) -> None:
    """Do every job, several at once, in any order.

    Args:
        jobs: they are taken one by one; the iterator runs in the threads, one at a time.
        work: does one.
        count: how many run at once.
        stalled_s: if no job ends for so long, the work has stalled.

    Raises:
        StoreError: it has stalled.
        BaseException: the first that a job raised; jobs that run then are waited for, for a moment.
    """
    team = _Team(jobs, work, count)
    seen, since = 0, time.monotonic()
    try:
        while not team.wait(_LOOK_S):
            if team.finished != seen:
                seen, since = team.finished, time.monotonic()
            elif time.monotonic() - since > stalled_s:
                raise StoreError(
                    f"The store has stalled: no transfer ended for {stalled_s:g} s. Check the connection or the mount, then run "
                    "the same command again; it goes on where it was."
                )
    finally:
        team.stop()
    if team.error:
        raise team.error


def within(work: Callable[[], Answer], *, seconds: float = STALLED_S) -> Answer:
    """Do one thing, with a deadline.

    Raises:
        StoreError: it takes longer.
        BaseException: what it raised.
    """
    answers: list[Answer] = []
    each([work], lambda one: answers.append(one()), count=1, stalled_s=seconds)
    return answers[0]


def share(done: int, total: int) -> str:
    """How much is done, in steps of 5 %, so that a log gets 20 lines and no more."""
    return f"{min(_STEPS, _STEPS * done // max(total, 1)) * 100 // _STEPS} % of {total / 1e6:.0f} MB"
