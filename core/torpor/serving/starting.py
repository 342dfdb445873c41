"""Which deployments get another replica, and who makes room for it.

* The deployment whose oldest request has waited longest finds room first. Others do not take what it waits for.
* Who makes room: the least recently used, with no request in flight, no request waiting, not pinned.
* A deployment that has waited `PATIENCE_S` may ask busy ones to yield. They get no further request until it had its turn.
* A first replica makes others fall; a further one only takes free room.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torpor.serving.actions import Action, Start, Wake
from torpor.serving.falling import end, put_to_sleep
from torpor.serving.making_room import Need, falls_for
from torpor.serving.sizes import Budget, Room, Size, Taken
from torpor.serving.states import UP, Replica
from torpor.serving.terms import wanted_replicas

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.serving.making_room import Fall
    from torpor.serving.states import DeploymentState, Members

__all__ = ["PATIENCE_S", "can_ever_fit", "starts"]

PATIENCE_S = 2.0
"""Seconds that a request waits for room before busy deployments are asked to yield, and that they have served by then."""


def starts(members: Members, now: float) -> Iterator[Action]:
    """Wake and start what is needed, and make room for it. Each action counts as begun."""
    for replica in members.replicas.values():
        replica.yields = False
    if members.closing:
        return
    room = members.room()
    yield from _within_budget(members, room, now)
    for one in _by_urgency(members):
        for _ in range(_missing(members, one, now)):
            before = members.is_up(one.terms.name)
            done = list(_one_more(members, one, room, now, first=not before))
            yield from done
            if not any(isinstance(action, Start | Wake) for action in done):
                break


def can_ever_fit(members: Members, one: DeploymentState) -> bool:
    """Whether a replica fits beside what is pinned, if everybody else falls."""
    pinned = (
        other.taken
        for other in members.replicas.values()
        if members.is_pinned(other) and other.deployment != one.terms.name
    )
    room = Room(members.budget, pinned)
    if one.size is None:
        return len(room.gpus) >= one.terms.gpu_count
    return room.place(one.size) is not None


def _by_urgency(members: Members) -> list[DeploymentState]:
    """Deployments that may need a replica: the one whose request has waited longest first, then those without any."""
    present = [one for one in members.deployments.values() if not one.removed]
    return sorted(present, key=lambda one: one.queue[0].since if one.queue else math.inf)


def _missing(members: Members, one: DeploymentState, now: float) -> int:
    """How many more replicas it should have."""
    if one.again_at > now:
        return 0
    replicas = members.of(one.terms.name)
    requests = len(one.queue) + sum(replica.requests for replica in replicas)
    wanted = max(wanted_replicas(one.terms, requests), int(one.wanted))
    return wanted - sum(replica.state in UP for replica in replicas)


def _one_more(members: Members, one: DeploymentState, room: Room, now: float, *, first: bool) -> Iterator[Action]:
    """Wake or start one replica if there is room; else make room for a first one."""
    present = members.of(one.terms.name)
    sleeping = next((other for other in present if other.state == "asleep" and not other.leaving), None)
    if sleeping is None and any(other.state in ("sleeping", "capturing") for other in present):
        return  # to wake that one is faster than another start
    need = _need_to_wake(one, sleeping) if sleeping else _need_to_start(members, one)
    if need is None:
        return
    cards = need.cards_in(room)
    if cards is None:
        if first:
            yield from _make_room(members, one, need, room, now)
    elif sleeping is not None:
        yield _wake(sleeping, Taken.of(need.size, cards), room, now)
    else:
        yield _start(members, one, Taken.of(need.size, cards), room, now)


def _wake(sleeping: Replica, more: Taken, room: Room, now: float) -> Wake:
    room.take(more)
    cards = {card: size + more.gpus.get(card, 0) for card, size in sleeping.taken.gpus.items()}
    sleeping.taken = Taken(sleeping.taken.host + more.host, cards)
    sleeping.state, sleeping.since = "waking", now
    return Wake(sleeping)


def _start(members: Members, one: DeploymentState, taken: Taken, room: Room, now: float) -> Start:
    if one.size is None and room.host is not None:
        taken = Taken(max(0, room.host) // 2, taken.gpus)  # nobody knows what it will take, and others start meanwhile
    room.take(taken)
    replica = Replica(
        number=members.next_number(),
        deployment=one.terms.name,
        cards=tuple(taken.gpus),
        taken=taken,
        state="starting",
        since=now,
        used=now,
    )
    members.replicas[replica.number] = replica
    return Start(replica)


def _need_to_wake(one: DeploymentState, sleeping: Replica) -> Need:
    """What a sleeping replica takes in addition."""
    held = sleeping.taken
    size = one.size or Size(held.host, tuple(held.gpus.values()))
    gpus = tuple(max(0, part - held.gpus[card]) for part, card in zip(size.gpus, sleeping.cards, strict=True))
    return Need(Size(max(0, size.host - held.host), gpus), sleeping.cards)


def _need_to_start(members: Members, one: DeploymentState) -> Need | None:
    """What a new replica takes. One that was never measured takes all of its GPUs that is not pinned; None: there is none."""
    if one.size is not None:
        return Need(one.size)
    count = one.terms.gpu_count
    if not count:
        return Need(Size())
    free = Room(members.budget, (other.taken for other in members.replicas.values() if members.is_pinned(other)))
    cards = _emptiest(free, count)
    if len(cards) < count or any(free.gpus[card] <= 0 for card in cards):
        return None
    return Need(Size(0, tuple(free.gpus[card] for card in cards)), cards)


def _make_room(members: Members, one: DeploymentState, need: Need, room: Room, now: float) -> Iterator[Action]:
    """Let others fall, or ask them to yield. Deployments that come later do not get what this one waits for."""
    patient = bool(one.queue) and now - one.queue[0].since >= PATIENCE_S
    coming = _coming(members, room, outdated=not patient)
    others = [other for other in members.replicas.values() if other.deployment != one.terms.name]
    idle = sorted((other for other in others if _may_fall(members, other)), key=lambda other: other.used)
    chosen = falls_for(need, coming, idle, members.asleep_taken)
    if chosen is None and patient:
        busy = [other for other in others if other not in idle and _may_yield(members, other, now)]
        chosen = falls_for(need, coming, [*idle, *sorted(busy, key=lambda other: other.since)], members.asleep_taken)
        for fall in chosen or ():
            fall.replica.yields = bool(fall.replica.requests)
    if chosen is None:
        return
    yield from _begun(members, chosen, room, now)
    for fall in chosen:
        coming.free(fall.replica.taken)
    room.take(Taken.of(need.size, need.cards or coming.place(need.size) or _emptiest(coming, len(need.size.gpus))))


def _within_budget(members: Members, room: Room, now: float) -> Iterator[Action]:
    """If replicas turned out to be larger than what they were given, let idle ones fall."""
    cards = tuple(range(len(room.gpus)))
    need = Need(Size(0, (0,) * len(cards)), cards)
    if need.cards_in(room) is not None:
        return
    idle = sorted((one for one in members.replicas.values() if _may_fall(members, one)), key=lambda one: one.used)
    yield from _begun(members, falls_for(need, _coming(members, room), idle, members.asleep_taken) or [], room, now)


def _begun(members: Members, chosen: list[Fall], room: Room, now: float) -> Iterator[Action]:
    """Begin the falls of those that are idle now."""
    for fall in chosen:
        if not fall.replica.idle:
            continue
        if fall.to == "on disk":
            yield end(members, fall.replica, now)
        elif slept := put_to_sleep(members, fall.replica, room, now):
            yield slept


def _coming(members: Members, room: Room, *, outdated: bool = False) -> Room:
    """The room once everything that ends or falls asleep has done so.

    Args:
        members: all of them.
        room: free now.
        outdated: whether outdated replicas count, which end once their requests are over.
    """
    coming = Room(Budget(room.host, tuple(room.gpus)))
    for other in members.replicas.values():
        ends = other.state == "ending" or (other.state == "capturing" and other.then_ends)
        if ends or (outdated and other.outdated):
            coming.free(other.taken)
        elif other.state == "sleeping" and (after := members.asleep_taken(other)) is not None:
            coming.free(other.taken)
            coming.take(after)
    return coming


def _may_fall(members: Members, replica: Replica) -> bool:
    one = members.deployments[replica.deployment]
    return replica.idle and not (one.queue and not replica.outdated) and not members.is_pinned(replica)


def _may_yield(members: Members, replica: Replica, now: float) -> bool:
    """Whether a busy replica may be asked to yield: it has served for a while."""
    return replica.state == "serving" and not members.is_pinned(replica) and now - replica.since >= PATIENCE_S


def _emptiest(room: Room, count: int) -> tuple[int, ...]:
    return tuple(sorted(range(len(room.gpus)), key=lambda card: -room.gpus[card])[:count])
