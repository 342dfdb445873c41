"""The places of an application that has one replica: requests get it in order, and never more at once than it takes."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from torpor.serving.values import NoPlaceError, ServedModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.serving.values import Start, Way

__all__ = ["OneReplica"]


class OneReplica:
    """One replica; see `torpor.serving.values.Places`.

    Args:
        way: to the replica.
        most: requests that it takes at once.
        start: what the first request met: the kind of the replica's start, if the request waited for it.

    Attributes:
        by_model: False: every request goes to it, and its engine judges the name.
    """

    by_model = False

    def __init__(self, way: Way, most: int, *, start: Start = "serving") -> None:
        self._way, self._most, self._start = way, most, start
        self._model = ServedModel(name="", deployment="")
        self._in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._gone = ""

    @property
    def in_flight(self) -> int:
        """Requests that hold a lease."""
        return self._in_flight

    def models(self) -> Sequence[ServedModel]:
        """None by name: the engine has the list."""
        return ()

    def find(self, model: str) -> ServedModel | None:  # noqa: ARG002 - every name is the engine's to judge
        """The replica's."""
        return self._model

    def default(self) -> ServedModel | None:
        """The replica's."""
        return self._model

    def close(self, reason: str) -> None:
        """The replica has ended: refuse those that wait, and those that come."""
        self._gone = reason
        while self._waiting:
            if not (waiter := self._waiting.popleft()).done():
                waiter.set_exception(self._refusal())

    def take(self, model: ServedModel, prefer: Way | None) -> _Held | None:  # noqa: ARG002 - there is one of each
        """A lease, if nobody waits and the replica has room."""
        if self._gone or self._waiting or self._in_flight >= self._most:
            return None
        return self._held(0.0)

    async def acquire(self, model: ServedModel, prefer: Way | None) -> _Held:  # noqa: ARG002 - there is one of each
        """A lease, in order. The server's own queue and the client's patience limit the wait.

        Raises:
            NoPlaceError: the replica has ended.
        """
        if self._gone:
            raise self._refusal()
        loop = asyncio.get_running_loop()
        began, turn = loop.time(), loop.create_future()
        self._waiting.append(turn)
        try:
            self._let_in()
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._in_flight -= 1  # it was let in, and left at the same moment
                self._let_in()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise
        self._in_flight -= 1
        return self._held(loop.time() - began)

    def _held(self, waited_s: float) -> _Held:
        self._in_flight += 1
        start, self._start = self._start, "serving"
        return _Held(self, self._way, start, waited_s)

    def _let_in(self) -> None:
        while self._waiting and self._in_flight < self._most:
            if not (turn := self._waiting.popleft()).done():
                self._in_flight += 1
                turn.set_result(None)

    def released(self) -> None:
        """A lease was given back."""
        self._in_flight -= 1
        self._let_in()

    def _refusal(self) -> NoPlaceError:
        return NoPlaceError(self._gone, retry_after_s=1)


class _Held:
    """A lease on the replica."""

    def __init__(self, places: OneReplica, way: Way, start: Start, waited_s: float) -> None:
        self.way, self.start, self.waited_s = way, start, waited_s
        self._places: OneReplica | None = places

    def release(self, *, failed: bool = False) -> None:  # noqa: ARG002 - its engine's end is watched elsewhere
        """See `torpor.serving.values.Lease`."""
        places, self._places = self._places, None
        if places is not None:
            places.released()
