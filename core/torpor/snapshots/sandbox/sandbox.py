"""One sandbox per replica: an engine's tree in pid, mount, net and ipc namespaces of its own.

    owner (this process)
    └── outer      makes the namespaces, then only waits; in the host's pid namespace
        └── pid 1  reaps, starts commands, passes sockets out; ends with its owner, and everything below ends with it
            ├── 1000  the engine's first process
            └── criu  for a dump or a restore; it runs inside, so that the images hold no namespaces

Each sandbox has its own loopback device, /proc, /dev/shm and scratch folder. So replicas of one snapshot can use the same pids,
ports, lock files and shared-memory names at once. The network namespace holds only `lo`: an engine in it cannot connect to the
outside. `torpor.snapshots.sandbox.start` makes sandboxes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from socket import socket as Socket  # noqa: N812 - `socket` is a method here
from typing import TYPE_CHECKING, NamedTuple, Self, cast

from torpor.errors import ConfigurationError, SnapshotError
from torpor.snapshots.sandbox import pid1
from torpor.snapshots.sandbox.channel import readable
from torpor.snapshots.sandbox.namespaces import Namespaces, command_line
from torpor.snapshots.sandbox.pid1 import FIRST_PID, StepError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torpor.engine.logs import Follower, Sink
    from torpor.snapshots.sandbox.channel import Channel
    from torpor.snapshots.sandbox.pid1 import Message
    from torpor.snapshots.store.manifest import Mode

__all__ = ["ENGINE_LOG", "FIRST_PID", "Clock", "Finished", "Sandbox"]

ENGINE_LOG = Path("log", "engine.log")
"""Where the engine's output goes, below the scratch folder."""

_ANSWER_S = 30.0  # pid 1 answers in a millisecond; a machine that writes gigabytes may stop it for seconds
_TAIL_BYTES = 256 * 1024
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CANNOT_BE_RUN = (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR)


class Clock(NamedTuple):
    """A reading of two of a sandbox's clocks, in seconds (clock_gettime(2))."""

    monotonic_s: float
    boottime_s: float


class Finished(NamedTuple):
    """A command that ran in a sandbox.

    Attributes:
        code: its exit code; negative for a signal, as in `subprocess`.
        output: standard output and standard error, in the order written.
    """

    code: int
    output: str


class Sandbox:
    """A running sandbox; `torpor.snapshots.sandbox.start` makes it. Safe to use from several threads.

    Args:
        channel: to pid 1, which listens.
        outer: the process that made the namespaces.
        mode: how it was made.
        scratch: the private scratch folder.
        private: all private folders, in the order in which pid 1 mounted them.

    Attributes:
        name: for messages.
        mode: how it was made.
        pid: pid 1 of the sandbox, as this process sees it.
        scratch: the private scratch folder, with the same path inside; TMPDIR of the engine is `scratch/tmp`.
        private: all private folders.
        filtered: whether its tree was started under `torpor.snapshots.sandbox.engine_filter`.
        log: path inside of the engine's output; read it with `log_tail`.
    """

    def __init__(
        self,
        channel: Channel,
        outer: subprocess.Popen[bytes],
        *,
        mode: Mode,
        scratch: Path,
        private: Sequence[Path],
    ) -> None:
        self.name, self.mode, self.scratch, self.private = channel.name, mode, scratch, tuple(private)
        self.log = scratch / ENGINE_LOG
        self.filtered = False
        self._channel = channel
        self._outer = outer
        self._lock = threading.Lock()
        self._code: int | None = None
        self._last_words: tuple[str, ...] = ()
        self._closed = False
        self._follower: Follower | None = None
        self.pid = channel.peer_pid()
        _, folders = channel.ask({"op": "folders"}, timeout_s=_ANSWER_S)
        _, (self._events,) = channel.ask({"op": "watch"}, timeout_s=_ANSWER_S)
        self._folders = dict(zip(private, folders, strict=True))
        self._pidfd = os.pidfd_open(self.pid)
        self._namespaces = Namespaces(self.pid)

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | None = None,
        files: Mapping[int, bytes] | None = None,
        filtered: bool = False,
    ) -> None:
        """Start the engine as process `FIRST_PID`, leader of its own session.

        Standard input is /dev/null, output is appended to `log`, and nothing else is inherited: no descriptor of the tree may
        lead out of the sandbox.

        Args:
            argv: the command; the program is looked up in PATH of `env`.
            env: the whole environment, except that TMPDIR is replaced.
            cwd: working folder; `scratch` by default.
            files: by descriptor (3 and up), the content of an unlinked file in the scratch folder, open for reading.
            filtered: start under a seccomp filter (`torpor.snapshots.sandbox.engine_filter`); only a dump as root supports one.

        Raises:
            ConfigurationError: there is no such program, or it may not be run.
            SnapshotError: the sandbox already has a tree, or has ended.
        """
        if filtered:
            argv = self._filtered(argv, path=env.get("PATH", os.defpath))
        request: Message = {
            "op": "spawn",
            "argv": [*map(str, argv)],  # a `StrEnum` is a str that marshal refuses
            "env": {**_plain(env), "TMPDIR": str(self.scratch / "tmp")},
            "cwd": str(cwd or self.scratch),
            "files": dict(files or {}),
        }
        self._ask(request, timeout_s=_ANSWER_S)
        self.filtered = filtered

    def _filtered(self, argv: Sequence[str], *, path: str) -> Sequence[str]:
        """A command line that starts `argv` under the filter, and refuses a program that does not exist."""
        from torpor.snapshots.sandbox import engine_filter  # noqa: PLC0415 - engine_filter: 1.2 ms of a restore

        if not shutil.which(argv[0], path=path):
            raise ConfigurationError(f"Sandbox {self.name!r} could not start {argv[0]}: there is no such program.")
        return engine_filter.command(argv)

    def run(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout_s: float
    ) -> Finished:
        """Run a command inside, beside the tree (CRIU, `ss`, ...), and wait for its end; its umask is 077.

        Args:
            argv: the command.
            env: its whole environment; only PATH by default.
            cwd: working folder; `/` by default.
            timeout_s: seconds after which its process group is killed.

        Raises:
            ConfigurationError: there is no such program.
            TimeoutError: it was killed at the deadline.
            SnapshotError: the sandbox has ended.
        """
        output = os.memfd_create("output")
        try:
            request: Message = {
                "op": "run",
                "argv": [*map(str, argv)],
                "env": _plain(env or {"PATH": _DEFAULT_PATH}),
                "cwd": str(cwd or "/"),
            }
            answer, _ = self._ask(request, descriptors=(output,), timeout_s=timeout_s)
            said = os.pread(output, _TAIL_BYTES, max(0, os.fstat(output).st_size - _TAIL_BYTES))
        finally:
            os.close(output)
        return Finished(code=cast("int", answer["code"]), output=said.decode(errors="replace"))

    def socket(self) -> Socket:
        """A TCP socket (IPv4, not connected, blocking) in the sandbox's network namespace; connect it to 127.0.0.1.

        Pid 1 makes it and passes it out, so this works in both modes and from any thread.

        Raises:
            SnapshotError: the sandbox has ended.
        """
        return self.sockets(1)[0]

    def sockets(self, count: int) -> list[Socket]:
        """Several sockets with one request to pid 1 (0.1 ms): at most 32, and fewer when descriptors run out. See `socket`.

        Raises:
            OSError: not one descriptor is left (EMFILE).
            SnapshotError: the sandbox has ended.
        """
        _, descriptors = self._ask({"op": "sockets", "count": count}, timeout_s=_ANSWER_S)
        if not descriptors:  # the kernel drops those for which no number is free
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return [Socket(fileno=descriptor) for descriptor in descriptors]

    def connect(self, port: int, *, timeout_s: float) -> Socket:
        """Connect to a port on the sandbox's loopback; `timeout_s` stays the connection's time-out.

        Raises:
            OSError: nothing listens, or the time is up.
            SnapshotError: the sandbox has ended.
        """
        connection = self.socket()
        try:
            connection.settimeout(timeout_s)
            connection.connect(("127.0.0.1", port))
        except BaseException:
            connection.close()
            raise
        return connection

    def poll(self) -> int | None:
        """Exit code of the tree's first process; None while it runs, or before there is a tree.

        Negative for a signal; -9 also when the whole sandbox was ended. The same for spawned and restored trees.
        """
        return self.wait(0.0)

    def wait(self, timeout_s: float) -> int | None:
        """Wait at most `timeout_s` seconds for the end of the tree's first process; its exit code as of `poll`."""
        if self._code is not None or not readable(self._events, timeout_s):
            return self._code
        with self._lock:
            if self._code is None:
                told = os.read(self._events, pid1.CODE_BYTES)
                self._code = int.from_bytes(told, "little", signed=True) if told else -signal.SIGKILL
        return self._code

    def fileno(self) -> int:
        """A descriptor for select(2) and event loops: readable once the tree's first process or the sandbox ends."""
        return self._events

    @property
    def alive(self) -> bool:
        """Whether the sandbox runs; its tree may have ended (see `poll`)."""
        return not self._closed and not readable(self._pidfd, 0.0)

    def signal_tree(self, number: int) -> None:
        """Send a signal to every process inside except pid 1."""
        self._ask({"op": "signal", "number": int(number)}, timeout_s=_ANSWER_S)

    def host_pids(self) -> dict[int, int]:
        """Pid inside to pid outside, of every process inside, pid 1 included."""
        return self._namespaces.host_pids()

    def log_tail(self, lines: int = 200) -> tuple[str, ...]:
        """The engine's last output lines, oldest first; works after `kill`, too."""
        with self._lock:
            if not self._closed:
                self._last_words = _tail(self._folders[self.scratch], ENGINE_LOG)
            return self._last_words[-lines:]

    def follow_log(self, log: Sink) -> None:
        """Copy the tree's output into a log outside until `kill`, which closes the log."""
        from torpor.engine.logs import Follower  # noqa: PLC0415 - logs: 0.7 ms before CRIU begins

        if self._follower is not None:
            self._follower.finish()
        self._follower = Follower(self._folders[self.scratch], ENGINE_LOG, log)

    def clock(self) -> Clock:
        """Read the sandbox's clocks."""
        answer, _ = self._ask({"op": "clock"}, timeout_s=_ANSWER_S)
        monotonic_s, boottime_s = cast("tuple[float, float]", answer["clock"])
        return Clock(monotonic_s=monotonic_s, boottime_s=boottime_s)

    def pack_side_files(self, archive: Path) -> int:
        """Pack the content of the private folders into a tar archive (0600); its size in bytes.

        CRIU saves open files as paths only, so their content goes beside its images. Sockets are left out: CRIU binds them
        again. The engine's log is packed empty: each replica begins a new one.

        Raises:
            SnapshotError: it cannot be written (disk full, ...); no partial archive stays.
        """
        from torpor.snapshots.sandbox import side_files  # noqa: PLC0415 - tarfile: 1.2 ms before a sandbox starts

        return side_files.pack(self._folders, archive, emptied=self.log)

    def outside(self, folder: Path) -> Path:
        """The path by which this process reaches a private folder; valid until `kill`."""
        return Path(f"/proc/self/fd/{self._folders[folder]}")

    def side_file_bytes(self) -> int:
        """Size of everything in the private folders, in bytes."""
        return sum(os.fstatvfs(folder).f_frsize * _used_blocks(folder) for folder in self._folders.values())

    def unpack_side_files(self, archive: Path) -> None:
        """Unpack an archive of `pack_side_files` into the private folders, before a restore.

        Raises:
            SnapshotError: the archive is missing or damaged, or holds a path outside of the private folders.
        """
        from torpor.snapshots.sandbox import side_files  # noqa: PLC0415 - tarfile: 1.2 ms; `Replicas` imports it while pid 1 starts

        side_files.unpack(self._folders, archive)

    def end(self) -> None:
        """Have the kernel end everything inside, without waiting; call `kill` to wait and release everything.

        For ending a sandbox that another thread works with: that thread gets an error and can clean up.
        """
        with self._lock, contextlib.suppress(ProcessLookupError):
            if not self._closed:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def kill(self, timeout_s: float = 10.0) -> None:
        """End the sandbox, and make sure that no process is left in its namespaces. Harmless to repeat.

        Raises:
            SnapshotError: something is left after `timeout_s` seconds; each process is named.
        """
        deadline = time.monotonic() + timeout_s
        if self._closed:
            return
        self.log_tail()
        self.end()
        ended = readable(self._pidfd, timeout_s)  # pid 1 ends after every other process in its pid namespace
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._outer.wait(max(0.1, deadline - time.monotonic()))
        left = self._namespaces.members()
        while left and time.monotonic() < deadline:
            time.sleep(0.005)
            left = self._namespaces.members()
        if left or not ended:
            named = ", ".join(f"{pid} ({command_line(pid)})" for pid in left or [self.pid])
            raise SnapshotError(f"Sandbox {self.name!r} was killed, but after {timeout_s:g} s these are left: {named}.")
        self._release()

    def _release(self) -> None:
        """Close every descriptor of a sandbox that has ended; keep its exit code and last lines."""
        self.log_tail()
        self.poll()
        if self._follower is not None:
            self._follower.finish()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._code is None:
                self._code = -signal.SIGKILL
            for descriptor in (self._events, self._pidfd, *self._folders.values()):
                os.close(descriptor)
            self._namespaces.close()
            self._channel.close()

    def _ask(self, request: Message, *, descriptors: Sequence[int] = (), timeout_s: float) -> tuple[Message, list[int]]:
        if self._closed:
            raise SnapshotError(f"Sandbox {self.name!r} has ended.")
        try:
            return self._channel.ask(request, descriptors=descriptors, timeout_s=timeout_s)
        except StepError as error:
            text = f"Sandbox {self.name!r} could not {error.step}: {os.strerror(error.number) if error.number else 'refused'}."
            if error.number in _CANNOT_BE_RUN:
                raise ConfigurationError(text) from error
            raise SnapshotError(text) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def _plain(env: Mapping[str, str]) -> dict[str, str]:
    return {str(name): str(value) for name, value in env.items()}


def _used_blocks(folder: int) -> int:
    facts = os.fstatvfs(folder)
    return facts.f_blocks - facts.f_bfree


def _tail(folder_fd: int, file: Path) -> tuple[str, ...]:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder_fd)
    except OSError:
        return ()
    try:
        size = os.fstat(descriptor).st_size
        text = os.pread(descriptor, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode(errors="replace")
    finally:
        os.close(descriptor)
    return tuple(text.splitlines())
