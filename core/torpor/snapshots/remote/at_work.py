"""Who works in a store now, so that nothing is deleted that a push relies on.

A push sends only chunks that the store lacks, and nothing names them before its manifest is there. So whoever deletes chunks must
not run beside a push. Both write a file first, then look for the other's:

    at-work/push-RANDOM        any number at once
    at-work/collect-RANDOM     finds a push: gives up. A push that finds it waits for its end.

Each file is written again every minute. One that is older than a quarter of an hour was left by a process that was killed. Ages are
compared with the own file's, by the store's clock. Who could not renew its own file for half of that time stops before it does
anything that needs it: it was suspended, or cut off.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from typing import TYPE_CHECKING, Literal

from torpor.errors import StoreError
from torpor.telemetry.progress import tell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.snapshots.remote.store import Store

__all__ = ["LIVE_S", "AtWork", "at_work"]

LIVE_S = 900.0
"""A file that was not renewed for so long belongs to nobody."""

_RENEWED_S = 60.0
_LOOK_S = 1.0
_FOLDER = "at-work"
_NAME = re.compile(r"(push|collect)-[0-9a-f]{16}")

Kind = Literal["push", "collect"]


class AtWork:
    """The file of one command in a store.

    Args:
        store: the store; it keeps times.
        kind: what the command does.
    """

    def __init__(self, store: Store, kind: Kind) -> None:
        self._store = store
        self._name = f"{kind}-{os.urandom(8).hex()}"
        self._renewed = 0.0
        self._ended = threading.Event()
        self._renew()
        threading.Thread(target=self._keep, daemon=True).start()

    def now(self) -> float:
        """The store's clock (Unix time).

        Raises:
            StoreError: the store does not tell times.
        """
        renewed, own = self._renewed, self._store.listed(_FOLDER).get(self._name)
        if own is None or own.changed is None:
            raise StoreError(f"The store {self._store.url} does not tell when {_FOLDER}/{self._name} was written.")
        return own.changed + max(_clock() - renewed, 0.0)

    def others(self, kind: Kind) -> dict[str, float]:
        """Who else works, with the seconds since they renewed their file; what killed ones left is deleted."""
        now = self.now()
        ages = {
            name: now - one.changed if one.changed is not None else 0.0
            for name, one in self._store.listed(_FOLDER).items()
            if _NAME.fullmatch(name) and name.startswith(f"{kind}-") and name != self._name
        }
        for name in [name for name, age in ages.items() if age > LIVE_S]:
            self._store.delete(f"{_FOLDER}/{name}")
            del ages[name]
        return ages

    def check(self) -> None:
        """Check that others can still see this command at work.

        Raises:
            StoreError: it was suspended, or could not reach the store, for too long.
        """
        if (silent := _clock() - self._renewed) > LIVE_S / 2:
            raise StoreError(
                f"This command was suspended or cut off from the store {self._store.url} for {silent:.0f} s, and others may have "
                "changed the store meanwhile. Run the same command again: it goes on where it was."
            )

    def end(self) -> None:
        """Delete the file; what cannot be deleted counts for a quarter of an hour."""
        self._ended.set()
        with contextlib.suppress(StoreError):
            self._store.delete(f"{_FOLDER}/{self._name}")

    def wait_for_end_of(self, kind: Kind) -> None:
        """Wait until nobody does this any more. Who is killed counts as gone after a quarter of an hour."""
        told = False
        while self.others(kind):
            if not told:
                tell("somebody removes unneeded chunks from the store; waiting for it")
                told = True
            time.sleep(_LOOK_S)

    def _renew(self) -> None:
        begun = _clock()
        self._store.write(f"{_FOLDER}/{self._name}", b"torpor")
        self._renewed = begun

    def _keep(self) -> None:
        while not self._ended.wait(_RENEWED_S):
            with contextlib.suppress(StoreError, OSError):
                self._renew()
        with contextlib.suppress(StoreError, OSError):  # it may have been written again while `end` deleted it
            self._store.delete(f"{_FOLDER}/{self._name}")


@contextlib.contextmanager
def at_work(store: Store, kind: Kind) -> Iterator[AtWork]:
    """Be at work in a store until the block ends."""
    own = AtWork(store, kind)
    try:
        yield own
    finally:
        own.end()


def _clock() -> float:
    """Seconds that also pass while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
