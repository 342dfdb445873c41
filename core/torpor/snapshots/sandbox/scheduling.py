"""Processor affinity and I/O priority of each thread: CRIU does not restore them, so a restore sets them.

Only settings that differ from the sandbox's first process are kept. All other threads inherit that process's settings.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import TYPE_CHECKING

from torpor.snapshots.store.manifest import Scheduled
from torpor.telemetry.events import log

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torpor.snapshots.sandbox.sandbox import Sandbox

__all__ = ["schedule_again", "scheduled"]

_IO_CALLS = {"x86_64": (251, 252), "aarch64": (30, 31)}  # ioprio_set(2), ioprio_get(2)
_ONE_THREAD = 1  # IOPRIO_WHO_PROCESS: despite its name one thread


def scheduled(sandbox: Sandbox) -> tuple[Scheduled, ...]:
    """Every thread of a tree with settings other than its sandbox's first process."""
    usual_cpus, usual_io = os.sched_getaffinity(sandbox.pid), _io_priority(sandbox.pid)
    found = []
    for inside, outside in sorted(sandbox.host_pids().items()):
        if inside == 1:
            continue
        for tid, host_tid in _threads(outside):
            with contextlib.suppress(OSError):  # the thread has ended meanwhile
                cpus, io = os.sched_getaffinity(host_tid), _io_priority(host_tid)
                if cpus != usual_cpus or io != usual_io:
                    own = tuple(sorted(cpus)) if cpus != usual_cpus else ()
                    found.append(Scheduled(inside, tid, own, io if io != usual_io else -1))
    return tuple(found)


def schedule_again(sandbox: Sandbox, wanted: Sequence[Scheduled]) -> None:
    """Set what the threads of a restored tree had. A setting that this machine refuses is logged and left out."""
    if not wanted:
        return
    hosts = sandbox.host_pids()
    threads = {pid: dict(_threads(hosts[pid])) for pid in {one.pid for one in wanted} if pid in hosts}
    refused = []
    for one in wanted:
        host_tid = threads.get(one.pid, {}).get(one.tid)
        if host_tid is None:
            continue
        try:
            if one.cpus:
                os.sched_setaffinity(host_tid, one.cpus)
            if one.io_priority >= 0:
                _set_io_priority(host_tid, one.io_priority)
        except OSError as error:
            refused.append(f"thread {one.tid}: {error.strerror}")
    if refused:
        log("warning", "scheduling_not_restored", threads=len(refused), first=refused[0])


def _threads(pid: int) -> Iterator[tuple[int, int]]:
    """Ids of each thread, inside and outside."""
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{name}/status", "rb") as stream:  # noqa: PTH123
                numbers = stream.read().partition(b"NSpid:")[2].partition(b"\n")[0].split()
                yield int(numbers[-1]), int(name)


def _io_priority(tid: int) -> int:
    calls = _IO_CALLS.get(os.uname().machine)
    return _call(calls[1], _ONE_THREAD, tid) if calls else -1


def _set_io_priority(tid: int, priority: int) -> None:
    if calls := _IO_CALLS.get(os.uname().machine):
        _call(calls[0], _ONE_THREAD, tid, priority)


def _call(number: int, *arguments: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    done = int(libc.syscall(number, *arguments))
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return done
