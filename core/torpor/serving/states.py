"""The states of replicas, deployments and waiting requests: what `torpor.serving.fleet` decides about.

on disk    no process; the snapshot, if there is one, lies in its folder
starting   a restore, or a cold start without a snapshot
serving    it takes requests
capturing  it sleeps and is written to a snapshot
sleeping   it falls asleep in memory
asleep     its process stays, its GPU memory is free
waking     it wakes in memory
ending     its processes end
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from torpor.serving.sizes import Room, Size, Taken

if TYPE_CHECKING:
    from torpor.serving.sizes import Budget
    from torpor.serving.terms import Terms

__all__ = ["NEAREST", "UP", "DeploymentState", "Kind", "Members", "Replica", "ReplicaState", "StartRecord", "Waiter"]

ReplicaState = Literal["starting", "serving", "capturing", "sleeping", "asleep", "waking", "ending"]

Kind = Literal["cold", "woken", "restored"]
"""The kind of a start."""

UP = ("starting", "waking", "serving")
"""States of replicas that serve, or soon will."""

NEAREST: tuple[ReplicaState, ...] = ("serving", "waking", "starting", "capturing", "sleeping", "asleep", "ending")
"""The states of replicas, the nearest to serving first."""

_STARTS_KEPT = 10
_MOST_FAILED_SLEEPS = 2
_LONGEST_PAUSE_S = 60.0
_PEACE_S = 300.0


@dataclass(eq=False, kw_only=True)
class Waiter:
    """A request that waits for a replica.

    Attributes:
        deployment: name of the deployment.
        since: when it came, seconds of a monotonic clock.
        deadline: until when it waits.
    """

    deployment: str
    since: float
    deadline: float


@dataclass(eq=False, kw_only=True)
class Replica:
    """One replica.

    Attributes:
        number: unique in the fleet.
        deployment: name of the deployment.
        cards: its GPUs.
        taken: the memory that it is given.
        state: see the module.
        since: when it entered that state.
        kind: of its latest start.
        requests: in flight.
        used: when a request last began or ended.
        captured: whether its deployment needs no snapshot of it: it was restored, or captured, or the capture failed.
        leaving: it gets no more requests, and falls as soon as none is in flight.
        outdated: it belongs to an earlier configuration, and ends as soon as no request is in flight.
        yields: another deployment has waited long for its memory: it gets no more requests for now.
        then_ends: it ends once it is captured.
        failed_sleeps: sleeps in a row that failed while it served on.
    """

    number: int
    deployment: str
    cards: tuple[int, ...]
    taken: Taken
    state: ReplicaState
    since: float
    kind: Kind = "cold"
    requests: int = 0
    used: float = 0.0
    captured: bool = False
    leaving: bool = False
    outdated: bool = False
    yields: bool = False
    then_ends: bool = False
    failed_sleeps: int = 0

    @property
    def stuck(self) -> bool:
        """Whether it runs and cannot be put to sleep: its engine works on requests whose clients have left, and ends none."""
        return self.failed_sleeps >= _MOST_FAILED_SLEEPS

    @property
    def idle(self) -> bool:
        """Whether it serves or sleeps, and no request is in flight."""
        return self.state in ("serving", "asleep") and not self.requests

    @property
    def open(self) -> bool:
        """Whether it may get another request."""
        return self.state == "serving" and not (self.leaving or self.outdated or self.yields or self.stuck)


@dataclass(frozen=True, kw_only=True)
class StartRecord:
    """One start, for people.

    Attributes:
        kind: of the start.
        seconds: that it took.
        at: when it was over, seconds of the same monotonic clock.
        error: why it failed; empty if it did not.
    """

    kind: Kind
    seconds: float
    at: float
    error: str = ""


@dataclass(eq=False, kw_only=True)
class DeploymentState:
    """What is known of one deployment.

    Attributes:
        terms: what the user asked for.
        has_snapshot: whether a start will be a restore.
        estimate: size of a serving replica as its snapshot's manifest says; it counts until one is measured.
        serving_size: of a serving replica, as measured.
        asleep_size: of a sleeping replica, as measured.
        queue: waiting requests, oldest first.
        wanted: somebody asked for a replica without a request (`torpor wake`, a pin).
        starts: the latest ones.
        failures: starts that failed, and replicas that ended by themselves, without five minutes of peace between them.
        failed_at: when the latest of them was.
        again_at: no start before; 0 if nothing failed.
        failed: why the latest start failed.
        removed: it is no longer part of the configuration.
    """

    terms: Terms
    has_snapshot: bool = False
    estimate: Size | None = None
    serving_size: Size | None = None
    asleep_size: Size | None = None
    queue: deque[Waiter] = field(default_factory=deque)
    wanted: bool = False
    starts: deque[StartRecord] = field(default_factory=lambda: deque(maxlen=_STARTS_KEPT))
    failures: int = 0
    failed_at: float = -math.inf
    again_at: float = 0.0
    failed: str = ""
    removed: bool = False

    @property
    def size(self) -> Size | None:
        """Of a serving replica: as measured, but at least what the user says; else what the snapshot says; None: nobody knows."""
        said, seen = self.terms.size, self.serving_size
        if said is not None and seen is not None and len(said.gpus) == len(seen.gpus):
            return Size(max(said.host, seen.host), tuple(map(max, said.gpus, seen.gpus)))
        return seen or said or self.estimate

    def size_asleep(self, serving: Taken) -> Size:
        """Of a sleeping replica: as measured, else the most that it can be: everything moves to host memory, nothing goes."""
        if self.asleep_size is not None:
            return self.asleep_size
        known = self.size or Size(serving.host, tuple(serving.gpus.values()))
        return Size(known.host + sum(known.gpus), known.gpus)

    def note_failure(self, why: str, now: float, *, at_once: bool = False) -> None:
        """A start failed, or a replica ended by itself: pause before the next start.

        Args:
            why: for people.
            now: the time.
            at_once: the first time the next start follows without a pause.
        """
        if now - self.failed_at >= _PEACE_S:
            self.failures = 0
        self.failures += 1
        self.failed, self.failed_at = why, now
        pause_s = min(2.0 ** (self.failures - 1), _LONGEST_PAUSE_S)
        self.again_at = now if at_once and self.failures == 1 else now + pause_s

    def note_success(self) -> None:
        """A replica serves."""
        self.again_at, self.failed = 0.0, ""


class Members:
    """Every deployment and replica of one address.

    Args:
        budget: the memory for all replicas together.

    Attributes:
        budget: see above.
        deployments: by name.
        replicas: by number; those that end are in it until they have gone.
        closing: the server ends: nothing starts, and nobody may wait.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.deployments: dict[str, DeploymentState] = {}
        self.replicas: dict[int, Replica] = {}
        self.closing = False
        self._last_number = 0

    def next_number(self) -> int:
        """A number for a new replica."""
        self._last_number += 1
        return self._last_number

    def of(self, name: str) -> list[Replica]:
        """The replicas of a deployment that are not outdated."""
        return [one for one in self.replicas.values() if one.deployment == name and not one.outdated]

    def is_up(self, name: str) -> bool:
        """Whether a replica of the deployment serves, or soon will."""
        return any(one.state in UP for one in self.of(name))

    def room(self) -> Room:
        """The memory that no replica was given."""
        return Room(self.budget, (one.taken for one in self.replicas.values()))

    def is_pinned(self, replica: Replica) -> bool:
        """Whether neither idle time nor another deployment's need lets it fall."""
        one = self.deployments.get(replica.deployment)
        return one is not None and one.terms.pinned and not (one.removed or replica.outdated or replica.leaving)

    def asleep_taken(self, replica: Replica) -> Taken | None:
        """What a serving replica will take once it sleeps; None if it cannot sleep."""
        one = self.deployments[replica.deployment]
        if not one.terms.can_sleep or replica.outdated:
            return None
        size = one.size_asleep(replica.taken)
        gpus = size.gpus if len(size.gpus) == len(replica.cards) else tuple(replica.taken.gpus.values())
        return Taken.of(Size(size.host, gpus), replica.cards)
