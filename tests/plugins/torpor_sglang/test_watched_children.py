"""The patch `watched-children`: a process of the engine that ends with an error ends the server."""

from __future__ import annotations

import multiprocessing
import os
import signal
import types
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import pytest

from tests.snapshots.conftest import wait_for
from torpor_sglang.patches.watched_children import watch_children

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess
    from multiprocessing.synchronize import Event

SPAWN = multiprocessing.get_context("fork")


def _wait_for(number: signal.Signals, ready: Event) -> None:
    signal.signal(number, signal.SIG_DFL)
    ready.set()
    signal.pause()


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> SimpleQueue[BaseProcess]:
    """Processes that the watch found dead; the test undoes the patch at its end."""
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", multiprocessing.process.BaseProcess.start)
    found: SimpleQueue[BaseProcess] = SimpleQueue()
    watch_children(types.ModuleType("engine"), found.put)
    return found


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.fault("the scheduler of an engine without a watchdog is killed", area="crash", outcome="held")
def test_a_child_that_is_killed_is_noticed(ended: SimpleQueue[BaseProcess]) -> None:
    """SGLang 0.5.6.post2 alone would keep serving without a scheduler."""
    well, killed = SPAWN.Process(target=os._exit, args=(0,)), SPAWN.Process(target=signal.pause)
    for process in (well, killed):
        process.start()
    assert killed.pid
    os.kill(killed.pid, signal.SIGKILL)
    assert ended.get(timeout=30.0) is killed
    well.join(30.0)
    with pytest.raises(Empty):
        ended.get(timeout=0.1)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_child_is_left_to_the_engine(ended: SimpleQueue[BaseProcess], number: signal.Signals) -> None:
    """A server that is being stopped ends its children itself."""
    ready = SPAWN.Event()
    stopped = SPAWN.Process(target=_wait_for, args=(number, ready))
    stopped.start()
    assert ready.wait(30.0)
    assert stopped.pid
    os.kill(stopped.pid, number)
    assert wait_for(
        lambda: stopped.exitcode == -number, 30.0
    )  # `join` waits for a pipe that another fork may hold open
    with pytest.raises(Empty):
        ended.get(timeout=0.2)
