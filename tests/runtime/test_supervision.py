"""`torpor.runtime.supervision`: when an engine that ended starts again, when it is given up, and how its end is noticed."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import structlog

from torpor import ConfigurationError
from torpor.runtime.supervision import BackOff, watch_engine

if TYPE_CHECKING:
    from tests.conftest import MakeBoot
    from torpor.testing.pytest_plugin import StandInDeployment


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_pauses_double_up_to_a_minute_and_end_at_the_limit() -> None:
    """The first restart comes at once. After the limit in a row the replica is given up."""
    back_off = BackOff(9, clock=Clock())
    assert [back_off.ended() for _ in range(10)] == [0, 1, 2, 4, 8, 16, 32, 60, 60, None]
    assert back_off.restarts == 9


def test_a_replica_that_served_for_long_counts_from_the_beginning() -> None:
    """Five minutes reset the row. A restart that served for less, or never, adds one. The total keeps counting."""
    clock = Clock()
    back_off = BackOff(2, clock=clock)
    assert back_off.ended() == 0.0
    back_off.serves()
    clock.now += 299.0
    assert back_off.ended() == 1.0
    back_off.serves()
    clock.now += 300.0
    assert back_off.ended() == 0.0
    clock.now += 1000.0  # it has not served again, so this time does not count
    assert back_off.ended() == 1.0
    assert back_off.ended() is None
    assert back_off.restarts == 4
    back_off.forgive()
    assert back_off.ended() == 0.0


def test_no_restarts_at_all_can_be_asked_for() -> None:
    """`Deployment.max_restarts=0` allows none."""
    assert BackOff(0).ended() is None


def test_a_limit_below_zero_is_refused(standin_deployment: StandInDeployment) -> None:
    """The message names the field."""
    with pytest.raises(ConfigurationError, match=r"Deployment.max_restarts is -1"):
        replace(standin_deployment(), max_restarts=-1)


@pytest.mark.fault("an engine is killed while it serves", area="engine", outcome="restarted")
@pytest.mark.alone
def test_an_end_is_noticed_and_logged_within_a_second(
    standin_deployment: StandInDeployment, make_boot: MakeBoot
) -> None:
    """The event has exit code and last lines, and comes once."""
    boot = make_boot(standin_deployment())
    boot.cold_start()
    boot.serve()
    told = threading.Event()
    watch_engine(boot.running_engine, name="one", stopping=threading.Event(), on_end=told.set)
    with structlog.testing.capture_logs() as logs:
        began = time.monotonic()
        os.kill(boot.running_engine.pid, signal.SIGKILL)
        assert told.wait(30.0)
    assert time.monotonic() - began < 1.0
    (entry,) = [entry for entry in logs if entry["event"] == "engine_ended_while_serving"]
    assert (entry["replica"], entry["exit_code"]) == ("one", -signal.SIGKILL)
    assert "standin: pid" in entry["last_lines"][0]
