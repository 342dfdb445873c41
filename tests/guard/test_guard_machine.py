"""Any order of calls, against a model: the engine never sees a call that its state forbids."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.guard.engine import KEY, RULES, guarded
from tests.guard.exchange import Exchange, ask, control, settle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.guard.engine import TinyEngine
    from torpor.guard import Guard

T = TypeVar("T")
STEPS = {"draining": RULES.sleep, "waking": RULES.wake}
COUNT = st.integers(min_value=0, max_value=1000)


async def _start() -> tuple[TinyEngine, Guard]:
    engine, guard = guarded()
    engine.gate.clear()
    return engine, guard


class GuardMachine(RuleBasedStateMachine):
    """A guard and an engine on one event loop, and a second opinion of what they should do."""

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        """A new engine behind a new guard."""
        self.loop = asyncio.new_event_loop()
        self.engine, self.guard = self.run(_start)
        self.state = "starting"
        self.before_drain = "starting"
        self.done = 0  # steps that the engine has done in this state
        self.broken = False  # a step failed
        self.key = KEY
        self.keys = 0
        self.reached = 0  # calls that should have reached the engine
        self.running: list[Exchange] = []
        self.drain: Exchange | None = None

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run a coroutine, and then every task until it waits."""

        async def all_of_it() -> T:
            result = await work()
            await settle()
            return result

        return self.loop.run_until_complete(all_of_it())

    def teardown(self) -> None:
        """End what still runs; every request gets an answer."""
        self.engine.gate.set()
        for exchange in self.running:
            self.loop.run_until_complete(exchange.task)
            assert exchange.complete
        if self.drain is not None:
            self.loop.run_until_complete(self.drain.task)
        self.loop.close()

    @property
    def awake(self) -> bool:
        """Whether a keyed request may reach the engine."""
        match self.state:
            case "starting" | "serving":
                return True
            case "draining":
                return self.drain is None and self.done == 0 and not self.broken
            case "waking":
                return self.done == len(RULES.wake) and not self.broken
        return False

    def move(self, name: str, target: str, *, allowed: bool, options: object = None) -> None:
        """Make a transition and hold the answer against the model."""
        answer = self.run(lambda: control(self.guard, name, options, key=self.key))
        assert answer.status == (200 if allowed else 409)
        if allowed:
            self.state, self.done, self.broken = target, 0, False
        assert answer.json["state"] == self.state

    @rule()
    def serve(self) -> None:
        self.move("serve", "serving", allowed=self.state != "serving" and self.awake)

    @rule()
    def fall_asleep(self) -> None:
        done = self.done == len(RULES.sleep) and not self.broken and not self.running
        self.move("asleep", "asleep", allowed=self.state == "draining" and self.drain is None and done)

    @rule(with_key=st.booleans())
    def wake(self, with_key: bool) -> None:
        self.keys += 1
        new_key = f"{self.keys:043}"
        allowed = self.state == "asleep"
        self.move("wake", "waking", allowed=allowed, options={"key": new_key} if with_key else {})
        if allowed and with_key:
            self.key = new_key

    @rule()
    def drain_at_once(self) -> None:
        """With a deadline of zero."""
        allowed = self.state in ("starting", "serving")
        answer = self.run(lambda: control(self.guard, "drain", {"deadline_s": 0}, key=self.key))
        if allowed and not self.running:
            assert answer.status == 200
            self.before_drain, self.state, self.done, self.broken = self.state, "draining", 0, False
        else:
            assert answer.status == 409
            assert answer.json.get("in_flight") == (len(self.running) if allowed else None)
        assert answer.json["state"] == self.state

    @precondition(lambda self: self.state in ("starting", "serving") and self.running)
    @rule()
    def begin_to_drain(self) -> None:
        """With requests in flight and time."""

        async def begin() -> Exchange:
            body = b'{"deadline_s": 3600}'
            return Exchange(self.guard, "/_torpor/drain", method="POST", key=self.key, body=body)

        self.drain = self.run(begin)
        self.before_drain, self.state, self.done, self.broken = self.state, "draining", 0, False
        assert not self.drain.complete

    @precondition(lambda self: self.drain is not None)
    @rule()
    def hang_up_in_the_drain(self) -> None:
        async def hang_up() -> None:
            assert self.drain is not None
            self.drain.hang_up()
            await self.drain.task

        self.run(hang_up)
        self.drain, self.state = None, self.before_drain

    @rule(path=st.sampled_from(RULES.sleep + RULES.wake), fails=st.booleans(), crowd=st.booleans())
    def any_step(self, path: str, fails: bool, crowd: bool) -> None:
        """A sleep or wake call, perhaps two at once, perhaps one that the engine answers with an error."""
        self.step(path, fails=fails, crowd=crowd)

    @precondition(lambda self: self.state in STEPS and not self.running)
    @rule(crowd=st.booleans(), fails=st.booleans())
    def next_step(self, crowd: bool, fails: bool) -> None:
        """What a lifecycle does."""
        for path in STEPS[self.state][self.done :][:1]:
            self.step(path, fails=fails, crowd=crowd)

    @precondition(lambda self: self.state in STEPS and not self.running and not self.broken)
    @rule()
    def steps_that_are_left(self) -> None:
        """What a lifecycle does, so that the walk gets anywhere."""
        for path in STEPS[self.state][self.done :]:
            self.step(path, fails=False, crowd=False)

    @precondition(lambda self: self.state == "serving" and not self.running)
    @rule()
    def sleep(self) -> None:
        """A whole one."""
        self.drain_at_once()
        self.steps_that_are_left()
        self.fall_asleep()

    @precondition(lambda self: self.broken)
    @rule()
    def start_anew(self) -> None:
        """What core does with an engine that failed a step."""
        self.teardown()
        self.begin()

    def step(self, path: str, *, fails: bool, crowd: bool) -> None:
        """One step and what has to come of it."""
        steps = STEPS.get(self.state, ())
        free = self.drain is None and not self.running and not self.broken
        allowed = free and self.done < len(steps) and steps[self.done] == path
        self.engine.statuses = {path: 500} if fails else {}

        async def call() -> list[int]:
            calls = [Exchange(self.guard, path, method="POST", key=self.key) for _ in range(2 if crowd else 1)]
            await asyncio.gather(*(call.task for call in calls))
            return [call.status for call in calls]

        expected = [(500 if fails else 200) if allowed else 409] + [409] * crowd
        assert self.run(call) == expected
        self.engine.statuses = {}
        if allowed:
            self.reached += 1
            self.done += 1
            self.broken = fails

    @rule(path=st.sampled_from(("/v1/chat", "/v1/stream")), keyed=st.booleans())
    def request(self, path: str, keyed: bool) -> None:
        """One that stays in flight."""

        async def begin() -> Exchange:
            return Exchange(self.guard, path, method="POST", key=self.key if keyed else None)

        exchange = self.run(begin)
        full = len(self.running) >= RULES.max_in_flight
        if self.awake if keyed else self.state == "serving" and not full:
            assert not exchange.complete
            self.reached += 1
            self.running.append(exchange)
        else:
            assert exchange.status == (409 if keyed else 503)
            assert keyed or exchange.headers["retry-after"] == "7"

    @precondition(lambda self: self.running)
    @rule()
    def finish_all(self) -> None:
        """The engine answers everything that is in flight."""

        async def finish() -> None:
            self.engine.gate.set()
            await asyncio.gather(*(exchange.task for exchange in self.running))
            self.engine.gate.clear()

        self.run(finish)
        assert all(exchange.complete and exchange.status == 200 for exchange in self.running)
        self._gone_from_flight(self.running)

    @precondition(lambda self: self.running)
    @rule(which=COUNT)
    def hang_up(self, which: int) -> None:
        """One client goes away."""
        exchange = self.running[which % len(self.running)]

        async def hang_up() -> None:
            exchange.hang_up()
            await exchange.task

        self.run(hang_up)
        self._gone_from_flight([exchange])

    def _gone_from_flight(self, gone: list[Exchange]) -> None:
        self.running = [exchange for exchange in self.running if exchange not in gone]
        if self.drain is not None and not self.running:
            assert self.drain.status == 200, "the last one ends the drain"
            self.drain = None

    @rule(keyed=st.booleans(), path=st.sampled_from(("/v1/crash", "/v1/late_crash")))
    def crash(self, keyed: bool, path: str) -> None:
        """A request that the engine fails on."""

        async def call() -> bool:
            exchange = Exchange(self.guard, path, method="POST", key=self.key if keyed else None)
            (result,) = await asyncio.gather(exchange.task, return_exceptions=True)
            return isinstance(result, RuntimeError)

        allowed = self.awake if keyed else self.state == "serving" and len(self.running) < RULES.max_in_flight
        assert self.run(call) is allowed
        self.reached += allowed

    @rule(
        path=st.sampled_from((*RULES.keyed, *RULES.sleep, *RULES.wake, "/secret", "/_torpor/serve")),
        wrong=st.booleans(),
    )
    def stranger(self, path: str, wrong: bool) -> None:
        """Somebody without the key, or with one that was replaced."""
        key = "x" * 43 if wrong else None
        answer = self.run(lambda: ask(self.guard, path, method="POST", key=key))
        assert answer.status == (403 if wrong else 404)
        if self.key != KEY:
            assert self.run(lambda: ask(self.guard, path, method="POST", key=KEY)).status == 403

    @rule()
    def health(self) -> None:
        assert self.run(lambda: ask(self.guard, "/health")).status == (200 if self.state == "serving" else 503)

    @invariant()
    def the_guard_is_where_the_model_is(self) -> None:
        assert self.guard.state == self.state
        assert self.guard.in_flight == len(self.running)
        assert self.drain is None or not self.drain.complete, "a drain ends with the last answer, not before"

    @invariant()
    def the_engine_lives(self) -> None:
        assert self.engine.violations == []
        assert len(self.engine.calls) == self.reached, "what was refused never reached the engine"


class GuardMachineForLong(GuardMachine):
    """Many histories; the quick tests try a few."""


GuardMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=50, deadline=None)
GuardMachineForLong.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestGuardMachine = GuardMachine.TestCase
TestGuardMachineForLong = pytest.mark.slow(GuardMachineForLong.TestCase)
