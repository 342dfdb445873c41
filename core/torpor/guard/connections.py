"""The connections that the HTTP server around the guard has open: closed for a sleep, since none may cross it.

ASGI knows no connections. Uvicorn's own are reached through the `receive` of a request: its cycle knows its transport, that one
its protocol, and that one the set of all (`connections`, `cycle` and `shutdown` of h11_impl.py and httptools_impl.py, 0.30 to
0.54). With another server, or behind a layer that hides `receive`, none are seen, and none are closed.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from typing import Self

    from torpor.guard.messages import Receive

    class Cycle(Protocol):
        """One request of a connection, and its answer."""

        response_complete: bool

    class ServerConnection(Protocol):
        """What is asked of uvicorn's protocol objects."""

        transport: asyncio.Transport
        cycle: Cycle | None

        def shutdown(self) -> None:
            """Close now if idle, else after the answer."""


__all__ = ["Connections"]

_IDLE_S = 0.5


class Connections:
    """Every open connection but the one that asks.

    Args:
        everyone: the server's own set of them.
        own: whose request this is.
    """

    def __init__(self, everyone: set[ServerConnection], own: ServerConnection | None) -> None:
        self._everyone = everyone
        self._own = own
        self._earlier = set(everyone)
        self._idle: dict[ServerConnection, tuple[Cycle | None, float]] = {}

    @classmethod
    def of(cls, receive: Receive) -> Self:
        """Those of the server whose `receive` this is."""
        with contextlib.suppress(AttributeError):
            transport: asyncio.Transport = receive.__self__.transport  # type: ignore[attr-defined]
            own = cast("ServerConnection", transport.get_protocol())
            everyone = own.connections  # type: ignore[attr-defined]
            if isinstance(everyone, set) and own in everyone:
                return cls(everyone, own)
        return cls(set(), None)

    @property
    def earlier(self) -> set[ServerConnection]:
        """Those that were there when this object was made, and still are."""
        self._earlier &= self._everyone
        return self._earlier - {self._own} if self._own else set()

    def close_idle(self) -> None:
        """Close each that has had no request for half a second; one that has a request is closed after its answer."""
        now = asyncio.get_running_loop().time()
        for each in self._everyone - {self._own} if self._own else ():
            if each.transport.is_closing() or self._may_ask(each, now):
                continue
            with contextlib.suppress(Exception):  # h11 refuses to close a connection in some states of an error
                each.shutdown()
                continue
            each.transport.abort()

    def cut_earlier(self) -> None:
        """Cut those that were there when this object was made."""
        for each in self.earlier:
            each.transport.abort()

    def cut_all(self) -> None:
        """Cut every one."""
        for each in self._everyone - {self._own}:
            each.transport.abort()

    def _may_ask(self, each: ServerConnection, now: float) -> bool:
        """Whether a request may be on its way: closed over it, a client that keeps its connection busy would lose one.

        The guard answers that one, and tells the client to close.
        """
        cycle = each.cycle
        if cycle is not None and not cycle.response_complete:
            return False
        seen, since = self._idle.get(each, (None, now))
        if seen is not cycle:
            since = now
        self._idle[each] = cycle, since
        return now - since < _IDLE_S
