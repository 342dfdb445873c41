"""Random orders of what the framework, clients and strangers do, with the stand-in's real processes and sockets.

`guard/test_guard_machine.py` tests thousands of orders for the guard alone, in one process. Here are fewer, for the whole
lifecycle. The engine's journal shows which calls reached it.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.conftest import living_members, wait_until_gone
from torpor import Deployment, EngineExitedError, GuardStateError, Model
from torpor.runtime.boot import Boot
from torpor.testing import Fault, StandIn, StandInVLLM
from torpor.testing.faults import CRASH_WORD
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.slow

STEPS = tuple(path for standin in (StandIn, StandInVLLM) for steps in standin.steps for path in steps)
CLOSED = (
    "/update_weights_from_disk",
    "/health_generate",
    "/is_sleeping",
    "/server_info",
    "/flush_cache",
    "/_torpor/wake",
    *STEPS,
)
CHAT = "/v1/chat/completions"
LONG = 60
"""Tokens of a long answer, 5 ms each."""


class BootMachine(RuleBasedStateMachine):
    """A boot of the stand-in, with a model of its state: starting, serving, asleep or dead."""

    standin: ClassVar[type[StandIn]] = StandIn

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        """Start and warm up a new engine; the guard is still closed."""
        handle, journal = tempfile.mkstemp(prefix="torpor-journal-")
        os.close(handle)
        self.journal = Path(journal)
        engine = self.standin(fault=Fault.EXIT_WHILE_SERVING, token_s=0.005, warmup_requests=1, journal=journal)
        model = Model(path="/m", served_name="standin")
        self.boot = Boot(Deployment(name="x", model=model, plugins=(engine,), port=unused_port(), stop_timeout_s=2.0))
        self.boot.cold_start()
        url = f"http://127.0.0.1:{self.boot.deployment.port}"
        self.public = httpx.Client(base_url=url, trust_env=False, timeout=20)
        self.state = "starting"
        self.public_answers = 0
        self.at_start = len(self.reached())

    def teardown(self) -> None:
        """End the engine, then check its journal."""
        self.boot.stop()
        self.public.close()
        assert wait_until_gone(self.boot.running_engine.pid) == []
        self.judge()
        self.journal.unlink()

    def reached(self) -> list[str]:
        """The paths of the requests that reached the engine, in order."""
        return [json.loads(line)["path"] for line in self.journal.read_text().splitlines()]

    def judge(self) -> None:
        """Check that no call broke the rules: steps in order, once each, and none while the engine sleeps."""
        asleep: list[str] = []
        sleep, wake = self.standin.steps
        steps = [*sleep, *wake]
        for path in self.reached():
            if path in steps:
                assert asleep == steps[: steps.index(path)]
                asleep = [] if path == steps[-1] else [*asleep, path]
            else:
                assert asleep == [], f"{path} came after {asleep}"
                assert path in (CHAT, "/v1/models", "/flush_cache")
        assert self.reached()[self.at_start :].count(CHAT) >= self.public_answers

    def chat(self, tokens: int, *, word: str = "hello") -> int:
        """The status that a client gets for a chat."""
        body = {"messages": [{"role": "user", "content": word}], "max_tokens": tokens}
        answer = self.public.post(CHAT, json=body)
        if answer.status_code == 200:
            assert answer.json()["usage"]["completion_tokens"] == tokens
            self.public_answers += 1
        else:
            assert answer.headers["retry-after"]
        return answer.status_code

    def move(self, call: Callable[[], None], target: str, *, allowed: bool) -> None:
        """Call a transition. If it is out of order, the guard refuses it and core ends the engine."""
        if allowed:
            call()
            self.state = target
            return
        with pytest.raises(GuardStateError):
            call()
        self.state = "dead"

    @precondition(lambda self: self.state == "starting")
    @rule()
    def serve(self) -> None:
        self.move(self.boot.serve, "serving", allowed=True)

    @precondition(lambda self: self.state in ("starting", "serving"))
    @rule()
    def sleep(self) -> None:
        self.move(self.boot.sleep, "asleep", allowed=True)

    @precondition(lambda self: self.state == "asleep")
    @rule()
    def wake(self) -> None:
        self.move(self.boot.wake, "serving", allowed=True)

    @precondition(lambda self: self.state == "serving")
    @rule()
    def sleep_with_a_request_in_flight(self) -> None:
        """A request in flight gets its whole answer before the sleep."""
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(self.chat, LONG)
            self._wait_until_in_flight()
            self.move(self.boot.sleep, "asleep", allowed=True)
            assert running.done()
            assert running.result() == 200

    def _wait_until_in_flight(self) -> None:
        deadline = time.monotonic() + 20
        with self.boot._control() as control:
            while control._client.get("/_torpor/state").json()["in_flight"] == 0:
                assert time.monotonic() < deadline

    @precondition(lambda self: self.state != "dead")
    @rule(which=st.sampled_from(("serve", "sleep", "wake")))
    def out_of_order(self, which: str) -> None:
        """Send a step out of order, as a framework with a bug would."""
        allowed = {"serve": ("starting",), "sleep": ("starting", "serving"), "wake": ("asleep",)}[which]
        if self.state not in allowed:
            self.move(getattr(self.boot, which), self.state, allowed=False)

    @precondition(lambda self: self.state != "dead")
    @rule(tokens=st.integers(min_value=1, max_value=6))
    def request(self, tokens: int) -> None:
        assert self.chat(tokens) == (200 if self.state == "serving" else 503)

    @precondition(lambda self: self.state != "dead")
    @rule()
    def health(self) -> None:
        assert self.public.get("/health").status_code == (200 if self.state == "serving" else 503)

    @precondition(lambda self: self.state != "dead")
    @rule(path=st.sampled_from(CLOSED), wrong=st.booleans())
    def stranger(self, path: str, wrong: bool) -> None:
        """A client without the lifecycle key."""
        before = self.reached()
        headers = {"torpor-key": "x" * 43} if wrong else {}
        assert self.public.post(path, json={}, headers=headers).status_code == (403 if wrong else 404)
        assert self.reached() == before

    @precondition(lambda self: self.state != "dead")
    @rule(number=st.integers(min_value=0, max_value=10))
    def step_out_of_order(self, number: int) -> None:
        """A client with the key, outside a drain or a wake."""
        steps = [path for steps in self.standin.steps for path in steps]
        path = steps[number % len(steps)]
        before = self.reached()
        headers = {"torpor-key": str(self.boot.running_engine.guard_key)}
        assert self.public.post(path, json={}, headers=headers).status_code == 409
        assert self.reached() == before

    @precondition(lambda self: self.state != "dead")
    @rule(how=st.sampled_from(("leader", "child", "request")))
    def crash(self, how: str) -> None:
        """A process of the engine is killed, or a request ends it. The next call reports that."""
        engine = self.boot.running_engine
        if how == "request" and self.state == "serving":
            with pytest.raises(httpx.TransportError):
                self.chat(1, word=CRASH_WORD)
        else:
            children = [pid for pid in living_members(engine.pid) if pid != engine.pid]
            os.kill(min(children) if how == "child" else engine.pid, signal.SIGKILL)
            if how == "child" and self.standin is StandIn:
                os.kill(engine.pid, signal.SIGQUIT)  # a failing scheduler of SGLang does this
        assert engine.wait(30) is not None
        with pytest.raises(EngineExitedError):
            (self.boot.wake if self.state == "asleep" else self.boot.sleep)()
        self.state = "dead"

    @precondition(lambda self: self.state == "dead")
    @rule()
    def start_anew(self) -> None:
        self.teardown()
        self.begin()

    @invariant()
    def it_lives_as_long_as_nobody_ended_it(self) -> None:
        """No call ended the engine."""
        ended = self.boot.running_engine.poll() is not None
        assert ended == (self.state == "dead")
        if ended:
            assert wait_until_gone(self.boot.running_engine.pid) == []


class VLLMBootMachine(BootMachine):
    """The same for vLLM's dialect. There a repeated step would be harmless, but the guard refuses it too."""

    standin = StandInVLLM


SETTINGS = settings(
    max_examples=12,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.generate],  # show a failed run unchanged: shortening it would take minutes
)
BootMachine.TestCase.settings = VLLMBootMachine.TestCase.settings = SETTINGS
TestBootMachine = BootMachine.TestCase
TestVLLMBootMachine = VLLMBootMachine.TestCase
