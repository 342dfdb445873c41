"""Decides which deployments serve, sleep or lie on disk, within one budget. Pure: it starts nothing and reads no clock.

    fleet.ask(...)            a request came; it waits
    fleet.serves(...)         what an action of `decide` began is over: the replica serves, sleeps, is captured, has gone
    fleet.decide(now)         what to do now: grant or refuse requests; start, wake, put to sleep, capture, end replicas
    fleet.next_time(now)      when to decide again, if nothing happens before

A request is granted in the order in which it came, to the replica with the fewest requests, never above its most. Who starts and
who makes room: `torpor.serving.starting`. Who falls by itself: `torpor.serving.falling`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torpor.serving.actions import Action, Grant, Refuse
from torpor.serving.falling import captured_at, falls, falls_at
from torpor.serving.sizes import Size, Taken
from torpor.serving.starting import PATIENCE_S, can_ever_fit, starts
from torpor.serving.states import NEAREST, DeploymentState, Members, Replica, StartRecord, Waiter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torpor.serving.sizes import Budget
    from torpor.serving.states import Kind, ReplicaState
    from torpor.serving.terms import Terms

__all__ = ["Fleet"]

_HURRY_S = 1.0
_NO_ROOM_S = 30.0


class Fleet(Members):
    """The deployments and replicas of one address, and what becomes of them.

    Args:
        budget: the memory for all replicas together.
    """

    def __init__(self, budget: Budget) -> None:
        super().__init__(budget)
        self._refusals: list[Refuse] = []

    # What the configuration says

    def put(
        self,
        terms: Terms,
        *,
        has_snapshot: bool = False,
        size: Size | None = None,
        asleep: Size | None = None,
        measured: Size | None = None,
        renewed: bool = False,
    ) -> None:
        """Add a deployment, or change its terms.

        Args:
            terms: the new ones.
            has_snapshot: whether it has one that fits.
            size: of a serving replica, as far as its snapshot's manifest says.
            asleep: of a sleeping replica, likewise.
            measured: of a serving replica, the largest that an earlier server saw.
            renewed: its replicas belong to another app now: they end once they are idle, and others start.
        """
        one = self.deployments.get(terms.name)
        if one is None or renewed:
            fresh = DeploymentState(
                terms=terms, has_snapshot=has_snapshot, estimate=size, serving_size=measured, asleep_size=asleep
            )
            if one is not None:
                fresh.queue, fresh.wanted = one.queue, one.wanted
                self._outdate(terms.name)
            one = self.deployments[terms.name] = fresh
        one.terms, one.removed = terms, False
        one.wanted = one.wanted or terms.pinned

    def remove(self, name: str) -> None:
        """Remove a deployment: refuse what waits, and end its replicas once they are idle."""
        one = self.deployments[name]
        one.removed = True
        self._outdate(name)
        self._refuse_all(one, "removed", f"The model's deployment {name!r} was removed.", 0.0)

    def _outdate(self, name: str) -> None:
        for replica in self.of(name):
            replica.outdated = True

    def close(self) -> None:
        """Start nothing any more, refuse what waits, and end each replica once no request is in flight."""
        self.closing = True
        for one in self.deployments.values():
            self._refuse_all(one, "closing", "The server is ending.", _HURRY_S)

    # What clients and people ask for

    def ask(self, name: str, now: float) -> Waiter | None:
        """A request for a deployment waits from now on; None if its queue is full."""
        one = self.deployments[name]
        if len(one.queue) >= one.terms.queue:
            return None
        waiter = Waiter(deployment=name, since=now, deadline=now + one.terms.deadline_s)
        one.queue.append(waiter)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """The client of a waiting request left. Harmless to repeat."""
        one = self.deployments.get(waiter.deployment)
        if one is not None and waiter in one.queue:
            one.queue.remove(waiter)

    def grant_at_once(self, name: str, now: float, prefer: Replica | None = None) -> Replica | None:
        """A replica for a request that need not wait; None if it has to.

        Args:
            name: of the deployment.
            now: the time.
            prefer: taken if it is free.
        """
        one = self.deployments[name]
        if one.queue:
            return None
        if prefer is not None and prefer.open and prefer.requests < one.terms.most_requests:
            replica: Replica | None = prefer
        else:
            replica = self.free_replica(name)
        return None if replica is None else _taken(replica, now)

    def free_replica(self, name: str) -> Replica | None:
        """The replica that takes the next request; None if none can."""
        most = self.deployments[name].terms.most_requests
        free = [one for one in self.of(name) if one.open and one.requests < most]
        return min(free, key=lambda one: one.requests, default=None)

    def release(self, replica: Replica, now: float) -> None:
        """A request of a replica is over."""
        replica.requests -= 1
        replica.used = now

    def want(self, name: str) -> None:
        """Start or wake a replica without a request."""
        self.deployments[name].wanted = True

    def let_fall(self, name: str) -> None:
        """Let each replica fall one state, once no request is in flight. One that is pinned falls, too: somebody asked."""
        self.deployments[name].wanted = False
        for replica in self.of(name):
            replica.leaving = replica.state in ("serving", "asleep")

    # What became of actions

    def serves(self, replica: Replica, kind: Kind, seconds: float, now: float) -> None:
        """A start or wake is over.

        Args:
            replica: it serves.
            kind: of the start.
            seconds: that it took.
            now: the time.
        """
        replica.kind, replica.captured = kind, replica.captured or kind == "restored"
        if not replica.outdated:
            one = self.deployments[replica.deployment]
            one.note_success()
            one.wanted = False
            one.starts.append(StartRecord(kind=kind, seconds=seconds, at=now))
        replica.used = now
        _enter(replica, "serving", None, now)

    def measured(self, replica: Replica, size: Size) -> None:
        """The memory of a serving replica. The largest size seen counts: it grows with the requests."""
        if replica.outdated or replica.number not in self.replicas:
            return
        one = self.deployments[replica.deployment]
        one.serving_size = _larger(one.serving_size, size)
        if replica.state == "serving":
            replica.taken = _on_cards(replica, one.size or size)

    def snapshot_lost(self, name: str) -> None:
        """The deployment's snapshot does not fit any more: its next replica starts cold, and is captured."""
        self.deployments[name].has_snapshot = False

    def sleeps(self, replica: Replica, size: Size, now: float) -> None:
        """A replica fell asleep."""
        if not replica.outdated:
            self.deployments[replica.deployment].asleep_size = size
        replica.failed_sleeps = 0
        _enter(replica, "asleep", size, now)

    def serves_on(self, replica: Replica, now: float) -> None:
        """A replica did not fall asleep; it serves as before. After the second time in a row it ends."""
        replica.failed_sleeps += 1
        _enter(replica, "serving", None, now)
        replica.used = now

    def captured(self, replica: Replica, size: Size, now: float, *, asleep: bool, kept: bool) -> None:
        """A capture is over.

        Args:
            replica: the captured one.
            size: as measured.
            now: the time.
            asleep: whether it sleeps; else it serves on.
            kept: whether there is a snapshot now. If not, there is no second attempt with this replica.
        """
        replica.captured = True
        if not replica.outdated:
            one = self.deployments[replica.deployment]
            one.has_snapshot = one.has_snapshot or kept
            one.wanted = one.wanted or (asleep and one.terms.pinned and not replica.then_ends)
        if asleep:
            self.sleeps(replica, size, now)
        else:
            _enter(replica, "serving", size, now)
        replica.leaving = replica.then_ends

    def failed(self, replica: Replica, why: str, seconds: float, now: float, *, kind: Kind) -> None:
        """A start or wake failed; nothing of the replica is left.

        What waits for the deployment is refused, unless another replica serves or will. After the first failed wake a start
        follows at once.

        Args:
            replica: which one.
            why: for people.
            seconds: that it took.
            now: the time.
            kind: of the start.
        """
        del self.replicas[replica.number]
        if replica.outdated:
            return
        one = self.deployments[replica.deployment]
        one.note_failure(why, now, at_once=replica.state == "waking")
        one.starts.append(StartRecord(kind=kind, seconds=seconds, at=now, error=why))
        one.wanted = one.terms.pinned
        if one.again_at > now and not self.is_up(one.terms.name):
            self._refuse_failed(one, now)

    def gone(self, replica: Replica, now: float, *, by_itself: str = "") -> None:
        """A replica has ended.

        Args:
            replica: which one.
            now: the time.
            by_itself: why it ended without having been asked to.
        """
        self.replicas.pop(replica.number, None)
        if by_itself and not replica.outdated:
            one = self.deployments[replica.deployment]
            one.note_failure(by_itself, now, at_once=True)
            one.wanted = one.wanted or one.terms.pinned

    # What people see

    def state(self, name: str) -> str:
        """The state of a deployment: that of its replica which is nearest to serving; `on disk` without one."""
        states = {one.state for one in self.of(name)}
        return next((state for state in NEAREST if state in states), "on disk")

    # Decisions

    def decide(self, now: float) -> list[Action]:
        """What to do now. Each action counts as begun."""
        actions: list[Action] = [*self._late(now), *starts(self, now), *self._grants(now), *falls(self, now)]
        self._forget_removed()
        refusals, self._refusals = self._refusals, []
        return [*refusals, *actions]

    def _late(self, now: float) -> Iterator[Refuse]:
        for one in self.deployments.values():
            for waiter in [waiter for waiter in one.queue if waiter.deadline <= now]:
                one.queue.remove(waiter)
                waited = f"The request waited {now - waiter.since:.1f} s for {one.terms.name!r}, until its deadline."
                yield Refuse(waiter, "late", waited, _HURRY_S)

    def _grants(self, now: float) -> Iterator[Grant]:
        for one in self.deployments.values():
            while one.queue and (replica := self.free_replica(one.terms.name)):
                yield Grant(one.queue.popleft(), _taken(replica, now))
            if not one.queue or self.is_up(one.terms.name):
                continue
            if one.again_at > now:
                self._refuse_failed(one, now)
            elif not can_ever_fit(self, one):
                said = f"{one.terms.name!r} needs more memory than the budget has beside what is pinned."
                self._refuse_all(one, "failed", said, _NO_ROOM_S)

    def _refuse_failed(self, one: DeploymentState, now: float) -> None:
        said = f"{one.terms.name!r} could not be started: {one.failed}"
        self._refuse_all(one, "failed", said, max(_HURRY_S, one.again_at - now))

    def _refuse_all(self, one: DeploymentState, code: str, message: str, retry_after_s: float) -> None:
        while one.queue:
            self._refusals.append(Refuse(one.queue.popleft(), code, message, retry_after_s))

    def _forget_removed(self) -> None:
        for name in [name for name, one in self.deployments.items() if one.removed]:
            if not any(one.deployment == name for one in self.replicas.values()):
                del self.deployments[name]

    # When to look again

    def next_time(self, now: float) -> float:
        """When `decide` will have something to do, if nothing happens before; infinity for never."""
        return min([math.inf, *(time for time in self._times() if time > now)])

    def _times(self) -> Iterable[float]:
        for one in self.deployments.values():
            for waiter in one.queue:
                yield waiter.deadline
            if one.queue and not self.is_up(one.terms.name):
                yield one.queue[0].since + PATIENCE_S
            if one.queue or one.wanted or one.terms.least:
                yield one.again_at
        for replica in self.replicas.values():
            if replica.idle:
                yield falls_at(self, replica)
                yield captured_at(self, replica)
            elif replica.state == "serving":
                yield replica.since + PATIENCE_S


def _taken(replica: Replica, now: float) -> Replica:
    replica.requests += 1
    replica.used = now
    return replica


def _enter(replica: Replica, state: ReplicaState, size: Size | None, now: float) -> None:
    """A replica enters a state, with the memory that it takes there, if that is known."""
    replica.state, replica.since, replica.leaving = state, now, False
    if size is not None:
        replica.taken = _on_cards(replica, size)


def _on_cards(replica: Replica, size: Size) -> Taken:
    gpus = size.gpus if len(size.gpus) == len(replica.cards) else tuple(replica.taken.gpus.values())
    return Taken.of(Size(size.host, gpus), replica.cards)


def _larger(known: Size | None, seen: Size) -> Size:
    """The largest size seen: a replica's memory grows with its requests."""
    if known is None or len(known.gpus) != len(seen.gpus):
        return seen
    return Size(max(known.host, seen.host), tuple(map(max, known.gpus, seen.gpus)))
