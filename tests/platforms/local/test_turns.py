"""Which replica a request gets; the gateway's tests have the rest."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from torpor.platforms.local.turns import Turns
from torpor.serving.values import ServedModel

if TYPE_CHECKING:
    from torpor.platforms.local.gateway_route import Route


class Late:
    """A route to a replica that is not ready at once."""

    was_ready = False

    def __init__(self, *, answers: bool) -> None:
        self.answers, self.asked, self.cancelled = answers, False, False

    async def is_ready(self, *, late: bool = False) -> bool:
        """Not at once; with more time, ready or never."""
        if late and not self.answers:
            self.asked = True
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        return late and self.answers


def test_one_replica_that_hangs_does_not_delay_another_one_that_is_late() -> None:
    """Both are asked at once, the first that is ready gets the request, and nobody waits for the other any more."""

    async def request() -> tuple[object, Late, Late]:
        hangs, answers = Late(answers=False), Late(answers=True)
        turns = Turns()
        turns.routes = [cast("Route", hangs), cast("Route", answers)]
        async with asyncio.timeout(30):
            lease = await turns.acquire(ServedModel(name="", deployment=""), None)
        await asyncio.sleep(0)
        return lease.way, hangs, answers

    way, hangs, answers = asyncio.run(request())
    assert way is answers
    assert hangs.asked
    assert hangs.cancelled
