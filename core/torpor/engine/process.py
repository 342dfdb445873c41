"""The engine's process tree: starts it in a session of its own, always reads its output, ends it as a whole."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from typing import IO, TYPE_CHECKING

import psutil

from torpor._override import override
from torpor.engine.environment import REPLICA_ID_VARIABLE, inherited_environment
from torpor.engine.handle import Engine
from torpor.engine.launching import note_started
from torpor.engine.lifeline import Lifeline
from torpor.engine.logs import LOG_VARIABLE, new_log
from torpor.errors import ConfigurationError
from torpor.guard import BOOT_FD_VARIABLE, GuardRules, boot_document_json
from torpor.network.proxies import past_proxies

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torpor.engine.logs import Sink

__all__ = ["LOG_VARIABLE", "EngineProcess", "session_members"]

_TAIL_LINES = 200
_TAIL_LINE_BYTES = 2000
_READ_BYTES = 64 * 1024
_KILL_S = 30.0
"""Seconds that killed processes get to end: releasing a GPU's memory takes time."""


class EngineProcess(Engine):
    """An engine that runs as a child of this process.

    It has two daemon threads. One reads the output and keeps the last lines, within a memory limit. The other waits for the
    leader's end and then kills the rest of the session at once: a request to a left-over worker fails, instead of waiting for
    its time-out. However this process ends, the engine ends too (`torpor.engine.lifeline`). The thread that started the engine
    may end earlier.
    """

    def __init__(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path | None, guard: GuardRules | None
    ) -> None:
        self.replica_id = secrets.token_hex(8)
        self.guard_key = secrets.token_urlsafe(32) if guard else None
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._ended = threading.Event()
        full_env = {**inherited_environment(), **env, REPLICA_ID_VARIABLE: self.replica_id}
        full_env |= past_proxies(full_env)  # an engine may send itself HTTP requests to see whether it is ready
        self._lifeline = Lifeline(REPLICA_ID_VARIABLE, self.replica_id)
        with contextlib.ExitStack() as unstarted:
            unstarted.callback(self._lifeline.release)
            sink = new_log(full_env.get(LOG_VARIABLE, ""))
            if sink is not None:
                unstarted.callback(sink.close)
                self.log_path = sink.path
            boot_fd = _boot_pipe(guard, self.guard_key, self.replica_id) if guard and self.guard_key else None
            if boot_fd is not None:
                full_env[BOOT_FD_VARIABLE] = str(boot_fd)
            self._process = _start(argv, full_env, cwd, boot_fd)
            unstarted.pop_all()
        self._lifeline.tell(self._process.pid)
        self._members: dict[int, float] = {}
        self._members_lock = threading.Lock()
        self._tree_gone = False
        note_started(self)
        self._drainer = threading.Thread(target=self._drain, args=(self._process.stdout, sink), daemon=True)
        self._drainer.start()
        threading.Thread(target=self._await_end, daemon=True).start()

    @property
    @override
    def pid(self) -> int:
        return self._process.pid

    @override
    def poll(self) -> int | None:
        return self._process.returncode if self._ended.is_set() else None

    @override
    def wait(self, timeout_s: float) -> int | None:
        self._ended.wait(timeout_s)
        return self.poll()

    @override
    def log_tail(self) -> tuple[str, ...]:
        if self._ended.is_set():
            self._drainer.join(0.2)  # the last output of a process that just ended is still in the pipe
        return tuple(self._tail)

    @override
    def terminate(self, grace_s: float = 10.0) -> int:
        deadline = time.monotonic() + grace_s
        if not self._tree_gone:
            self._remember_members()
            self._signal_members(signal.SIGTERM)
            while self._living() and time.monotonic() < deadline:
                time.sleep(0.01)
            self._kill_rest()
        self._ended.wait(_KILL_S)
        return self._process.returncode if self._process.returncode is not None else -signal.SIGKILL

    @override
    def keep_log(self, folder: Path, replica: str) -> None:
        """Nothing to do: if its output is kept, it is kept from the start."""

    @override
    def captured_pids(self) -> tuple[int, ...]:
        """The tree and this process: a platform that captures an engine captures its parent too."""
        tree = session_members(self.pid) if self.pid else []
        return (os.getpid(), *(process.pid for process in tree))

    @override
    def open_socket(self, port: int, timeout_s: float) -> socket.socket:
        return socket.create_connection((self.host, port), timeout_s)

    def _drain(self, stream: IO[bytes] | None, sink: Sink | None) -> None:
        """Read until every process has closed the pipe. Keep the last lines, and cut long ones."""
        if stream is None:
            return
        pending = b""
        while chunk := os.read(stream.fileno(), _READ_BYTES):
            if sink is not None:
                sink.write(chunk)
            # a progress bar ends its lines with a carriage return
            *lines, pending = (pending + chunk).replace(b"\r", b"\n").split(b"\n")
            self._tail.extend(line[:_TAIL_LINE_BYTES].decode(errors="replace") for line in lines[-_TAIL_LINES:] if line)
            pending = pending[:_TAIL_LINE_BYTES]
        if pending:
            self._tail.append(pending.decode(errors="replace"))
        stream.close()
        if sink is not None:
            sink.close()

    def _await_end(self) -> None:
        self._process.wait()
        self._ended.set()
        self._kill_rest()
        self._lifeline.sweep()  # ends processes that left the session before their parent ended

    def _remember_members(self) -> None:
        """Note the tree's processes with their start times: another process may get the same pid later."""
        for process in session_members(self._process.pid):
            with contextlib.suppress(psutil.NoSuchProcess), self._members_lock:
                self._members.setdefault(process.pid, process.create_time())

    def _living(self) -> list[psutil.Process]:
        alive = []
        with self._members_lock:
            members = list(self._members.items())
        for pid, created in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.create_time() == created and not _is_dead(process):
                    alive.append(process)
        return alive

    def _signal_members(self, number: signal.Signals) -> None:
        for process in self._living():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _kill_rest(self) -> None:
        """Kill until no process is left: a process may fork between the listing and the signal."""
        deadline = time.monotonic() + _KILL_S
        while not self._tree_gone and time.monotonic() < deadline:
            self._remember_members()
            if not self._living():
                self._tree_gone = True  # from now on other processes may get these pids
                return
            self._signal_members(signal.SIGKILL)
            time.sleep(0.005)


def session_members(leader_pid: int) -> list[psutil.Process]:
    """Every process of the session that `leader_pid` leads, and the leader's descendants that left the session.

    A session outlives its leader, so orphans are found as well (setsid(2)). SGLang has a scheduler, a detokenizer and a
    resource tracker beside its HTTP server.
    """
    members: dict[int, psutil.Process] = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        leader = psutil.Process(leader_pid)
        members = {process.pid: process for process in [leader, *leader.children(recursive=True)]}
    for pid in psutil.pids():
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            if pid not in members and os.getsid(pid) == leader_pid:
                members[pid] = psutil.Process(pid)
    return list(members.values())


def _is_dead(process: psutil.Process) -> bool:
    """Whether a process has fully ended: it is a zombie, and its other threads are gone.

    The first thread of a killed process becomes a zombie while other threads may still hold its memory, its sockets and the
    GPU. With SGLang on an H100 they still held 68 GB of GPU memory.
    """
    return process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1


def _start(
    argv: Sequence[str], env: Mapping[str, str], cwd: Path | None, boot_fd: int | None
) -> subprocess.Popen[bytes]:
    """Start the leader, and close the boot pipe's read end in this process."""
    try:
        return subprocess.Popen(
            list(argv),
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=() if boot_fd is None else (boot_fd,),
        )
    except OSError as error:
        raise ConfigurationError(
            f"The engine's program {argv[0]!r} cannot be started: {error.strerror}. "
            "Check the engine plugin's `python` option, or install the engine (locally: scripts/setup-local)."
        ) from error
    finally:
        if boot_fd is not None:
            os.close(boot_fd)


def _boot_pipe(rules: GuardRules, key: str, replica_id: str) -> int:
    """Write the guard's boot document into a new pipe; return the read end, which the child inherits.

    The document is written before the child exists, so it must fit into the pipe's buffer (64 KiB on Linux, pipe(7)).
    """
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as pipe:
        pipe.write(boot_document_json(key=key, replica_id=replica_id, rules=rules).encode())
    return read_end
