"""`torpor.engine.child_process`: a command's output and deadline; nothing of it runs on afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from contextlib import suppress

import psutil
import pytest

from torpor.engine.child_process import run_child

MARK = "TORPOR_TEST_MARK"
STRAY = "import os, time; os.fork() or (os.setsid(), time.sleep(60)); print('said', flush=True)"
"""Ends at once and leaves a process behind, in a session of its own, that holds the pipes open."""


def left(mark: str) -> list[psutil.Process]:
    """The processes that have this mark in their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def test_output_and_exit_code_are_kept() -> None:
    """Both streams are kept as bytes."""
    ran = run_child(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout_s=20)
    assert (ran.stdout, ran.stderr, ran.returncode) == (b"out\n", b"err\n", 3)


def test_a_program_that_is_not_there_is_an_error() -> None:
    """The error is the kernel's own."""
    with pytest.raises(FileNotFoundError):
        run_child(["/no/such/program"], timeout_s=20)


@pytest.mark.fault("a program leaves a process behind that holds its output open", area="commands", outcome="held")
def test_a_process_left_behind_neither_outlives_the_call_nor_its_deadline() -> None:
    """`subprocess.run` would wait for the process that holds the pipe, and not end it."""
    mark = uuid.uuid4().hex
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        run_child([sys.executable, "-c", STRAY], timeout_s=0.5, env={**os.environ, MARK: mark})
    assert time.monotonic() - began < 10
    assert left(mark) == []


def test_a_process_left_behind_in_silence_is_ended_with_the_call() -> None:
    """The program itself succeeded."""
    mark = uuid.uuid4().hex
    silent = f"exec 2>/dev/null >/dev/null; {sys.executable} -c 'import time; time.sleep(60)' & exit 0"
    assert run_child(["sh", "-c", silent], timeout_s=20, env={**os.environ, MARK: mark}).returncode == 0
    assert left(mark) == []


@pytest.mark.slow
def test_many_calls_leave_no_descriptor_no_thread_and_no_zombie() -> None:
    """So do calls that succeed and calls that fail."""
    run_child(["true"], timeout_s=20)
    this = psutil.Process()
    before = (this.num_fds(), threading.active_count(), len(this.children()))
    for _ in range(20):
        run_child(["true"], timeout_s=20)
    for _ in range(4):
        with pytest.raises(subprocess.TimeoutExpired):
            run_child(["sleep", "60"], timeout_s=0.05)
    assert (this.num_fds(), threading.active_count(), len(this.children())) == before


@pytest.mark.slow
@pytest.mark.fault("a program that is asked prints without end, or gigabytes", area="commands", outcome="held")
def test_a_program_that_prints_without_end_takes_neither_memory_nor_time() -> None:
    """The first 64 MiB are kept. A program that ends succeeds; one that does not is ended at its deadline."""
    ran = run_child(["sh", "-c", "head -c 300000000 /dev/zero; echo last >&2; exit 3"], timeout_s=60)
    assert (len(ran.stdout), ran.stderr, ran.returncode) == (64 << 20, b"last\n", 3)
    before = psutil.Process().memory_info().rss
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        run_child(["sh", "-c", "exec yes >&2"], timeout_s=1.0)
    assert time.monotonic() - began < 10
    assert psutil.Process().memory_info().rss - before < 200 << 20


def test_a_program_that_closes_its_output_and_goes_on_is_ended_at_the_deadline() -> None:
    """The program has not ended when both streams are closed."""
    with pytest.raises(subprocess.TimeoutExpired):
        run_child(["sh", "-c", "exec >/dev/null 2>&1; exec sleep 60"], timeout_s=0.2)
