"""What all clients of one gateway share."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from torpor.serving.answers import error_answer
from torpor.serving.upstream import Pool

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from torpor.serving.answers import Answer
    from torpor.serving.connection import Connection
    from torpor.serving.limits import Limits
    from torpor.serving.router import Router
    from torpor.serving.values import Pages, Places

__all__ = ["Shared"]

_PART = 4


@dataclass(kw_only=True)
class Shared:
    """What all clients of one gateway share.

    Attributes:
        places: the models and their replicas.
        router: decides where requests go.
        pages: the gateway's own; None if there are none.
        limits: what clients may take.
        begin: starts a task that ends with the gateway.
        left: called when a connection is closed.
        pool: connections to replicas.
        clients: the open connections.
        draining: whether new requests are refused.
        held: bytes of request bodies that no replica has got yet.
    """

    places: Places
    router: Router
    pages: Pages | None
    limits: Limits
    begin: Callable[[Coroutine[None, None, None]], asyncio.Task[None]]
    left: Callable[[], None]
    pool: Pool = field(default_factory=Pool)
    clients: set[Connection] = field(default_factory=set)
    draining: bool = False
    held: int = 0

    def is_full(self, own: int) -> bool:
        """Whether no more of a body may be held, of which `own` bytes are held already."""
        most = self.limits.held_mb * 1e6
        return own > most / _PART or self.held > most

    def not_ready(self) -> Answer:
        """The answer to a request while the gateway drains."""
        return error_answer(
            HTTPStatus.SERVICE_UNAVAILABLE, "not_serving", "The server is about to stop.", retry_after_s=1
        )
