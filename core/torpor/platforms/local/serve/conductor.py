"""Does what the fleet decides, and hands requests to replicas: the control side of the gateway (`torpor.serving.values.Places`).

The fleet lives in the thread of the gateway's event loop. What blocks (a start, a sleep, a capture) runs in a thread of its own,
which reports back to the loop. While nothing happens there is no thread and no timer.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from torpor.platforms.local.gateway_route import Route
from torpor.platforms.local.serve.engine_here import EngineHere, Ways
from torpor.platforms.local.serve.kept_sizes import Sizes
from torpor.platforms.local.serve.leases import Granted
from torpor.platforms.local.serve.workers import Workers
from torpor.runtime.supervision import ENGINE_ENDED
from torpor.serving.actions import Action, Capture, End, Grant, Refuse, Sleep, Start, Wake
from torpor.serving.values import (
    NoPlaceError,
    NoSuchModelError,
    QueueFullError,
    ServedModel,
    StartFailedError,
    TooLateError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from torpor.platforms.local.serve.kept_sizes import KeptSizes
    from torpor.runtime.boot import Boot
    from torpor.serving.fleet import Fleet
    from torpor.serving.sizes import Size
    from torpor.serving.states import Kind, Replica, Waiter
    from torpor.serving.values import Start as MetStart
    from torpor.serving.values import Way

__all__ = ["Conductor", "Served"]

_REFUSALS: Mapping[str, type[NoPlaceError]] = {
    "late": TooLateError,
    "failed": StartFailedError,
    "removed": NoSuchModelError,
    "closing": StartFailedError,
}
_QUEUE_RETRY_S = 1.0
_HELPERS = 2
_JOIN_S = 30.0


class Served(NamedTuple):
    """One deployment as it is served.

    Attributes:
        name: of the deployment.
        models: every name that requests may use for it.
        ways: how its replicas start.
        sizes: keeps what is measured.
    """

    name: str
    models: tuple[ServedModel, ...]
    ways: Ways
    sizes: KeptSizes


class Conductor:
    """The fleet of one address on this machine.

    Every method but `begin`, `call` and `join` is for the thread of the event loop.

    Args:
        fleet: decides.
        forget: closes the gateway's idle connections on a way; called before a replica sleeps.
        on_change: called after the states have changed.
        tell: called with lines for people, in any thread.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        forget: Callable[[Way], None] = lambda _: None,
        on_change: Callable[[], None] = lambda: None,
        tell: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fleet = fleet
        self._forget = forget
        self._on_change = on_change
        self._tell = tell
        self._clock = clock
        self._served: dict[str, Served] = {}
        self._models: dict[str, ServedModel] = {}
        self._engines: dict[int, EngineHere] = {}
        self._routes: dict[int, Route] = {}
        self._by_way: dict[Way, Replica] = {}
        self._futures: dict[Waiter, asyncio.Future[Granted]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._loop: asyncio.AbstractEventLoop | None = None
        self._helpers = ThreadPoolExecutor(_HELPERS, thread_name_prefix="torpor-sockets")
        self._workers = Workers(self)
        self._tasks: set[asyncio.Task[None]] = set()
        self._deciding = self._again = False
        self._lost: set[str] = set()  # deployments of which a replica ended by itself, until another one serves

    # The configuration

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on the fleet lives in the thread of this event loop."""
        self._loop = loop

    def serve(self, served: Sequence[Served]) -> None:
        """What is served from now on. The fleet has the terms already."""
        self._served = {one.name: one for one in served}
        self._models = {model.name: model for one in served for model in one.models}
        self.decide()

    # What the gateway asks (`Places`)

    @property
    def by_model(self) -> bool:
        """Several models are served, or one that may get company by a reload."""
        return True

    def models(self) -> Sequence[ServedModel]:
        """Every name, with the state of its deployment."""
        return [replace(model, state=self.fleet.state(model.deployment)) for model in self._models.values()]

    def names(self, deployment: str) -> list[str]:
        """Every name of a deployment's model."""
        return [model.name for model in self._models.values() if model.deployment == deployment]

    def changed(self) -> None:
        """Something that people see has changed."""
        self._on_change()

    def find(self, model: str) -> ServedModel | None:
        """The model with this name."""
        return self._models.get(model)

    def default(self) -> ServedModel | None:
        """The model of requests that name none, if there is only one deployment."""
        if len(self._served) != 1:
            return None
        (one,) = self._served.values()
        return one.models[0]

    def take(self, model: ServedModel, prefer: Way | None) -> Granted | None:
        """A lease without waiting; None if the request has to wait."""
        name, now = model.deployment, self._clock()
        if name not in self.fleet.deployments or self.fleet.closing:
            return None
        wanted = self._by_way.get(prefer) if prefer is not None else None
        if wanted is not None and wanted.deployment != name:
            wanted = None
        replica = self.fleet.grant_at_once(name, now, wanted)
        if replica is None:
            return None
        terms = self.fleet.deployments[name].terms
        if terms.most > 1 and (replica.requests > terms.target or terms.buffer):
            self.decide_soon()
        return self._lease(replica, "serving", 0.0)

    async def acquire(self, model: ServedModel, prefer: Way | None) -> Granted:
        """A lease, after waiting in order, through a start as well.

        Raises:
            NoPlaceError: there will be none.
        """
        if lease := self.take(model, prefer):
            return lease
        name, now = model.deployment, self._clock()
        one = self.fleet.deployments.get(name)
        if one is None or one.removed:
            raise NoSuchModelError(f"The model {model.name!r} is not served here any more.")
        if self.fleet.closing:
            raise StartFailedError("The server is ending.", retry_after_s=_QUEUE_RETRY_S)
        waiter = self.fleet.ask(name, now)
        if waiter is None:
            said = f"{one.terms.queue} requests wait for {name!r} already; its queue is full."
            raise QueueFullError(said, retry_after_s=_QUEUE_RETRY_S)
        future: asyncio.Future[Granted] = asyncio.get_running_loop().create_future()
        self._futures[waiter] = future
        self.decide()
        try:
            return await future
        except asyncio.CancelledError:
            self._left(waiter, future)
            raise

    def _left(self, waiter: Waiter, future: asyncio.Future[Granted]) -> None:
        """A client left while it waited, or just after it was granted a lease."""
        self._futures.pop(waiter, None)
        self.fleet.leave(waiter)
        if future.done() and not future.cancelled() and future.exception() is None:
            future.result().release()
        self.decide()

    def released(self, replica: Replica, *, failed: bool) -> None:
        """A lease was given back."""
        now = self._clock()
        self.fleet.release(replica, now)
        if failed and replica.number in self._routes and not self._engines[replica.number].alive:
            self._ended(replica)
        one = self.fleet.deployments.get(replica.deployment)
        if one is None or one.queue or not replica.open or self.fleet.closing:
            self.decide_soon()
        elif not replica.requests:
            self._look_at(now + min(one.terms.idle_s, one.terms.capture_after_s))

    # Decisions

    def decide_soon(self) -> None:
        """Decide once what happens now is over."""
        if not self._again and self._loop is not None:
            self._again = True
            self._loop.call_soon(self.decide)

    def decide(self) -> None:
        """Have the fleet decide, and do it."""
        self._again = False
        if self._loop is None or self._deciding:
            return
        self._deciding = True
        try:
            actions = self.fleet.decide(self._clock())
            for action in actions:
                self._do(action)
        finally:
            self._deciding = False
        self._look_at(self.fleet.next_time(self._clock()), later=True)
        if any(not isinstance(action, Grant) for action in actions):
            self._on_change()

    def _look_at(self, when: float, *, later: bool = False) -> None:
        """Decide again at this time, if not before.

        Args:
            when: of the clock.
            later: whether an earlier timer is no longer needed.
        """
        if when >= self._timer_at and not later:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at = None, math.inf
        if self._loop is not None and when < math.inf:
            self._timer_at = when
            self._timer = self._loop.call_later(max(0.0, when - self._clock()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self.decide()

    def _do(self, action: Action) -> None:
        match action:
            case Grant(waiter, replica):
                self._grant(waiter, replica)
            case Refuse(waiter, code, message, retry_after_s):
                if (future := self._futures.pop(waiter, None)) is not None and not future.done():
                    future.set_exception(_REFUSALS[code](message, retry_after_s=retry_after_s))
            case Start(replica):
                name = f"{replica.deployment}-{replica.number}"
                ways, reason = self._served[replica.deployment].ways, self._why_again(replica.deployment)
                self._engines[replica.number] = EngineHere(ways, name, replica.cards, reason=reason)
                self._begin(self._workers.start, replica)
            case Wake(replica):
                self._begin(self._workers.wake, replica)
            case Sleep(replica):
                self._forget(self._routes[replica.number])
                self._begin(self._workers.sleep, replica)
            case Capture(replica):
                self._forget(self._routes[replica.number])
                self._begin(self._workers.capture, replica)
            case End(replica):
                self._unroute(replica)
                self._begin(self._workers.end, replica)

    def _why_again(self, deployment: str) -> str:
        """Why its next replica starts in place of another one; empty for a plain start."""
        return ENGINE_ENDED if deployment in self._lost else ""

    def _begin(self, work: Callable[[Replica, EngineHere], None], replica: Replica) -> None:
        self._workers.begin(work, replica, self._engines[replica.number])

    def _grant(self, waiter: Waiter, replica: Replica) -> None:
        future = self._futures.pop(waiter, None)
        if future is None or future.done():
            self.fleet.release(replica, self._clock())
            self.decide_soon()
            return
        start: MetStart = replica.kind if waiter.since <= replica.since else "serving"
        future.set_result(self._lease(replica, start, self._clock() - waiter.since))

    def _lease(self, replica: Replica, start: MetStart, waited_s: float) -> Granted:
        return Granted(self, replica, self._routes[replica.number], start, waited_s)

    def call(self, report: Callable[[], None]) -> None:
        """Call a function in the thread of the loop, then decide. For any thread."""

        def run() -> None:
            report()
            self.decide()
            self._on_change()

        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: the server has ended
                self._loop.call_soon_threadsafe(run)

    # What became of it (`torpor.platforms.local.serve.workers.Reports`)

    def served(self, replica: Replica, engine: EngineHere, kind: Kind, seconds: float) -> None:
        """A replica serves."""
        if engine.misfit and not replica.outdated:
            self.fleet.snapshot_lost(replica.deployment)
        if replica.number not in self._routes:
            self._route(replica, engine)
        replica.captured = replica.captured or not engine.can_be_captured
        self._lost.discard(replica.deployment)
        self.fleet.serves(replica, kind, seconds, self._clock())
        self._tell(f"{engine.name}: {kind} in {seconds:.2f} s")

    def failed(self, replica: Replica, engine: EngineHere, why: str, seconds: float, kind: Kind) -> None:
        """A start or wake failed; nothing of the replica is left."""
        self._unroute(replica)
        self._engines.pop(replica.number, None)
        self.fleet.failed(replica, why, seconds, self._clock(), kind=kind)
        self._tell(f"{engine.name}: could not be started: {why}")

    def moved(self, replica: Replica, engine: EngineHere, size: Size | None, why: str, *, kept: bool | None) -> None:
        """A sleep (`kept` is None) or a capture is over."""
        doing = "put to sleep" if kept is None else "captured"
        self._tell(f"{engine.name}: could not be {doing}: {why}" if why else f"{engine.name}: {doing}")
        now = self._clock()
        if size is None or not engine.alive:
            self._unroute(replica)
            self._lost.add(replica.deployment)
            self.fleet.gone(replica, now, by_itself=why or "its engine ended")
            self._begin(self._workers.bury, replica)
        elif kept is not None:
            self.fleet.captured(replica, size, now, asleep=engine.asleep, kept=kept)
            self._keep(replica)
        elif engine.asleep:
            self.fleet.sleeps(replica, size, now)
            self._keep(replica)
        else:
            self.fleet.serves_on(replica, now)
            if replica.stuck:
                self._tell(f"{engine.name}: it could not be put to sleep twice in a row; it is ended")

    def measured(self, replica: Replica, size: Size) -> None:
        """What a serving replica takes."""
        self.fleet.measured(replica, size)
        self._keep(replica)

    def _keep(self, replica: Replica) -> None:
        """Write what is known of a deployment's size, in another thread."""
        served, one = self._served.get(replica.deployment), self.fleet.deployments.get(replica.deployment)
        if served is None or one is None or replica.outdated or self.fleet.closing:
            return
        if served.sizes.note(Sizes(one.serving_size, one.asleep_size)):
            self._helpers.submit(served.sizes.write)

    def gone(self, replica: Replica) -> None:
        """A replica was ended."""
        self._unroute(replica)
        engine = self._engines.pop(replica.number, None)
        if engine is not None:
            self._tell(f"{engine.name}: ended")
        self.fleet.gone(replica, self._clock())

    def buried(self, replica: Replica, why: str) -> None:
        """A replica that had ended by itself was cleaned up."""
        engine = self._engines.pop(replica.number, None)
        if engine is not None:
            self._tell(f"{engine.name}: {why}")

    def _ended(self, replica: Replica) -> None:
        """The engine of a replica has ended by itself. During a transition its thread reports that."""
        self._unroute(replica)
        if replica.state in ("serving", "asleep"):
            self._lost.add(replica.deployment)
            self.fleet.gone(replica, self._clock(), by_itself="its engine ended")
            self._begin(self._workers.bury, replica)
            self.decide_soon()

    def _route(self, replica: Replica, engine: EngineHere) -> None:
        assert self._loop is not None
        assert engine.routed is not None
        route = Route(engine.routed, self._loop, self._helpers, self._task)
        self._routes[replica.number] = route
        self._by_way[route] = replica
        self._loop.add_reader(route.end, self._ended, replica)

    def _unroute(self, replica: Replica) -> None:
        """Send it nothing more, and watch it no longer. Harmless to repeat."""
        route = self._routes.pop(replica.number, None)
        if route is not None and self._loop is not None:
            self._by_way.pop(route, None)
            self._forget(route)
            self._loop.remove_reader(route.end)
            route.close()

    def _task(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # For people

    def boots(self, deployment: str) -> list[tuple[str, Boot]]:
        """The name and boot of each replica of a deployment that serves or sleeps. For any thread."""
        engines, replicas = dict(self._engines), list(self.fleet.replicas.values())
        return [
            (engines[one.number].name, engines[one.number].boot)
            for one in replicas
            if one.deployment == deployment and one.number in engines and engines[one.number].alive
        ]

    # The end

    async def drain(self) -> None:
        """Start nothing any more, refuse what waits, and end each replica once no request is in flight."""
        self.fleet.close()
        self.decide()

    def stop(self) -> None:
        """End every replica, also those that are starting. For another thread; the loop has to run still."""
        self.call(self.fleet.close)
        ending = [threading.Thread(target=engine.end, daemon=True) for engine in list(self._engines.values())]
        for thread in ending:
            thread.start()
        deadline = time.monotonic() + _JOIN_S
        for thread in ending:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._workers.join(deadline)
        self._helpers.shutdown(wait=False)

    def close(self) -> None:
        """Release what the loop watches. In its thread, or once it has ended."""
        for number in list(self._routes):
            route = self._routes.pop(number)
            if self._loop is not None and not self._loop.is_closed():
                self._loop.remove_reader(route.end)
            route.close()
        if self._timer is not None:
            self._timer.cancel()
