"""The patch `forked-scheduler`: what a fork of the server is given, and when there is none (with SGLang: test_real_server.py)."""

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
    """Run the program; yields it, and what its scheduler told."""
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


def test_a_fork_has_its_parents_modules_and_signals_of_its_own() -> None:
    """It imports nothing again; the parent's handlers, which end the parent's tree, are not for it."""
    with started() as (process, told):
        assert told["forked"]
        assert told["handlers"] == ["SIG_DFL", "SIG_DFL"]
        assert told["arguments"] == ["ports", "place"]
        assert told["pid"] != process.pid


def test_what_a_fork_or_its_parent_starts_later_is_spawned_as_ever() -> None:
    """The start method is another one for this moment only."""
    with started() as (process, told):
        assert told["method"] == "spawn"
        _, errors = process.communicate("end\n", timeout=30)
        assert errors == "afterwards: spawn\n"
        assert process.returncode == 0


def test_a_fork_ends_with_its_parent() -> None:
    """However that ends: SGLang itself asks for it a moment later."""
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
def test_where_a_fork_would_not_do_the_scheduler_is_spawned_and_that_is_said(
    options: dict[str, object], reason: str
) -> None:
    """A thread more may hold what the child waits for: libgomp's pool hangs a child's first parallel region."""
    with started(**options) as (process, told):
        assert not told["forked"]
        assert told["arguments"] == ["ports", "place"]
        _, errors = process.communicate("end\n", timeout=30)
        assert errors.startswith("torpor_sglang: the scheduler is not forked: ")
        assert reason in errors


def test_a_version_that_starts_its_scheduler_elsewhere_is_left_alone() -> None:
    """0.5.6.post2 has no such method."""
    engine = types.ModuleType("engine")
    engine.Engine = type("Engine", (), {})  # type: ignore[attr-defined]
    fork_schedulers(engine, frozenset())
    assert not [name for name in vars(engine.Engine) if not name.startswith("__")]
