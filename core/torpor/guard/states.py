"""The guard's states, and which transition, step or request each state allows. No I/O; each rule is one method."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.guard.rules import GuardRules

__all__ = ["State", "StateMachine"]


class State(StrEnum):
    """The state of the guard and its engine."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    ASLEEP = "asleep"
    WAKING = "waking"


class StateMachine:
    """The state, the requests in flight and the steps done. For one event loop; no method awaits.

    Attributes:
        state: the current state.
        in_flight: requests that reached the engine and whose answers are not complete.
        answered: public POST requests whose answers are complete since it began to serve.
    """

    def __init__(self, rules: GuardRules) -> None:
        self.state = State.STARTING
        self.in_flight = self.answered = 0
        self._steps = {State.DRAINING: rules.sleep, State.WAKING: rules.wake}
        self._passed = 0  # steps of this state that reached the engine
        self._step_failed = False
        self._before_drain = State.STARTING
        self._idle: asyncio.Future[None] | None = None  # while a drain waits

    @property
    def engine_is_awake(self) -> bool:
        """Whether a call with the lifecycle key may reach the engine: it is awake, and no drain waits."""
        match self.state:
            case State.STARTING | State.SERVING:
                return True
            case State.DRAINING:
                return self._idle is None and self._passed == 0
            case State.WAKING:
                return self._steps_done
            case State.ASLEEP:
                return False

    def arrive(self) -> None:
        """Count a request that goes to the engine."""
        self.in_flight += 1

    def leave(self, *, public: bool = False) -> None:
        """Count a request whose answer is complete, or will never be."""
        self.in_flight -= 1
        self.answered += public
        if self.in_flight == 0 and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def begin_step(self, path: str) -> bool:
        """Whether this sleep or wake call is the next step. It counts as done only after `end_step`."""
        steps = self._steps.get(self.state, ())
        ready = self._idle is None and self.in_flight == 0 and not self._step_failed
        if not ready or self._passed >= len(steps) or path != steps[self._passed]:
            return False
        self._passed += 1
        self._step_failed = True
        return True

    def end_step(self, *, succeeded: bool) -> None:
        """Note how a step ended. After a failed step the engine can only be ended: its memory may be half released."""
        self._step_failed = not succeeded

    def begin_renewal(self) -> bool:
        """Whether the engine has just woken and may run `on_wake`; nothing passes until `end_step`."""
        due = self.state is State.WAKING and self._steps_done
        if due:
            self._step_failed = True
        return due

    def fail(self) -> None:
        """Treat the state as after a failed step: the engine can only be ended."""
        self._step_failed = True

    def begin_drain(self) -> asyncio.Future[None] | None:
        """Refuse new requests; return a future that is done when none is in flight, or None if the state does not allow a drain."""
        if self.state not in (State.STARTING, State.SERVING):
            return None
        self._before_drain = self.state
        self._enter(State.DRAINING)
        self._idle = asyncio.get_running_loop().create_future()
        if self.in_flight == 0:
            self._idle.set_result(None)
        return self._idle

    def end_drain(self, *, drained: bool) -> None:
        """End the wait: stay in draining, or return to the state before."""
        self._idle = None
        if not drained:
            self._enter(self._before_drain)

    def asleep(self) -> bool:
        """Go from draining to asleep after every sleep step; return whether the state allowed it."""
        in_order = self.state is State.DRAINING and self._idle is None and self.in_flight == 0 and self._steps_done
        return self._go(State.ASLEEP, in_order=in_order)

    def wake(self) -> bool:
        """Go from asleep to waking; return whether the state allowed it."""
        return self._go(State.WAKING, in_order=self.state is State.ASLEEP)

    def serve(self) -> bool:
        """Let public requests pass: after the start, after every wake step, or after a drain without a sleep."""
        in_order = self.state is not State.SERVING and self.engine_is_awake
        if in_order:
            self.answered = 0
        return self._go(State.SERVING, in_order=in_order)

    @property
    def _steps_done(self) -> bool:
        return not self._step_failed and self._passed == len(self._steps[self.state])

    def _go(self, state: State, *, in_order: bool) -> bool:
        if in_order:
            self._enter(state)
        return in_order

    def _enter(self, state: State) -> None:
        self.state, self._passed, self._step_failed = state, 0, False
