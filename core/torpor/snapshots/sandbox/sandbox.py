"""One sandbox per replica: an engine's tree in pid, mount, net and ipc namespaces of its own.

    owner (this process)
    └── outer      makes the namespaces, then only waits; in the host's pid namespace
        └── pid 1  reaps, starts commands, hands out sockets; ends with its owner, and everything below ends with it
            ├── 1000  the engine's leader
            └── criu  for a dump or a restore: inside, so that the images hold no namespace data

Each sandbox has its own loopback device, /proc, /dev/shm and scratch folder. The same pids, ports, lock files and
shared-memory names can therefore exist in any number of sandboxes at once, which is what replicas of one image need.
The network namespace holds `lo` alone: an engine in it cannot open a connection to the outside.
"""

from __future__ import annotations

import contextlib
import errno
import marshal
import math
import os
import select
import signal
import subprocess
import threading
import time
from pathlib import Path
from socket import socket as Socket  # noqa: N812 - `socket` is a method here
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, TypeVar, cast

from torpor.errors import ConfigurationError, SnapshotError
from torpor.snapshots.sandbox import pid1
from torpor.snapshots.sandbox.channel import Channel
from torpor.snapshots.sandbox.first_process import FirstProcess
from torpor.snapshots.sandbox.pid1 import FIRST_PID, StepError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import IO

    from torpor.engine.logs import Follower, Sink
    from torpor.snapshots.sandbox.pid1 import Config, Message

    Pipe = IO[bytes]

__all__ = ["FIRST_PID", "BegunSandbox", "Clock", "Finished", "Mode", "Sandbox"]

Mode = Literal["rootless", "root"]
"""`rootless`: in a user namespace, no privilege needed. `root`: without one; needs root (CAP_SYS_ADMIN)."""

_S = TypeVar("_S", bound="Sandbox")

DEV_SHM = Path("/dev/shm")  # noqa: S108 - private to every sandbox

_NAMESPACES = ("pid", "mnt", "net", "ipc")
_ANSWER_S = 10.0
_TAIL_BYTES = 256 * 1024
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CANNOT_BE_RUN = (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR)


class Clock(NamedTuple):
    """Two readings of a sandbox's clocks, in seconds (clock_gettime(2))."""

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
    """A running sandbox. Safe to use from several threads. Use `create` or `attach`, never the constructor.

    Attributes:
        name: for messages.
        mode: how it was made.
        pid: pid 1 of the sandbox, as this process sees it.
        scratch: the private folder, the same path inside; TMPDIR of the engine is `scratch/tmp`.
        filtered: whether its tree was started under `torpor.snapshots.sandbox.engine_filter`.
        log: the engine's output, a path inside: `scratch/log/engine.log`. Read it with `log_tail`.
    """

    def __init__(self, channel: Channel, outer: subprocess.Popen[bytes] | None) -> None:
        self._channel = channel
        self._outer = outer
        self._lock = threading.Lock()
        self._code: int | None = None
        self._last_words: tuple[str, ...] = ()
        self._closed = False
        self.filtered = False
        self._follower: Follower | None = None
        self.pid, _ = channel.peer()
        facts, folders = channel.ask({"op": "facts"}, timeout_s=_ANSWER_S)
        _, (self._events,) = channel.ask({"op": "watch"}, timeout_s=_ANSWER_S)
        self.name = str(facts["name"])
        self.mode = cast("Mode", facts["mode"])
        self.scratch = Path(str(facts["scratch"]))
        self.log = self.scratch / "log" / "engine.log"
        self._detached = bool(facts["detached"])
        self._folders = dict(zip(map(Path, str(facts["private"]).split("\0")), folders, strict=True))
        self._pidfd = os.pidfd_open(self.pid)
        # Open until the end has been looked at: the kernel gives the number of a namespace that is gone to the next one.
        self._held = [os.open(f"/proc/{self.pid}/ns/{kind}", os.O_RDONLY) for kind in _NAMESPACES]
        self._namespaces = {kind: os.fstat(held).st_ino for kind, held in zip(_NAMESPACES, self._held, strict=True)}

    @classmethod
    def create(
        cls,
        name: str,
        *,
        mode: Mode,
        scratch: Path,
        private: Sequence[Path] = (),
        clock: Clock | None = None,
        control: Path | None = None,
        timeout_s: float = 10.0,
    ) -> Self:
        """Make a sandbox; nothing but pid 1 runs in it yet.

        It ends with this process, however that ends, SIGKILL included; with `control` it does not (a detached replica).

        Args:
            name: for messages.
            mode: with or without a user namespace; see `torpor.snapshots.criu.probe.available`.
            scratch: mount point of the private scratch folder; made when missing, stays empty on the host. A restored
                tree has open files in it, so it must be the same path at the dump and at every restore.
            private: more folders that every replica sees empty and of its own; /dev/shm always is.
            clock: where its clocks begin (a time namespace); the host's clocks by default. Given the reading at the
                dump, a restored tree sees no jump. As root CRIU sees to that by itself, rootless it does not (4.2.1).
                Kernels without time namespaces (before 5.6) pass over it.
            control: a socket path for `attach`; the sandbox then outlives this process. The folder must be private (0700).
            timeout_s: seconds for all of it.

        Raises:
            SnapshotError: the kernel refused, or it took too long; the message names the step.
        """
        begun = BegunSandbox(name, mode=mode, scratch=scratch, private=private, clock=clock, control=control)
        return begun.made(cls, timeout_s=timeout_s)

    @classmethod
    def attach(cls, control: Path) -> Self:
        """Take over a detached sandbox that another process made.

        Raises:
            SnapshotError: nobody answers there.
        """
        try:
            channel = Channel(control.name, control, keep_path=True)
        except OSError as error:
            raise SnapshotError(f"No sandbox can be reached at {control}: {error.strerror}.") from error
        try:
            return cls(channel, None)
        except BaseException:
            channel.close(ended=False)
            raise

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | None = None,
        files: Mapping[int, bytes] | None = None,
        filtered: bool = False,
    ) -> None:
        """Start the engine as process `FIRST_PID`, leader of a session of its own.

        Standard input is /dev/null, output is appended to `log`; nothing else is inherited, so that no descriptor of
        the tree leads out of the sandbox.

        Args:
            argv: the command; the program is looked up in PATH of `env`.
            env: the whole environment; TMPDIR is set over it.
            cwd: working folder; `scratch` by default.
            files: content of unlinked files on the private scratch folder, open for reading at these descriptors (3 and up).
            filtered: under a seccomp filter, which only a dump as root can take along
                (see `torpor.snapshots.sandbox.engine_filter`).

        Raises:
            ConfigurationError: there is no such program, or it may not be run.
            SnapshotError: the sandbox has a tree already, or is gone.
        """
        import shutil  # noqa: PLC0415 - a restore has no use for these

        from torpor.snapshots.sandbox import engine_filter  # noqa: PLC0415

        if filtered and not shutil.which(argv[0], path=env.get("PATH", os.defpath)):
            raise ConfigurationError(f"Sandbox {self.name!r} could not start {argv[0]}: there is no such program.")
        request: Message = {
            "op": "spawn",
            "argv": engine_filter.command(argv) if filtered else list(argv),
            "env": {**env, "TMPDIR": str(self.scratch / "tmp")},
            "cwd": str(cwd or self.scratch),
            "files": dict(files or {}),
        }
        self._ask(request, timeout_s=_ANSWER_S)
        self.filtered = filtered

    def run(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout_s: float
    ) -> Finished:
        """Run a command inside beside the tree (CRIU, `ss`, ...) and wait for its end; its umask is 077.

        Args:
            argv: the command.
            env: its whole environment; PATH alone by default.
            cwd: working folder; `/` by default.
            timeout_s: seconds after which its process group is killed.

        Raises:
            ConfigurationError: there is no such program.
            TimeoutError: it was killed at the deadline.
            SnapshotError: the sandbox is gone.
        """
        output = os.memfd_create("output")
        try:
            request: Message = {
                "op": "run",
                "argv": list(argv),
                "env": dict(env or {"PATH": _DEFAULT_PATH}),
                "cwd": str(cwd or "/"),
            }
            answer, _ = self._ask(request, descriptors=(output,), timeout_s=timeout_s)
            said = os.pread(output, _TAIL_BYTES, max(0, os.fstat(output).st_size - _TAIL_BYTES))
        finally:
            os.close(output)
        return Finished(code=cast("int", answer["code"]), output=said.decode(errors="replace"))

    def socket(self) -> Socket:
        """A TCP socket (IPv4, not connected, blocking) that belongs to the sandbox's network namespace.

        Works for root and rootless alike and from any thread: pid 1 makes it and passes it out. Connect it to 127.0.0.1.

        Raises:
            SnapshotError: the sandbox is gone.
        """
        return self.sockets(1)[0]

    def sockets(self, count: int) -> list[Socket]:
        """As `socket`, several for one question to pid 1 (0.1 ms); 32 at most, and fewer where descriptors run out.

        Raises:
            OSError: there is no descriptor left for even one (EMFILE).
            SnapshotError: the sandbox is gone.
        """
        _, descriptors = self._ask({"op": "sockets", "count": count}, timeout_s=_ANSWER_S)
        if not descriptors:  # the kernel leaves out those for which there is no room
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return [Socket(fileno=descriptor) for descriptor in descriptors]

    def connect(self, port: int, *, timeout_s: float) -> Socket:
        """A connection to a port on the sandbox's loopback; it keeps `timeout_s` as its time-out.

        Raises:
            OSError: nobody listens, or not in time.
            SnapshotError: the sandbox is gone.
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
        """Exit code of the tree's leader (negative: the signal; -9 when the whole sandbox ended), or None while it runs.

        Spawned and restored trees alike. None too while there is no tree yet.
        """
        return self.wait(0.0)

    def wait(self, timeout_s: float) -> int | None:
        """Wait at most `timeout_s` seconds for the leader's end; its exit code, or None when it still runs."""
        if self._code is not None or not _readable(self._events, timeout_s):
            return self._code
        with self._lock:
            if self._code is None:
                told = os.read(self._events, pid1.CODE_BYTES)
                self._code = int.from_bytes(told, "little", signed=True) if told else -signal.SIGKILL
        return self._code

    def fileno(self) -> int:
        """A descriptor that becomes readable when the leader or the sandbox ends; for select(2) and event loops only."""
        return self._events

    @property
    def alive(self) -> bool:
        """Whether the sandbox itself still runs (its tree may have ended: see `poll`)."""
        return not self._closed and not _readable(self._pidfd, 0.0)

    def signal_tree(self, number: int) -> None:
        """Send a signal to every process inside but pid 1."""
        self._ask({"op": "signal", "number": int(number)}, timeout_s=_ANSWER_S)

    def host_pids(self) -> dict[int, int]:
        """Pid inside to pid outside, of every process inside, pid 1 included."""
        found = {}
        for pid in _members(self._namespaces, ("pid",)):
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                numbers = status.partition("NSpid:")[2].partition("\n")[0].split()
                found[int(numbers[-1])] = pid
        return found

    def log_tail(self, lines: int = 200) -> tuple[str, ...]:
        """The engine's last output lines, oldest first; also after `kill`."""
        with self._lock:
            if not self._closed:
                self._last_words = _tail(self._folders[self.scratch], self.log.relative_to(self.scratch))
            return self._last_words[-lines:]

    def follow_log(self, log: Sink) -> None:
        """Copy what its tree prints into a log outside, until `kill`; it is closed then.

        Args:
            log: where to.
        """
        from torpor.engine.logs import Follower  # noqa: PLC0415 - while others wait for the kernel

        if self._follower is not None:
            self._follower.finish()
        self._follower = Follower(self._folders[self.scratch], self.log.relative_to(self.scratch), log)

    def clock(self) -> Clock:
        """What the sandbox's clocks show."""
        answer, _ = self._ask({"op": "clock"}, timeout_s=_ANSWER_S)
        monotonic_s, boottime_s = cast("tuple[float, float]", answer["clock"])
        return Clock(monotonic_s=monotonic_s, boottime_s=boottime_s)

    @property
    def private(self) -> tuple[Path, ...]:
        """The folders that each sandbox has for itself."""
        return tuple(self._folders)

    def pack_side_files(self, archive: Path) -> int:
        """Write what lies in the private folders to a tar archive (0600); bytes written.

        CRIU keeps open files by path only, so their content goes beside its images. Sockets are left out: CRIU binds
        them again. The engine's log is packed empty: a replica starts its own.

        Raises:
            SnapshotError: it cannot be written (disk full, ...); no partial archive stays.
        """
        from torpor.snapshots.sandbox import side_files  # noqa: PLC0415 - imported when there is time for it

        return side_files.pack(self._folders, archive, emptied=self.log)

    def outside(self, folder: Path) -> Path:
        """A private folder as this process reaches it; good until `kill` or `close`."""
        return Path(f"/proc/self/fd/{self._folders[folder]}")

    def side_file_bytes(self) -> int:
        """What the private folders hold, in bytes."""
        return sum(os.fstatvfs(folder).f_frsize * _used_blocks(folder) for folder in self._folders.values())

    def unpack_side_files(self, archive: Path) -> None:
        """Lay a packed archive into the private folders of this sandbox, before a restore.

        Raises:
            SnapshotError: the archive is missing or damaged, or holds a path outside of the private folders.
        """
        from torpor.snapshots.sandbox import side_files  # noqa: PLC0415 - imported when there is time for it

        side_files.unpack(self._folders, archive)

    def end(self) -> None:
        """Have the kernel end everything inside, without waiting for it; `kill` makes sure and lets go.

        For a thread that ends a sandbox which another one is at work with: that one gets an error and can clear up.
        """
        with self._lock, contextlib.suppress(ProcessLookupError):
            if not self._closed:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def kill(self, timeout_s: float = 10.0) -> None:
        """End the sandbox with everything inside, and make sure that no process of its namespaces is left. Harmless to repeat.

        Raises:
            SnapshotError: something is left after `timeout_s` seconds; each process is named.
        """
        deadline = time.monotonic() + timeout_s
        if self._closed:
            return
        self.log_tail()
        self.end()
        ended = _readable(self._pidfd, timeout_s)  # the kernel ends pid 1 after everybody else in its pid namespace
        if self._outer:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._outer.wait(max(0.1, deadline - time.monotonic()))
        left = _members(self._namespaces, _NAMESPACES)
        while left and time.monotonic() < deadline:
            time.sleep(0.005)
            left = _members(self._namespaces, _NAMESPACES)
        if left or not ended:
            named = ", ".join(f"{pid} ({_command(pid)})" for pid in left or [self.pid])
            raise SnapshotError(f"Sandbox {self.name!r} was killed, but after {timeout_s:g} s these are left: {named}.")
        self._let_go(ended=True)

    def close(self) -> None:
        """Let go of a detached sandbox, which runs on; any other is ended."""
        if self._detached and self.alive:
            self._let_go(ended=False)
        else:
            self.kill()

    def _let_go(self, *, ended: bool) -> None:
        self.log_tail()
        self.poll()
        if self._follower is not None:
            self._follower.finish()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if ended and self._code is None:
                self._code = -signal.SIGKILL
            for descriptor in (self._events, self._pidfd, *self._held, *self._folders.values()):
                os.close(descriptor)
            self._channel.close(ended=ended)

    def _ask(self, request: Message, *, descriptors: Sequence[int] = (), timeout_s: float) -> tuple[Message, list[int]]:
        if self._closed:
            raise SnapshotError(f"Sandbox {self.name!r} was ended or let go.")
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
        self.close()


class BegunSandbox:
    """A sandbox whose first process was started and gets ready by itself: 30 ms in which a restore has other things to do.

    The arguments are those of `Sandbox.create`, and the process, if it was started before. Either `made` or `end` must be called.

    Attributes:
        name: for messages.
        ended: whether `end` was called.

    Raises:
        SnapshotError: there is no place for it.
    """

    def __init__(
        self,
        name: str,
        *,
        mode: Mode,
        scratch: Path,
        private: Sequence[Path] = (),
        clock: Clock | None = None,
        control: Path | None = None,
        first: FirstProcess | None = None,
    ) -> None:
        self.name = name
        self.ended = False
        self._control = control
        self._lock = threading.Lock()
        self._waited_for = False
        self._sandbox: Sandbox | None = None
        folders = sorted({*private, DEV_SHM, scratch}, key=lambda folder: len(folder.parts))
        self._first = first or FirstProcess(name, detached=control is not None)
        with self._first, contextlib.ExitStack() as stack:
            _make_mount_point(name, scratch)
            self._channel = stack.enter_context(Channel.bound(name, control, self._first.listener))
            config: Config = {
                "rootless": mode == "rootless",
                "detached": control is not None,
                "clock": _clock_offsets(clock) if clock else "",
                "private": [(str(folder), "0700" if folder == scratch else "1777") for folder in folders],
                "folders": [str(scratch / "tmp"), str(scratch / "log")],
                "log": str(scratch / "log" / "engine.log"),
                "listener": self._first.listener.fileno(),
                "owner": self._first.owner,
                "facts": {
                    "name": name,
                    "mode": mode,
                    "scratch": str(scratch),
                    "private": "\0".join(map(str, folders)),
                    "detached": control is not None,
                },
            }
            self._first.tell(config)
            self._outer = self._first.process
            self._undo = contextlib.ExitStack()
            self._undo.callback(self._channel.close, ended=True)
            self._undo.callback(self._first.end)

    def made(self, kind: type[_S], *, timeout_s: float) -> _S:
        """Wait until pid 1 listens.

        Raises:
            SnapshotError: the kernel refused a step, it took too long, or another thread ended it.
        """
        with self._lock:
            if self.ended:
                raise SnapshotError(f"Sandbox {self.name!r} was ended before it was ready.")
            self._waited_for = True
        with cast("Pipe", self._outer.stdout) as stdout:
            report = os.read(stdout.fileno(), 4096) if _readable(stdout.fileno(), timeout_s) else None
        with self._lock:
            if self.ended:
                raise SnapshotError(f"Sandbox {self.name!r} was ended before it was ready.")
            if report != pid1.READY:
                error = self._failure(report, timeout_s)
                self._undo.close()
                raise error
            with self._undo:
                sandbox = kind(self._channel, None if self._control else self._outer)
                self._undo.pop_all()
            self._first.let_go()
            self._sandbox = sandbox
        if self._control:
            self._outer.wait()  # it left its work to a process of nobody's
        return sandbox

    def end(self) -> None:
        """End it, whatever goes on inside, also after `made`: who is at work with it gets an error. Harmless to repeat."""
        with self._lock:
            self.ended = True
            self._undo.close()
            if not self._waited_for:
                cast("Pipe", self._outer.stdout).close()
            if self._sandbox is not None:
                self._sandbox.end()

    def _failure(self, report: bytes | None, timeout_s: float) -> SnapshotError:
        if report is None:
            return SnapshotError(f"Sandbox {self.name!r} was not ready after {timeout_s:g} s and was ended.")
        if report:
            step, number = marshal.loads(report)  # noqa: S302 - pid 1 is our own program
            error = SnapshotError(
                f"Sandbox {self.name!r} cannot be made: the kernel refused to {step}: {os.strerror(number)}."
            )
            error.__cause__ = StepError(step, number)
            return error
        self._outer.wait()
        return SnapshotError(
            f"Sandbox {self.name!r} cannot be made: its first process ended at once. It said: {self._first.words()}"
        )


def _make_mount_point(name: str, scratch: Path) -> None:
    if not scratch.is_absolute():
        raise ConfigurationError(
            f"Sandbox {name!r}: the scratch folder must be an absolute path, not {str(scratch)!r}."
        )
    try:
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SnapshotError(
            f"Sandbox {name!r}: the scratch folder's mount point {scratch} cannot be made: {error.strerror}."
        ) from error


def _clock_offsets(clock: Clock) -> str:
    """The text for timens_offsets (time_namespaces(7)): offsets count from the first time namespace's clocks; or nothing."""
    if not Path("/proc/self/ns/time").exists():
        return ""
    own: dict[str, float] = {"monotonic": 0.0, "boottime": 0.0}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/timens_offsets").read_text().splitlines():
            kind, whole, nanoseconds = line.split()
            own[kind] = int(whole) + int(nanoseconds) / 1e9
    wanted = {
        "monotonic": clock.monotonic_s - time.clock_gettime(time.CLOCK_MONOTONIC),
        "boottime": clock.boottime_s - time.clock_gettime(time.CLOCK_BOOTTIME),
    }
    lines = []
    for kind, offset_s in wanted.items():
        total = offset_s + own[kind]
        seconds = math.floor(total)
        lines.append(f"{kind} {seconds} {int((total - seconds) * 1e9)}\n")
    return "".join(lines)


def _used_blocks(folder: int) -> int:
    facts = os.fstatvfs(folder)
    return facts.f_blocks - facts.f_bfree


def _readable(descriptor: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _members(namespaces: Mapping[str, int], kinds: Sequence[str]) -> list[int]:
    """Every process that is in one of the namespaces, by its pid outside."""
    members = []
    for name in os.listdir("/proc"):  # noqa: PTH208
        with contextlib.suppress(OSError):
            if name.isdigit() and any(
                os.stat(f"/proc/{name}/ns/{kind}").st_ino == namespaces[kind]  # noqa: PTH116 - hundreds of them
                for kind in kinds
            ):
                members.append(int(name))
    return members


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:200]
    except OSError:
        return "gone meanwhile"


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
