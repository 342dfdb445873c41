"""Faults of a lifecycle that a real engine can show on a CPU. test_faults.py has all faults, with the stand-in."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import httpx
import pytest
import structlog

from tests.conftest import is_running, wait_until_gone
from torpor import CanaryError, EngineError, EngineExitedError, EngineTimeoutError, PortInUseError
from torpor.engine.process import session_members
from torpor.runtime import answering
from torpor.runtime.answering import AnswerWatch, Patience
from torpor.runtime.boot import Boot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psutil

    from torpor import Deployment

__all__ = ["RealFaultRules"]

STEP_S = 8.0


@contextmanager
def serving(deployment: Deployment) -> Iterator[Boot]:
    """Yield a serving boot. At the end no process of its engine may be left."""
    boot = Boot(deployment)
    try:
        boot.cold_start()
        boot.serve()
        yield boot
    finally:
        boot.stop()
        if boot.engine is not None:
            assert wait_until_gone(boot.engine.pid, 10.0) == []


def _ask(boot: Boot, tokens: int) -> threading.Thread:
    """Send a chat whose answer nobody needs."""

    def chat() -> None:
        deployment = boot.deployment
        body = {"model": deployment.model.served_name, "messages": [{"role": "user", "content": "fox"}]}
        url = f"http://127.0.0.1:{deployment.port}/v1/chat/completions"
        with contextlib.suppress(httpx.HTTPError):
            httpx.post(url, json={**body, "max_tokens": tokens, "min_tokens": tokens}, timeout=120, trust_env=False)

    thread = threading.Thread(target=chat, daemon=True)
    thread.start()
    return thread


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


class RealFaultRules:
    """How the lifecycle handles faults. A subclass needs a fixture `deployment`.

    Attributes:
        computing: a word in the command line of the computing process (engines name their processes).
        noticed_s: seconds until the engine notices the end of this process and ends its tree.
        said: a word of its log message about that.
    """

    computing: ClassVar[str]
    noticed_s: ClassVar[float]
    said: ClassVar[str]

    def computer(self, boot: Boot) -> psutil.Process:
        """Return the pid of the computing process."""
        (found,) = [
            one
            for one in session_members(boot.running_engine.pid)
            if is_running(one) and self.computing in " ".join(one.cmdline())
        ]
        return found

    def test_a_taken_port_is_found_before_anything_is_started(self, deployment: Deployment) -> None:
        """It is found at once, and the message names the port."""
        with socket.create_server(("127.0.0.1", deployment.port)):
            boot = Boot(deployment)
            with pytest.raises(PortInUseError, match=str(deployment.port)):
                boot.cold_start()
        assert boot.engine is None

    def test_a_computing_process_that_is_killed_while_serving_ends_the_engine(self, deployment: Deployment) -> None:
        """The engine notices and ends its tree; Torpor reports the end at once, with the last lines of the log."""
        with serving(deployment) as boot:
            self.computer(boot).kill()
            assert boot.running_engine.wait(self.noticed_s) is not None
            assert any(self.said in line for line in boot.running_engine.log_tail())

    @pytest.mark.fault("a real engine's computing process hangs while it serves", area="engine", outcome="restarted")
    def test_a_computing_process_that_hangs_while_serving_fails_the_question_for_its_health(
        self, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It passes while it works on a request, and the engine is killed once it hangs with one."""
        monkeypatch.setattr(answering, "PATIENCE", Patience(pause_s=1.0, failures=3))
        with serving(replace(deployment, health_timeout_s=60.0)) as boot, structlog.testing.capture_logs() as logs:
            watch = AnswerWatch(boot)
            asked = _ask(boot, tokens=400)
            _until(lambda: boot.in_flight() > 0)
            assert watch._asked(boot.running_engine) == ""
            asked.join(120)
            boot.deployment = replace(boot.deployment, health_timeout_s=2.0)
            self.computer(boot).suspend()
            _ask(boot, tokens=4)
            _until(lambda: boot.in_flight() > 0)
            with watch.paused():
                """It is watched from now on."""
            assert boot.running_engine.wait(120.0) is not None
        why = [str(one["why"]) for one in logs if one["event"] == "engine_does_not_answer"]
        assert all(one.startswith(f"{deployment.engine.health_path}, with ") for one in why), why
        assert [one["event"] for one in logs].count("engine_ended_for_not_answering") == 1

    def test_a_computing_process_that_is_killed_while_asleep_never_serves_again(self, deployment: Deployment) -> None:
        """The wake reports that the engine has ended, whether the engine or Torpor notices first."""
        with serving(deployment) as boot:
            boot.sleep(for_snapshot=False)
            self.computer(boot).kill()
            assert boot.running_engine.wait(self.noticed_s) is not None
            with pytest.raises(EngineExitedError):
                boot.wake()

    @pytest.mark.parametrize("step", ["sleep", "wake"])
    def test_a_computing_process_that_hangs_in_a_step_is_ended_at_the_deadline(
        self, deployment: Deployment, step: str
    ) -> None:
        """A stopped process does not answer."""
        with serving(replace(deployment, sleep_timeout_s=STEP_S, wake_timeout_s=STEP_S)) as boot:
            if step == "wake":
                boot.sleep(for_snapshot=False)
            os.kill(self.computer(boot).pid, signal.SIGSTOP)
            began = time.monotonic()
            with pytest.raises(EngineError) as raised:
                boot.wake() if step == "wake" else boot.sleep(for_snapshot=False)
            assert isinstance(raised.value, EngineTimeoutError), raised.value
            assert time.monotonic() - began < 3 * STEP_S
            assert boot.running_engine.poll() is not None

    def test_a_different_answer_after_a_wake_ends_the_engine(self, deployment: Deployment) -> None:
        """The memory might be damaged, so the engine must not serve."""
        with serving(deployment) as boot:
            boot.sleep(for_snapshot=False)
            assert boot.canary is not None
            other = json.loads(json.dumps(boot.canary.answer))
            other["models"][0]["prompt"][0] -= 1.0
            boot.canary = boot.canary._replace(answer=other)
            with pytest.raises(CanaryError, match=r"other log probabilities .* token 2 of the prompt had"):
                boot.wake()
            assert boot.running_engine.poll() is not None
