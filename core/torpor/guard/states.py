"""The guard's states, and which transition, step or request each of them allows. No I/O: every rule is one method."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.guard.rules import GuardRules

__all__ = ["State", "StateMachine"]


class State(StrEnum):
    """What the guard lets pass."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    ASLEEP = "asleep"
    WAKING = "waking"


class StateMachine:
    """The state, the requests in flight and the steps done. One event loop's; no method of it awaits.

    Attributes:
        state: where the engine is in its life.
        in_flight: requests that were let through to the engine and whose answers are not complete.
    """

    def __init__(self, rules: GuardRules) -> None:
        self.state = State.STARTING
        self.in_flight = 0
        self._steps = {State.DRAINING: rules.sleep, State.WAKING: rules.wake}
        self._passed = 0  # steps of this state that were let through
        self._step_failed = False
        self._before_drain = State.STARTING
        self._idle: asyncio.Future[None] | None = None  # while a drain waits

    @property
    def engine_is_awake(self) -> bool:
        """Whether a call with the lifecycle key may reach the engine: it is awake, and no drain is waiting for it."""
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
        """A request is handed to the engine."""
        self.in_flight += 1

    def leave(self) -> None:
        """Its answer is complete, or will never be."""
        self.in_flight -= 1
        if self.in_flight == 0 and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def begin_step(self, path: str) -> bool:
        """Whether this sleep or wake call is the next one; it counts as done only when `end_step` says so."""
        steps = self._steps.get(self.state, ())
        ready = self._idle is None and self.in_flight == 0 and not self._step_failed
        if not ready or self._passed >= len(steps) or path != steps[self._passed]:
            return False
        self._passed += 1
        self._step_failed = True
        return True

    def end_step(self, *, succeeded: bool) -> None:
        """A step has ended. One that failed leaves nothing but the engine's end: its memory may be half gone."""
        self._step_failed = not succeeded

    def begin_renewal(self) -> bool:
        """Whether the engine has just been woken and may make new what its steps did not; until `end_step` nothing passes."""
        due = self.state is State.WAKING and self._steps_done
        if due:
            self._step_failed = True
        return due

    def fail(self) -> None:
        """Nothing but the engine's end is left, as after a step that failed."""
        self._step_failed = True

    def begin_drain(self) -> asyncio.Future[None] | None:
        """Refuse new requests from now on; a future that is done when none is in flight. None: out of order."""
        if self.state not in (State.STARTING, State.SERVING):
            return None
        self._before_drain = self.state
        self._enter(State.DRAINING)
        self._idle = asyncio.get_running_loop().create_future()
        if self.in_flight == 0:
            self._idle.set_result(None)
        return self._idle

    def end_drain(self, *, drained: bool) -> None:
        """The wait is over: stay, with nothing in flight, or go back to the state before."""
        self._idle = None
        if not drained:
            self._enter(self._before_drain)

    def asleep(self) -> bool:
        """From draining to asleep, once every sleep step was passed; whether it was in order."""
        in_order = self.state is State.DRAINING and self._idle is None and self.in_flight == 0 and self._steps_done
        return self._go(State.ASLEEP, in_order=in_order)

    def wake(self) -> bool:
        """From asleep to waking; whether it was in order."""
        return self._go(State.WAKING, in_order=self.state is State.ASLEEP)

    def serve(self) -> bool:
        """Open the door: after the start, after every wake step, or after a drain that put nothing to sleep."""
        in_order = self.state is not State.SERVING and self.engine_is_awake
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
