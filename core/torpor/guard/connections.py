"""The open connections of the HTTP server around the guard. A sleep closes them: no connection survives a snapshot.

ASGI has no connections. Uvicorn's are reached through the `receive` of a request: its cycle knows the transport, the transport
the protocol, and the protocol the set of all connections (`connections`, `cycle` and `shutdown` of h11_impl.py and
httptools_impl.py, 0.30 to 0.54). With another server, or behind a layer that hides `receive`, the guard sees no
connection and closes none.
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
    """Every open connection except that of the current request.

    Args:
        everyone: the server's set of connections.
        own: the connection of the current request.
    """

    def __init__(self, everyone: set[ServerConnection], own: ServerConnection | None) -> None:
        self._everyone = everyone
        self._own = own
        self._earlier = set(everyone)
        self._idle: dict[ServerConnection, tuple[Cycle | None, float]] = {}

    @classmethod
    def of(cls, receive: Receive) -> Self:
        """The connections of the server that this `receive` belongs to."""
        with contextlib.suppress(AttributeError):
            transport: asyncio.Transport = receive.__self__.transport  # type: ignore[attr-defined]
            own = cast("ServerConnection", transport.get_protocol())
            everyone = own.connections  # type: ignore[attr-defined]
            if isinstance(everyone, set) and own in everyone:
                return cls(everyone, own)
        return cls(set(), None)

    @property
    def earlier(self) -> set[ServerConnection]:
        """The connections that were open when this object was made, and still are."""
        self._earlier &= self._everyone
        return self._earlier - {self._own} if self._own else set()

    def close_idle(self) -> None:
        """Close each connection that was idle for half a second; a busy one closes after its answer."""
        now = asyncio.get_running_loop().time()
        for each in self._everyone - {self._own} if self._own else ():
            if each.transport.is_closing() or self._may_ask(each, now):
                continue
            with contextlib.suppress(Exception):  # h11 refuses to close a connection in some error states
                each.shutdown()
                continue
            each.transport.abort()

    def cut_earlier(self) -> None:
        """Cut the connections that were open when this object was made."""
        for each in self.earlier:
            each.transport.abort()

    def cut_all(self) -> None:
        """Cut every connection."""
        for each in self._everyone - {self._own}:
            each.transport.abort()

    def _may_ask(self, each: ServerConnection, now: float) -> bool:
        """Whether a request may be on its way. Closing now would lose it for a client that keeps its connection busy.

        The guard answers that request, and tells the client to close.
        """
        cycle = each.cycle
        if cycle is not None and not cycle.response_complete:
            return False
        seen, since = self._idle.get(each, (None, now))
        if seen is not cycle:
            since = now
        self._idle[each] = cycle, since
        return now - since < _IDLE_S
