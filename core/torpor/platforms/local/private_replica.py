"""One replica that only its owner reaches: restored if the snapshot fits, else started cold. No port is public.

    replica = PrivateReplica(load_app("apps/small.py"), snapshot=folder)
    replica.start()                      # `restored` or `cold`; it serves
    way = replica.way(loop, helpers, begin)
    replica.wait(1.0)                    # None while its engine runs, else why it ended
    replica.stop()

For a platform that has processes of its own, such as Ray Serve. The owner must not end without the replica: an engine in a
sandbox ends with it, and watchers end any other (`torpor.engine.lifeline`).
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

from torpor.errors import TorporError
from torpor.platforms.local.gateway_route import Route
from torpor.platforms.local.serve.engine_here import EngineHere, Ways
from torpor.runtime.supervision import ReplicaEvent
from torpor.telemetry.events import log

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Sequence
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path
    from socket import socket as Socket  # noqa: N812 - `socket` is a method here

    from torpor.app_file import App
    from torpor.platforms.local.gateway_route import GatewayReplica
    from torpor.serving.states import Kind

__all__ = ["PrivateReplica"]


class PrivateReplica:
    """One replica. Every method but `way` and `socket` blocks; `stop` may be called from any thread, also during a start.

    Args:
        app: what to serve.
        name: of the replica; by default the deployment's.
        snapshot: folder of a snapshot; None starts it cold.
        gpus: numbers of its GPUs, in the driver's order; by default those that a start chooses.
        tell: called with one line for people, such as why it starts cold; logged by default.
    """

    def __init__(
        self,
        app: App,
        *,
        name: str = "",
        snapshot: Path | None = None,
        gpus: Sequence[int] = (),
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name or app.deployment.name
        self._ways = Ways(app=app, snapshot=snapshot, tell=tell or _logged, on_event=ReplicaEvent.log)
        self._engine = EngineHere(self._ways, self.name, tuple(gpus))

    def start(self) -> Kind:
        """Start it; it serves when this returns.

        Raises:
            TorporError: it could not be started; nothing of it is left.
        """
        return self._engine.start()

    @property
    def pid(self) -> int:
        """Of the engine's first process."""
        return self._engine.boot.running_engine.pid

    @property
    def _place(self) -> GatewayReplica:
        if self._engine.routed is None:
            raise TorporError(f"The replica {self.name} does not serve; call start first.")
        return self._engine.routed

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that a `socket` connects to."""
        deployment = self._engine.boot.deployment
        return deployment.host, self._place.port

    def socket(self) -> Socket:
        """A new TCP socket of the replica's network, not connected; `address` is where to."""
        return self._place.sandbox.socket()

    def way(
        self,
        loop: asyncio.AbstractEventLoop,
        helpers: ThreadPoolExecutor,
        begin: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
    ) -> Route:
        """The way to it for the data path of `torpor.serving`.

        Args:
            loop: in whose thread it is used.
            helpers: threads that make sockets.
            begin: starts a task in that loop.
        """
        return Route(self._place, loop, helpers, begin)

    def wait(self, limit_s: float | None = None) -> str | None:
        """Wait for its engine's end; returns why it ended, or None if it still runs.

        Args:
            limit_s: seconds at most; None waits for ever.
        """
        looking = select.poll()
        looking.register(self._place.sandbox.fileno(), select.POLLIN)
        ended = looking.poll(None if limit_s is None else limit_s * 1000)
        return self._engine.buried() if ended else None

    def drain(self, limit_s: float) -> int:
        """Refuse new requests and finish those in flight; returns how many were cut off."""
        return self._engine.drain(limit_s)

    def stop(self) -> None:
        """End its processes, also in the middle of a start. Harmless to repeat."""
        self._engine.end()


def _logged(line: str) -> None:
    log("warning", "replica", detail=line)
