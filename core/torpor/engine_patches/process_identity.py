"""Keeps psutil's process handles valid over a restore: the pids stay the same, the start times change.

psutil distinguishes two processes with one pid by their start times. A restored process has its pid and a new start time, so
every handle from before the capture says "PID has been reused". A watchdog then fails to end its server, and a server that
hangs stays. With this patch the first use of psutil after a restore notices the restore by the start time of its own process.
Each older handle takes the new start time when it is next used.

A handle is renewed only if its process was restored. A process that started after the restore was noticed is new: its pid was
really reused.

It needs no thread and no timer. Every process of an engine that uses psutil needs `keep_process_identities`. Torpor's launchers
call it in each process that they start, and the guard in its own; an engine of your own calls it in its other processes.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from typing import TYPE_CHECKING

from torpor.engine_patches.after_import import after_import
from torpor.engine_patches.patches import Patch

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

__all__ = ["keep_process_identities", "process_identity", "restored"]

_START_FIELD = 19  # after the command's closing bracket (proc_pid_stat(5): starttime, the 22nd)
_PATCHED = "_torpor_keeps_identities"
_STAMP = "_torpor_restores"
_METHODS = ("is_running", "create_time", "_raise_if_pid_reused", "cpu_percent", "wait")
_RENEWED = ("_ident", "_proc", "_create_time", "_pid_reused", "_gone", "_exitcode")
_FORGOTTEN = ("_last_sys_cpu_times", "_last_proc_cpu_times")


class _Life:
    """The identity of this process, and the restores that it has noticed.

    Attributes:
        restores: number of restores noticed.
        noticed: when the last one was noticed, in ticks since boot; a process that started later was not restored.
    """

    def __init__(self) -> None:
        self.restores = 0
        self.noticed = 0
        self.begin()

    def begin(self) -> None:
        """Note the pid and start time of this process; called again in a fork."""
        self._lock = threading.Lock()
        self._pid, self._start = os.getpid(), _start_of(os.getpid())

    def look(self) -> int:
        """Notice a restore; return the number of restores so far."""
        start = _start_of(self._pid)
        if start != self._start:
            with self._lock:
                if self._pid != os.getpid():  # a fork that Python does not know of
                    self.begin()
                elif start and start != self._start:
                    self.noticed = _now()
                    self._start = start
                    self.restores += 1
                    _forget_boot_time()
        return self.restores


def keep_process_identities() -> None:
    """Keep psutil's handles in this process valid over a restore; psutil need not be imported yet. Harmless to repeat."""
    global _life  # noqa: PLW0603 - one per process
    if sys.platform != "linux" or _life is not None:
        return
    life = _life = _Life()
    os.register_at_fork(before=life.look, after_in_child=life.begin)
    after_import("psutil", lambda module: _patch(module, life))


def restored() -> int:
    """How often this process was restored; 0 without `keep_process_identities`."""
    return 0 if _life is None else _life.look()


_life: _Life | None = None


def _patch(psutil: ModuleType, life: _Life) -> None:
    kind = psutil.Process
    if getattr(kind, _PATCHED, False):
        return
    for name in _METHODS:
        if method := vars(kind).get(name):
            setattr(kind, name, _renewing(method, psutil, life))
    equal = kind.__eq__

    def same(handle: object, other: object) -> object:
        if isinstance(other, kind):
            _renew(handle, psutil, life)
            _renew(other, psutil, life)
        return equal(handle, other)

    kind.__eq__ = same
    # By the pid alone: a handle stays where it is in a set or dict when its start time changes.
    kind.__hash__ = lambda handle: hash(handle.pid)
    setattr(kind, _PATCHED, True)


def _renewing(method: Callable[..., object], psutil: ModuleType, life: _Life) -> Callable[..., object]:
    @functools.wraps(method)
    def renewed(handle: object, *arguments: object, **named: object) -> object:
        _renew(handle, psutil, life)
        return method(handle, *arguments, **named)

    return renewed


def _renew(handle: object, psutil: ModuleType, life: _Life) -> None:
    """Give a handle that was made before the last restore the start time that its process has now."""
    facts = vars(handle)
    restores = life.look()
    if facts.get(_STAMP, 0) == restores or facts.get("_gone") or facts.get("_pid_reused"):
        return
    facts[_STAMP] = restores
    pid = facts.get("_pid", 0)
    if not 0 < _start_of(pid) <= life.noticed:
        return
    try:
        fresh = vars(psutil.Process(pid))
    except psutil.Error:
        return
    facts.update({name: fresh[name] for name in _RENEWED if name in fresh and name in facts})
    facts.update({name: None for name in _FORGOTTEN if name in facts})


def _forget_boot_time() -> None:
    """Let older versions of psutil read the machine's boot time again."""
    linux = sys.modules.get("psutil._pslinux")
    if linux is not None and hasattr(linux, "BOOT_TIME"):
        linux.BOOT_TIME = None  # type: ignore[attr-defined]


def _start_of(pid: int) -> int:
    """When a process started, in ticks since boot; 0 if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:  # noqa: PTH123 - called often
            return int(stream.read().rpartition(b")")[2].split()[_START_FIELD])
    except (OSError, IndexError, ValueError):
        return 0


def _now() -> int:
    """Ticks since boot."""
    with open("/proc/uptime", "rb") as stream:  # noqa: PTH123
        return int(float(stream.read().split()[0]) * os.sysconf("SC_CLK_TCK"))


def process_identity(versions: tuple[str, ...]) -> Patch:
    """Return the patch; `versions` are those of the engine with which it was tested."""
    return Patch(
        name="process-identity",
        reason=(
            "a restored process has the same pid and another start time, so psutil takes every older handle for a reused "
            "pid, and the engine's watchdog fails instead of ending a server that hangs"
        ),
        versions=versions,
        applies=lambda: sys.platform == "linux",
        apply=keep_process_identities,
    )
