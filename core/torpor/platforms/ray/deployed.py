"""Which of Torpor's deployments run on this cluster now, as Serve says: for an application that stands before them.

Serve is asked in a thread, and only while somebody asks the application.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from torpor.platforms.ray.names import deployment_name, is_ours

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Deployed"]

_FRESH_S = 1.0
_OLD_S = 10.0
_ANSWER_S = 2.0


class Deployed:
    """What Serve said last. For the thread of one event loop.

    Args:
        ask: status by the name of each application; blocks.
    """

    def __init__(self, ask: Callable[[], Mapping[str, str]]) -> None:
        self._ask = ask
        self._names: frozenset[str] | None = None
        self._at = float("-inf")
        self._looking: asyncio.Task[None] | None = None

    def has(self, deployment: str) -> bool:
        """Whether it was deployed at the last look; true before the first one."""
        return self._names is None or deployment in self._names

    def look_again(self) -> None:
        """Begin a look if the last one is ten seconds old; nobody waits for it."""
        if asyncio.get_running_loop().time() - self._at > _OLD_S:
            self._begun()

    async def look(self) -> None:
        """Look, unless it was done within the last second. Without an answer in two seconds the last one counts."""
        if asyncio.get_running_loop().time() - self._at > _FRESH_S:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ANSWER_S):
                    await asyncio.shield(self._begun())

    def _begun(self) -> asyncio.Task[None]:
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look())
        return self._looking

    async def _look(self) -> None:
        try:
            seen = await asyncio.to_thread(self._ask)
            here = [name for name, status in seen.items() if is_ours(name) and status != "DELETING"]
            self._names = frozenset(map(deployment_name, here))
        except Exception:  # noqa: S110 - Serve's controller is away: the last answer counts
            pass
        finally:
            self._at, self._looking = asyncio.get_running_loop().time(), None
