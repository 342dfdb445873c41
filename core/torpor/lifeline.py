"""What ends an engine, a build step or a check whose framework is gone without a word (SIGKILL, a crash, the OOM killer).

A watcher process per tree holds the read end of a pipe whose other end only the framework's process has. When that
breaks, the watcher kills the whole tree. Why not a parent-death signal (prctl(2)): it comes when the *thread*
that started the tree ends, it reaches the direct child alone, and each engine plugin's launcher would have to ask for
it. Why not a thread in the engine: it does not run while the engine hangs in a call that holds the interpreter lock; nor
one in the runner of build steps: whoever kills the framework's process group or closes its terminal hits the runner too.

An engine in a snapshot's sandbox has no watcher: it is no child of the framework, and its first process ends with its
owner (`torpor.snapshots.sandbox`). On Modal the watcher is part of the snapshot, as the framework's process is.

Run as a program (`python -I -S lifeline.py VARIABLE=VALUE SECONDS`), so it imports as little as it can: it stays for the
engine's life.
"""

from __future__ import annotations

import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["Lifeline"]

_PASSED_ON = ("PATH", "LD_LIBRARY_PATH")
_DONE = b"done\n"
_KILL_S = 30.0
_PAUSE_S = 0.05
_QUIET_SCANS = 4
"""Scans in a row without a find: a tree that was being started when the framework ended is in the table by then."""


class Lifeline:
    """The framework's end. A fork of this process lets go of it; a command that it starts never gets it.

    As a context manager it is released at the end of the block, and cut when the block fails.

    Args:
        variable: name of the environment variable by which the watcher knows the tree's processes, so that there is no
            moment at which the tree exists and its watcher could not find it.
        value: its value, of this tree alone.
        gentle_s: seconds that the leader gets after SIGTERM to end its tree in order, before everything is killed.

    Attributes:
        mark: the variable with its value, for the environment of the tree.
    """

    _open: set[Lifeline] = set()  # noqa: RUF012 - of all of them

    def __init__(self, variable: str, value: str, *, gentle_s: float = 0.0) -> None:
        import subprocess  # noqa: PLC0415 - the watcher has no use for it

        self.mark = {variable: value}
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, f"{variable}={value}", f"{gentle_s:g}"],
            env={
                name: os.environ[name] for name in _PASSED_ON if name in os.environ
            },  # a snapshot may hold this process
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        Lifeline._open.add(self)

    @property
    def pid(self) -> int:
        """The watcher's process id."""
        return self._watcher.pid

    def tell(self, leader_pid: int) -> None:
        """Say who leads the tree: some of its processes may lose their environment (setproctitle)."""
        self._say(f"{leader_pid}\n".encode())

    def release(self) -> None:
        """The tree is gone: end the watcher. Harmless to repeat."""
        if self in Lifeline._open:
            self._say(_DONE)
            self.cut()

    def cut(self) -> None:
        """Have the watcher end what is left of the tree, and wait until it has. Harmless to repeat."""
        if self in Lifeline._open:
            Lifeline._open.discard(self)
            self.let_go()
            self._watcher.wait()

    def let_go(self) -> None:
        """Close this end without a word."""
        if self._watcher.stdin is not None:
            self._watcher.stdin.close()

    @classmethod
    def forget_all(cls) -> None:
        """In a fork of the framework: the engines are its parent's."""
        while cls._open:
            cls._open.pop().let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        if kind is None:
            self.release()
        else:
            self.cut()

    def _say(self, line: bytes) -> None:
        if self._watcher.stdin is not None:
            try:
                self._watcher.stdin.write(line)
            except OSError:  # somebody killed the watcher; the tree runs on without
                return


def watch(mark: bytes, gentle_s: float) -> None:
    """Wait for the framework's word or its end; after its end kill whatever belongs to the tree."""
    leader = started = 0
    pending = b""
    while chunk := os.read(0, 4096):
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            if line + b"\n" == _DONE:
                return
            leader = int(line)
            started = _started(leader)
    if gentle_s:
        _ask_leader(leader, started, gentle_s)
    deadline, quiet = time.monotonic() + _KILL_S, 0
    while quiet < _QUIET_SCANS and time.monotonic() < deadline:
        living = _kill_members(mark, leader, started)
        quiet = 0 if living else quiet + 1
        time.sleep(_PAUSE_S)


def _ask_leader(leader: int, started: int, gentle_s: float) -> None:
    """Have the leader end its tree in order, and wait for its own end."""
    deadline = time.monotonic() + gentle_s
    asked = False
    while leader and (seen := _stat(leader)) and time.monotonic() < deadline:
        if seen[4] != started or seen[0] in "ZX":
            return
        if not asked:
            _send(leader, signal.SIGTERM)
            asked = True
        time.sleep(_PAUSE_S)


def _kill_members(mark: bytes, leader: int, started: int) -> int:
    """Send SIGKILL to every process of the tree; how many of them are more than an entry in the table."""
    if leader and _started(leader) not in (0, started):
        leader = 0  # the number is somebody else's by now
    table = {int(name): fields for name in os.listdir("/proc") if name.isdigit() and (fields := _stat(name))}  # noqa: PTH208
    found = {pid for pid, (_, _, session, _, _) in table.items() if leader in (pid, session) and leader}
    found |= {pid for pid in table if mark in _environment(pid)}
    while more := {pid for pid, (_, parent, _, _, _) in table.items() if parent in found} - found:
        found |= more
    found -= {os.getpid()}
    for pid in found:
        _send(pid, signal.SIGKILL)
    return sum(1 for pid in found if table[pid][0] not in "ZX" or table[pid][3] > 1)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _stat(pid: int | str) -> tuple[str, int, int, int, int] | None:
    """State, parent, session, number of threads, start time (proc_pid_stat(5)); None for a process that is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - pathlib is another 7 ms
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[17]), int(fields[19])


def _started(pid: int) -> int:
    fields = _stat(pid)
    return fields[4] if fields else 0


def _environment(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            return file.read().split(b"\0")
    except OSError:
        return []


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # what ends the framework must not end its watcher first
    watch(sys.argv[1].encode(), float(sys.argv[2]))
else:
    os.register_at_fork(after_in_child=Lifeline.forget_all)
