"""The patch `forked-scheduler`: the state of a fork, and when the scheduler is spawned (with SGLang: test_real_server.py)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.conftest import is_running
from torpor_sglang.patches.forked_scheduler import fork_schedulers

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = Path(__file__).with_name("forking_program.py")
SAFE = {"dp_size": 1, "numa_node": None, "enable_memory_saver": False}


@contextmanager
def started(**options: object) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Run the program; yield it and its scheduler's output."""
    paths = os.pathsep.join(path for path in sys.path if path)
    with subprocess.Popen(
        [sys.executable, PROGRAM, json.dumps(SAFE | options)],
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def test_a_fork_has_its_parents_modules_and_its_own_signal_handlers() -> None:
    """It imports nothing again. The parent's handlers would end the parent's tree, so the fork does not have them."""
    with started() as (process, told):
        assert told["forked"]
        assert told["handlers"] == ["SIG_DFL", "SIG_DFL"]
        assert told["arguments"] == ["ports", "place"]
        assert told["pid"] != process.pid


def test_later_processes_of_a_fork_or_its_parent_are_spawned() -> None:
    """The start method is changed for this one start only."""
    with started() as (process, told):
        assert told["method"] == "spawn"
        _, errors = process.communicate("end\n", timeout=30)
        assert errors == "afterwards: spawn\n"
        assert process.returncode == 0


def test_a_fork_ends_with_its_parent() -> None:
    """This holds before SGLang itself sets it up, a moment later."""
    with started() as (process, told):
        fork = psutil.Process(told["pid"])
        process.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 10
        while is_running(fork) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_running(fork)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"thread": True}, "1 more threads run here than importing numpy leaves"),
        ({"dp_size": 2}, "data-parallel"),
        ({"numa_node": [0]}, "numactl"),
        ({"enable_memory_saver": True}, "memory saver"),
    ],
)
def test_if_a_fork_is_not_possible_the_scheduler_is_spawned_with_a_message(
    options: dict[str, object], reason: str
) -> None:
    """Another thread may hold a lock that the child needs: with libgomp's pool, a child hangs in its first parallel region."""
    with started(**options) as (process, told):
        assert not told["forked"]
        assert told["arguments"] == ["ports", "place"]
        _, errors = process.communicate("end\n", timeout=30)
        assert errors.startswith("torpor_sglang: the scheduler is not forked: ")
        assert reason in errors


def test_a_version_without_the_patched_method_is_not_changed() -> None:
    """0.5.6.post2 has no such method."""
    engine = types.ModuleType("engine")
    engine.Engine = type("Engine", (), {})  # type: ignore[attr-defined]
    fork_schedulers(engine, frozenset())
    assert not [name for name in vars(engine.Engine) if not name.startswith("__")]
