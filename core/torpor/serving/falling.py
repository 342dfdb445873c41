"""Which replicas fall by themselves: after their idle time one state, and once idle those that somebody let go."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torpor.serving.actions import Action, Capture, End, Sleep
from torpor.serving.sizes import Taken
from torpor.serving.terms import wanted_replicas

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.serving.sizes import Room
    from torpor.serving.states import Members, Replica

__all__ = ["captured_at", "end", "falls", "falls_at", "put_to_sleep"]


def falls(members: Members, now: float) -> Iterator[Action]:
    """Let fall what has been idle for its time; capture what has no snapshot yet. Each action counts as begun."""
    room = members.room()
    for replica in list(members.replicas.values()):
        if not replica.idle:
            continue
        one = members.deployments[replica.deployment]
        if replica.outdated or replica.stuck or members.closing:
            yield _ended(replica, now)
        elif one.queue and not replica.leaving:
            continue
        elif now >= captured_at(members, replica) or (replica.leaving and _wants_capture(members, replica)):
            yield _captured(replica, now)
        elif replica.leaving or now >= falls_at(members, replica):
            yield _one_state(members, replica, room, now)


def falls_at(members: Members, replica: Replica) -> float:
    """When its idle time is over, seconds; infinity if it stays."""
    terms = members.deployments[replica.deployment].terms
    if terms.pinned or (replica.state == "asleep" and terms.keep == "asleep"):
        return math.inf
    if replica.state == "serving":
        others = members.of(terms.name)
        serving = sum(other.state == "serving" and not other.leaving for other in others)
        if serving <= wanted_replicas(terms, sum(other.requests for other in others)):
            return math.inf
    return max(replica.used, replica.since) + terms.idle_s


def captured_at(members: Members, replica: Replica) -> float:
    """When it has been idle for long enough to be captured, seconds; infinity if it needs no capture."""
    if not _wants_capture(members, replica):
        return math.inf
    terms = members.deployments[replica.deployment].terms
    return max(replica.used, replica.since) + min(terms.capture_after_s, terms.idle_s)


def _wants_capture(members: Members, replica: Replica) -> bool:
    """Whether it serves, and its deployment has no snapshot yet."""
    one = members.deployments[replica.deployment]
    if one.has_snapshot or one.terms.capture == "never":
        return False
    return replica.state == "serving" and not (replica.captured or replica.outdated)


def put_to_sleep(members: Members, replica: Replica, room: Room, now: float) -> Action | None:
    """Begin to put a replica to sleep; None if it cannot sleep, or host memory has no room for what moves there now.

    Args:
        members: all of them.
        replica: it serves, and is idle.
        room: free memory; it is reduced by what the sleep takes.
        now: the time.
    """
    after = members.asleep_taken(replica)
    if after is None or not room.has_host(after.host - replica.taken.host):
        return None
    more = max(0, after.host - replica.taken.host)
    room.take(Taken(more))
    replica.taken = Taken(replica.taken.host + more, replica.taken.gpus)  # meanwhile it takes what either state takes
    replica.state, replica.since = "sleeping", now
    return Sleep(replica)


def end(members: Members, replica: Replica, now: float) -> Action:
    """Begin to end a replica. One whose deployment has no snapshot yet is captured first."""
    if _wants_capture(members, replica):
        replica.then_ends = True
        return _captured(replica, now)
    return _ended(replica, now)


def _one_state(members: Members, replica: Replica, room: Room, now: float) -> Action:
    slept = None
    if replica.state == "serving" and not replica.then_ends:
        slept = put_to_sleep(members, replica, room, now)
    return slept or end(members, replica, now)


def _captured(replica: Replica, now: float) -> Action:
    replica.state, replica.since = "capturing", now
    return Capture(replica)


def _ended(replica: Replica, now: float) -> Action:
    replica.state, replica.since = "ending", now
    return End(replica)
