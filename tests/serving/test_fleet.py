"""The fleet by properties: whatever comes and whatever fails, the budget holds and no request waits past its deadline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from torpor.serving.actions import Action, Capture, End, Grant, Refuse, Sleep, Start, Wake
from torpor.serving.fleet import Fleet
from torpor.serving.sizes import Budget, Room, Size
from torpor.serving.starting import PATIENCE_S
from torpor.serving.terms import Terms, wanted_replicas

if TYPE_CHECKING:
    from torpor.serving.states import Replica, Waiter

GB = 1 << 30
NAMES = ("a", "b", "c", "d", "e")
DEADLINE_S = 60.0


class World(RuleBasedStateMachine):
    """Five deployments with room for about two. Actions take as long as hypothesis likes, and may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.under_way: list[Action] = []
        self.asked: dict[str, list[Waiter]] = {name: [] for name in NAMES}
        self.in_flight: list[Replica] = []
        self.resolved = 0
        self.sizes: dict[str, Size] = {}
        self.unmeasured: set[str] = set()

    @initialize(
        gpus=st.integers(0, 2),
        host=st.sampled_from([None, 20 * GB, 45 * GB]),
        parts=st.lists(st.integers(3, 9), min_size=5, max_size=5),
        most=st.integers(1, 3),
        unmeasured=st.sets(st.sampled_from(NAMES), max_size=2),
        keep=st.sampled_from(["on disk", "asleep"]),
    )
    def begin(
        self, *, gpus: int, host: int | None, parts: list[int], most: int, unmeasured: set[str], keep: str
    ) -> None:
        self.fleet = Fleet(Budget(host, (10 * GB,) * gpus))
        self.unmeasured = unmeasured if gpus and host is None else set()
        for at, name in enumerate(NAMES):
            count = min(gpus, 2 if name == "e" else 1)
            self.sizes[name] = Size(parts[at] * GB, (parts[at] * GB,) * count)
            self.put(name, most=most, keep=keep)

    def put(
        self, name: str, *, most: int = 2, keep: str = "on disk", pinned: bool = False, renewed: bool = False
    ) -> None:
        size = None if name in self.unmeasured else self.sizes[name]
        terms = Terms(
            name=name,
            idle_s=10.0,
            queue=20,
            deadline_s=DEADLINE_S,
            target=2,
            most_requests=3,
            most=most,
            keep=keep,  # type: ignore[arg-type]
            pinned=pinned,
            gpu_count=len(self.sizes[name].gpus),
            size=size,
        )
        self.fleet.put(terms, renewed=renewed)

    # What comes

    @rule(name=st.sampled_from(NAMES), count=st.integers(1, 6))
    def ask(self, name: str, count: int) -> None:
        if name not in self.fleet.deployments or self.fleet.deployments[name].removed:
            return
        for _ in range(count):
            if replica := self.fleet.grant_at_once(name, self.now):
                assert self.asked[name] == []
                self.in_flight.append(replica)
            elif waiter := self.fleet.ask(name, self.now):
                self.asked[name].append(waiter)
        self.decide()

    @precondition(lambda self: any(self.asked.values()))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from([one for queue in self.asked.values() for one in queue]))
        self.fleet.leave(waiter)
        self.asked[waiter.deployment].remove(waiter)
        self.decide()

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.in_flight) - 1))
        self.fleet.release(self.in_flight.pop(at), self.now)
        self.decide()

    @rule(seconds=st.sampled_from([0.1, PATIENCE_S, 5.0, 11.0, 30.0]))
    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while (then := self.fleet.next_time(self.now)) <= until:
            self.now = then
            self.decide()
        self.now = until
        self.decide()

    @rule(name=st.sampled_from(NAMES), what=st.sampled_from(["pin", "unpin", "want", "let_fall"]))
    def command(self, name: str, what: str) -> None:
        one = self.fleet.deployments.get(name)
        if one is None or one.removed:
            return
        if what == "want":
            self.fleet.want(name)
        elif what == "let_fall":
            self.fleet.let_fall(name)
        elif not self.unmeasured:  # nobody knows whether an unmeasured one fits beside a pinned one
            self.put(name, pinned=what == "pin")
        self.decide()

    @rule(name=st.sampled_from(NAMES), what=st.sampled_from(["renew", "remove", "add"]))
    def reload(self, name: str, what: str) -> None:
        one = self.fleet.deployments.get(name)
        if what != "remove":
            self.put(name, renewed=what == "renew")
        elif one is not None and not one.removed:
            self.fleet.remove(name)
        self.decide()

    # What becomes of actions

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), fails=st.sampled_from([False, False, False, True]))
    def over(self, data: st.DataObject, fails: bool) -> None:
        self.finish(data.draw(st.sampled_from(self.under_way)), fails=fails)

    def finish(self, action: Action, *, fails: bool = False) -> None:
        self.under_way.remove(action)
        assert isinstance(action, Start | Wake | Sleep | Capture | End)
        replica, fleet = action.replica, self.fleet
        size = self.sizes[replica.deployment]
        asleep = Size(size.host, (0,) * len(size.gpus))
        if isinstance(action, Start | Wake):
            kind = "woken" if isinstance(action, Wake) else "cold"
            if fails:
                fleet.failed(replica, "broken", 1.0, self.now, kind=kind)  # type: ignore[arg-type]
            else:
                fleet.serves(replica, kind, 1.0, self.now)  # type: ignore[arg-type]
                fleet.measured(replica, size)
        elif isinstance(action, End) or fails:
            fleet.gone(replica, self.now, by_itself="" if isinstance(action, End) else "broken")
        elif isinstance(action, Sleep):
            fleet.sleeps(replica, asleep, self.now)
        else:
            fleet.captured(replica, asleep, self.now, asleep=True, kept=True)
        self.decide()

    @precondition(lambda self: any(one.state in ("serving", "asleep") for one in self.fleet.replicas.values()))
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        there = [one for one in self.fleet.replicas.values() if one.state in ("serving", "asleep")]
        replica = data.draw(st.sampled_from(there))
        self.fleet.gone(replica, self.now, by_itself="killed")
        self.in_flight = [one for one in self.in_flight if one is not replica]
        self.decide()

    # What must hold

    def decide(self) -> None:
        for action in self.fleet.decide(self.now):
            self.judge(action)
        self.check_budget()

    def judge(self, action: Action) -> None:
        if isinstance(action, Refuse):
            self.asked[action.waiter.deployment].remove(action.waiter)
            self.resolved += 1
        elif isinstance(action, Grant):
            queue = self.asked[action.waiter.deployment]
            assert queue.pop(0) is action.waiter, "the order of the queue"
            assert action.waiter.deadline > self.now
            assert action.replica.state == "serving"
            assert not action.replica.outdated
            self.in_flight.append(action.replica)
            self.resolved += 1
        else:
            self.under_way.append(action)
            if isinstance(action, Sleep | Capture | End):
                assert action.replica.requests == 0, "nobody with a request in flight falls"
            else:
                one = self.fleet.deployments[action.replica.deployment]
                requests = sum(other.requests for other in self.fleet.of(one.terms.name))
                assert one.queue or one.wanted or requests, "nobody waits for it"
                assert len(
                    [o for o in self.fleet.of(one.terms.name) if o.state in ("starting", "waking", "serving")]
                ) <= (max(wanted_replicas(one.terms, len(one.queue) + requests), 1))

    def check_budget(self) -> None:
        room = Room(self.fleet.budget, (one.taken for one in self.fleet.replicas.values()))
        assert room.host is None or room.host >= 0, "host memory above the budget"
        assert all(free >= 0 for free in room.gpus), "GPU memory above the budget"

    @invariant()
    def requests_are_counted(self) -> None:
        if hasattr(self, "fleet"):
            for replica in self.fleet.replicas.values():
                assert replica.requests == sum(one is replica for one in self.in_flight)
                assert replica.requests <= 3
            for name, queue in self.asked.items():
                one = self.fleet.deployments.get(name)
                assert queue == (list(one.queue) if one else [])
                assert all(waiter.deadline >= self.now for waiter in queue), "past its deadline"

    def teardown(self) -> None:
        """Whatever happened: once actions end, every request is granted or refused, and everything falls to disk."""
        if not hasattr(self, "fleet"):
            return
        for _ in range(400):
            while self.in_flight:
                self.fleet.release(self.in_flight.pop(), self.now)
            self.decide()
            while self.under_way:
                self.finish(self.under_way[0])
            if (then := self.fleet.next_time(self.now)) == float("inf") and not self.in_flight:
                break
            self.now = min(then, self.now + 30.0)
        assert not any(self.asked.values())
        left = [one for one in self.fleet.replicas.values() if not self.stays(one)]
        assert left == []

    def stays(self, replica: Replica) -> bool:
        terms = self.fleet.deployments[replica.deployment].terms
        return terms.pinned or (terms.keep == "asleep" and replica.state == "asleep")


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
