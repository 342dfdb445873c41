"""The ready replicas of one deployment, in turn: the places of a gateway that starts nothing itself."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torpor.serving.values import NoPlaceError, ServedModel, Start

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.platforms.local.gateway_route import Route
    from torpor.serving.values import Way

__all__ = ["Turns"]

_MODEL = ServedModel(name="", deployment="")
_RETRY_AFTER_S = 1.0


@dataclass(frozen=True)
class _Turn:
    """A request's replica. How many requests a replica takes is its guard's to say."""

    way: Route
    start: Start = "serving"
    waited_s: float = 0.0

    def release(self, *, failed: bool = False) -> None:
        """See `torpor.serving.values.Lease`."""
        if failed:
            self.way.note_failure()


class Turns:
    """The replicas of one deployment; see `torpor.serving.values.Places`.

    Attributes:
        routes: to the replicas.
        by_model: False: every request goes to the one deployment.
    """

    by_model = False

    def __init__(self) -> None:
        self.routes: list[Route] = []
        self._turn = 0
        self._message = "no replica is ready"

    def sleeps(self, woken_by: str) -> None:
        """Tell clients what wakes the server; empty once none sleeps."""
        asleep = f"The server is asleep; it answers again once it is woken: {woken_by}."
        self._message = asleep if woken_by else "no replica is ready"

    def models(self) -> Sequence[ServedModel]:
        """None by name: the engine has the list."""
        return ()

    def find(self, model: str) -> ServedModel | None:  # noqa: ARG002 - every name is the engine's to judge
        """The one deployment."""
        return _MODEL

    def default(self) -> ServedModel | None:
        """The one deployment."""
        return _MODEL

    def take(self, model: ServedModel, prefer: Way | None) -> _Turn | None:  # noqa: ARG002 - there is one model
        """The preferred replica, or the next in turn, if it said a moment ago that it is ready."""
        if not self.routes:
            return None
        for route in self.routes:
            if route is prefer and route.was_ready:
                return _Turn(route)
        route = self.routes[self._turn % len(self.routes)]
        if not route.was_ready:
            return None
        self._turn += 1
        return _Turn(route)

    async def acquire(self, model: ServedModel, prefer: Way | None) -> _Turn:  # noqa: ARG002 - there is one model
        """The preferred replica, or the next ready one in turn. If none is, those that were late get more time.

        Raises:
            NoPlaceError: none is ready.
        """
        for route in tuple(self.routes):
            if route is prefer and await route.is_ready():
                return _Turn(route)
        if picked := await self._pick():
            return _Turn(picked)
        if late := await self._first_late():
            return _Turn(late)
        raise NoPlaceError(self._message, retry_after_s=_RETRY_AFTER_S)

    async def _first_late(self) -> Route | None:
        """The first replica that answers in the longer time of those that were late. All are asked at once."""
        asked = {asyncio.ensure_future(route.is_ready(late=True)): route for route in self.routes}
        waiting = set(asked)
        try:
            while waiting:
                answered, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for one in answered:
                    if one.result():
                        return asked[one]
        finally:
            for one in waiting:
                one.cancel()
        return None

    async def _pick(self) -> Route | None:
        """The next ready replica in turn. Each replica is asked at most once, also when other requests pick meanwhile."""
        turn, self._turn = self._turn, self._turn + 1
        present = tuple(self.routes)
        for step in range(len(present)):
            route = present[(turn + step) % len(present)]
            if await route.is_ready():
                return route
            # If nobody picked meanwhile, the next request begins behind the replica that was passed over.
            if self._turn == turn + step + 1:
                self._turn += 1
        return None
