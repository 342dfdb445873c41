"""The faults of a lifecycle that a real engine can be brought to on a CPU; all of them, with the stand-in: test_faults.py."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import pytest

from tests.conftest import is_running, wait_until_gone
from torpor import CanaryError, EngineError, EngineExitedError, EngineTimeoutError, PortInUseError
from torpor.engine.process import session_members
from torpor.runtime.boot import Boot

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psutil

    from torpor import Deployment

__all__ = ["RealFaultRules"]

STEP_S = 8.0


@contextmanager
def serving(deployment: Deployment) -> Iterator[Boot]:
    """A boot that serves; whatever becomes of its engine, nothing of it is left in the end."""
    boot = Boot(deployment)
    try:
        boot.cold_start()
        boot.serve()
        yield boot
    finally:
        boot.stop()
        if boot.engine is not None:
            assert wait_until_gone(boot.engine.pid, 10.0) == []


class RealFaultRules:
    """What the lifecycle makes of them. A subclass has a fixture `deployment`.

    Attributes:
        computing: what the command line of the process that computes says (engines name their processes).
        noticed_s: seconds in which the engine itself notices that this process has ended, and ends its tree.
        said: a word of its log that says so.
    """

    computing: ClassVar[str]
    noticed_s: ClassVar[float]
    said: ClassVar[str]

    def computer(self, boot: Boot) -> psutil.Process:
        """The process that computes."""
        (found,) = [
            one
            for one in session_members(boot.running_engine.pid)
            if is_running(one) and self.computing in " ".join(one.cmdline())
        ]
        return found

    def test_a_taken_port_is_found_before_anything_is_started(self, deployment: Deployment) -> None:
        """In no time, and the message names the port."""
        with socket.create_server(("127.0.0.1", deployment.port)):
            boot = Boot(deployment)
            with pytest.raises(PortInUseError, match=str(deployment.port)):
                boot.cold_start()
        assert boot.engine is None

    def test_a_computing_process_that_is_killed_while_serving_ends_the_engine(self, deployment: Deployment) -> None:
        """The engine notices and ends its tree; the end is seen at once, with the last lines."""
        with serving(deployment) as boot:
            self.computer(boot).kill()
            assert boot.running_engine.wait(self.noticed_s) is not None
            assert any(self.said in line for line in boot.running_engine.log_tail())

    def test_a_computing_process_that_is_killed_while_asleep_never_serves_again(self, deployment: Deployment) -> None:
        """The wake says that the engine has ended, whichever of the two comes first."""
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
        """A process that was stopped answers nobody."""
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

    def test_a_wake_with_another_answer_than_before_ends_the_engine(self, deployment: Deployment) -> None:
        """As if its memory had come back as something else; it fails closed."""
        with serving(deployment) as boot:
            boot.sleep(for_snapshot=False)
            assert boot.canary is not None
            boot.canary = replace(boot.canary, text="January, February")
            with pytest.raises(CanaryError, match="January, February"):
                boot.wake()
            assert boot.running_engine.poll() is not None
