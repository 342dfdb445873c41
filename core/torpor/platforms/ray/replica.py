"""A replica of a Ray Serve deployment: an actor that owns one engine, and forwards requests to it.

    fitting snapshot       restored; the first replica of a node fetches it
    none, or it failed     started cold on a free port; the log says why
    the engine fails       the actor answers 503 with the reason, and tries again; after half a minute a fresh one does

Its start does not fail because of the engine: Serve gives a deployment up whose constructors fail three times, until somebody
deploys it again. When the engine ends, the actor ends. That is faster than a failed health check, and a request that finds no
listener goes to another replica. The actor ends with its raylet, too: then Serve starts another one elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

import ray

from torpor.app_file import load_app
from torpor.errors import TorporError
from torpor.platforms.local.private_replica import PrivateReplica
from torpor.platforms.ray.gpus import assigned_gpus
from torpor.platforms.ray.next_worker import start_next_worker
from torpor.platforms.ray.snapshot_store import NO_STORE, SnapshotStore, fitting_snapshot
from torpor.serving.answers import error_answer
from torpor.serving.asgi import AsgiGateway, serve_lifespan
from torpor.serving.asgi_answer import send_answer
from torpor.serving.one_replica import OneReplica
from torpor.telemetry.events import log

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from torpor.serving.answers import Answer
    from torpor.serving.asgi_answer import Receive, Scope, Send
    from torpor.serving.states import Kind

__all__ = ["EngineReplica"]

BROKEN_FOR_S = 30.0
"""Seconds for which an actor without an engine tries again. Then a fresh one does, maybe on another node."""
_AGAIN_S = (1.0, 8.0)
"""Seconds before the first and at most before a later try. Each imports the app file again."""

_RETRY_AFTER_S = 10.0
_LAST_ANSWERS_S = 0.1
_LOOK_S = 0.25
"""Seconds between two looks at the raylet. Ray's own take a second, and hold a raylet for alive whose parent has not reaped it."""
_NEXT_AFTER_S = 1.0
_HELPERS = 2
_UNAVAILABLE = 503


class EngineReplica:
    """The Serve deployment; Serve calls its methods.

    Args:
        app_file: path of the app file, the same on every node.
        store: where it gets its snapshot.
    """

    def __init__(self, app_file: str, store: SnapshotStore = NO_STORE) -> None:
        self._app_file, self._store = app_file, store
        self._over = threading.Event()
        self._owned: PrivateReplica | None = None
        self._application = _Application()

    async def __serve_build_asgi_app__(self) -> _Application:
        """Start the engine; returns the application that answers requests. Serve awaits it right after the constructor."""
        if not await asyncio.to_thread(self._serves):
            threading.Thread(target=self._try_again, daemon=True).start()
        return self._application

    def check_health(self) -> None:
        """Nothing to look for: an actor whose engine has ended ends by itself."""

    async def __del__(self) -> None:
        """Serve awaits this when it stops the replica, after its requests."""
        await asyncio.to_thread(self._stop)

    def _serves(self) -> bool:
        """Start the engine; returns whether it serves. What requests get from now on is the engine, or why there is none."""
        try:
            self._application.now = self._started()
        except Exception as error:
            log("error", "engine_did_not_start", app=self._app_file, error=f"{type(error).__name__}: {error}")
            if self._owned is not None:
                self._owned.stop()
            self._application.now = _Broken.after(error)
            return False
        return True

    def _try_again(self) -> None:
        """Start the engine again, with pauses; end this actor if it does not serve in time, whatever fails."""
        serves, pause_s, most_s = False, *_AGAIN_S
        try:
            deadline = time.monotonic() + BROKEN_FOR_S
            while not serves and time.monotonic() + pause_s < deadline and not self._over.wait(pause_s):
                serves, pause_s = self._serves(), min(2 * pause_s, most_s)
        finally:
            if not serves and not self._over.is_set():
                os._exit(1)

    def _started(self) -> _Forwarding:
        app = load_app(self._app_file)
        gpus = assigned_gpus(ray.get_runtime_context().get_accelerator_ids().get("GPU", []))
        name = f"{app.deployment.name}-{ray.get_runtime_context().get_actor_id() or os.getpid()}"
        owned = self._owned = PrivateReplica(
            app, name=name, snapshot=fitting_snapshot(app, self._store, _tell), gpus=gpus, tell=_tell
        )
        if self._over.is_set():
            raise TorporError("The replica is being stopped.")
        kind = owned.start()
        log("info", "replica_serves", replica=name, start=kind, pid=owned.pid)
        forwarding = _Forwarding(owned, kind, app.deployment.scaling.max_concurrency)
        threading.Thread(target=self._end_with_engine, args=(owned, forwarding), daemon=True).start()
        threading.Thread(target=self._start_next, daemon=True).start()
        return forwarding

    def _start_next(self) -> None:
        """Have the node start a worker for the next replica, once the first answer of this one does not wait for the processor."""
        if not self._over.wait(_NEXT_AFTER_S):
            start_next_worker()

    def _end_with_engine(self, owned: PrivateReplica, forwarding: _Forwarding) -> None:
        """End this actor with its engine or its raylet, whatever fails meanwhile: its health check finds neither."""
        try:
            why = self._why_over(owned)
            if self._over.is_set():
                return
            log("error", "engine_ended", replica=owned.name, reason=why)
            if forwarding.refuse(why):
                threading.Event().wait(_LAST_ANSWERS_S)  # those in flight get their 502, those that wait a 503
        finally:
            if not self._over.is_set():
                os._exit(1)

    def _why_over(self, owned: PrivateReplica) -> str:
        """Wait until the engine or the raylet ends, or this replica is being stopped; says why."""
        raylet, why = os.getppid(), None
        while why is None and os.getppid() == raylet and not self._over.is_set():
            why = owned.wait(_LOOK_S)
        return why or "the raylet of this node ended"

    def _stop(self) -> None:
        self._over.set()
        if self._owned is not None:
            self._owned.stop()


class _Application:
    """What answers requests.

    Attributes:
        now: the engine, or why there is none.
    """

    def __init__(self) -> None:
        self.now: _Forwarding | _Broken = _Broken("The engine is not started yet.")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            await serve_lifespan(receive, send)
        else:
            await self.now(scope, receive, send)


class _Forwarding:
    """The application of a replica with an engine. Serve may call it in another event loop than the constructor's."""

    def __init__(self, owned: PrivateReplica, kind: Kind, most: int) -> None:
        self._owned, self._kind, self._most = owned, kind, most
        self._helpers = ThreadPoolExecutor(_HELPERS, thread_name_prefix="torpor-replica")
        self._places: OneReplica | None = None
        self._gateway: AsgiGateway | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def refuse(self, why: str) -> bool:
        """Refuse what waits and what comes, from any thread; returns whether requests are in flight."""
        if self._places is None or self._loop is None:
            return False
        self._loop.call_soon_threadsafe(self._places.close, f"The engine is started again: {why}.")
        return self._places.in_flight > 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        loop = asyncio.get_running_loop()
        if self._gateway is None or self._loop is not loop:
            self._loop = loop
            way = self._owned.way(loop, self._helpers, self._begin)
            self._places = OneReplica(way, self._most, start=self._kind)
            self._gateway = AsgiGateway(self._places)
        await self._gateway(scope, receive, send)

    def _begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Broken:
    """The application of a replica without an engine."""

    def __init__(self, message: str) -> None:
        self._answer: Answer = error_answer(_UNAVAILABLE, "start_failed", message, retry_after_s=_RETRY_AFTER_S)

    @classmethod
    def after(cls, error: Exception) -> Self:
        """After a start that failed."""
        said = str(error).partition("\n")[0] if isinstance(error, TorporError) else f"{type(error).__name__}: {error}"
        return cls(f"The engine did not start: {said}")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Say why there is no engine."""
        if scope["type"] == "http":
            await send_answer(send, self._answer, with_body=scope["method"] != "HEAD")
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1011})


def _tell(line: str) -> None:
    log("warning", "replica_starts", detail=line)
