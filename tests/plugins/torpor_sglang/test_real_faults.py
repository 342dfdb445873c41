"""The faults of a lifecycle that a real SGLang can be brought to on a CPU; all of them, with the stand-in: test_faults.py."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.conftest import is_running, wait_until_gone
from tests.plugins.torpor_sglang.conftest import cpu_plugin
from torpor import (
    CanaryError,
    Deployment,
    EngineError,
    EngineExitedError,
    EngineTimeoutError,
    Model,
    PortInUseError,
)
from torpor.boot import Boot
from torpor.process import session_members

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import psutil

    from tests.plugins.local_engines import RealEngine

pytestmark = [pytest.mark.sglang, pytest.mark.slow]

STEP_S = 8.0
NOTICED_S = 15.0
"""SGLang looks at its scheduler every second, and sleeps for five before it ends its tree ("crash diagnostics")."""


@pytest.fixture
def deployment(real_engine: Callable[[str], RealEngine], tiny_model: Path, free_port: int) -> Deployment:
    return Deployment(
        name="faults",
        model=Model(path=str(tiny_model), served_name="tiny-qwen3"),
        port=free_port,
        startup_timeout_s=240,
        plugins=(cpu_plugin(real_engine("0.5.23"), warmup_prompt_words=(8,)),),
    )


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


def scheduler(boot: Boot) -> psutil.Process:
    """The process that computes: SGLang names it (setproctitle)."""
    (found,) = [
        one
        for one in session_members(boot.running_engine.pid)
        if is_running(one) and "scheduler" in " ".join(one.cmdline())
    ]
    return found


def test_a_taken_port_is_found_before_anything_is_started(deployment: Deployment) -> None:
    """In no time, and the message names the port."""
    with socket.create_server(("127.0.0.1", deployment.port)):
        boot = Boot(deployment)
        with pytest.raises(PortInUseError, match=str(deployment.port)):
            boot.cold_start()
    assert boot.engine is None


def test_a_scheduler_that_is_killed_while_serving_ends_the_engine(deployment: Deployment) -> None:
    """SGLang notices and ends its tree; the end is seen at once, with the last lines."""
    with serving(deployment) as boot:
        scheduler(boot).kill()
        assert boot.running_engine.wait(NOTICED_S) is not None
        assert any("scheduler" in line for line in boot.running_engine.log_tail())


def test_a_scheduler_that_is_killed_while_asleep_never_serves_again(deployment: Deployment) -> None:
    """The wake says that the engine has ended, whichever of the two comes first."""
    with serving(deployment) as boot:
        boot.sleep(for_snapshot=False)
        scheduler(boot).kill()
        assert boot.running_engine.wait(NOTICED_S) is not None
        with pytest.raises(EngineExitedError):
            boot.wake()


@pytest.mark.parametrize("step", ["sleep", "wake"])
def test_a_scheduler_that_hangs_in_a_step_is_ended_at_the_deadline(deployment: Deployment, step: str) -> None:
    """A process that was stopped answers nobody."""
    with serving(replace(deployment, sleep_timeout_s=STEP_S, wake_timeout_s=STEP_S)) as boot:
        if step == "wake":
            boot.sleep(for_snapshot=False)
        os.kill(scheduler(boot).pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(EngineError) as raised:
            boot.wake() if step == "wake" else boot.sleep(for_snapshot=False)
        assert isinstance(raised.value, EngineTimeoutError), raised.value
        assert time.monotonic() - began < 3 * STEP_S
        assert boot.running_engine.poll() is not None


def test_a_wake_with_another_answer_than_before_ends_the_engine(deployment: Deployment) -> None:
    """As if its memory had come back as something else; it fails closed."""
    with serving(deployment) as boot:
        boot.sleep(for_snapshot=False)
        assert boot.canary is not None
        boot.canary = replace(boot.canary, text="January, February")
        with pytest.raises(CanaryError, match="January, February"):
            boot.wake()
        assert boot.running_engine.poll() is not None
