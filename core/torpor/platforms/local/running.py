"""Which servers run here: each command that serves has a small file in the folder `run` of the cache root.

    RunFile    written by the command: complete or not at all, readable for its owner only, removed at its end
    servers    read by `torpor status`: files of this user only, of bounded size, checked field by field

The command locks its file while it lives, in any pid namespace. A file without a lock is left over from a killed command: its
reader ignores and removes it. On a disk without locks pid and start time decide. A restore writes such a file, so this module
imports only what a restore imports anyway.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torpor._version import __version__
from torpor.errors import SnapshotError
from torpor.snapshots.store.fields import NEW_ONE
from torpor.snapshots.store.folder import real_folder
from torpor.snapshots.store.paths import cache_root
from torpor.snapshots.store.reading import check_owned, opened_folder, read_json
from torpor.values.plain_text import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torpor.snapshots.store.fields import Fields

__all__ = ["Process", "RunFile", "RunningReplica", "RunningServer", "Unreadable", "servers", "snapshot_users"]

_SCHEMA = 2
_MOST_BYTES = 1 << 20
_BEGIN, _END = "server-", ".json"
_LAST_TIME_S = 1e11
_LAST_PID = 1 << 22
_MOST = (1 << 63) - 1
_STATES = ("starting", "serving", "asleep", "ending", "on disk", "waking", "sleeping", "capturing")


class Process(NamedTuple):
    """A process, told apart from a later one with the same pid by its start.

    Attributes:
        pid: in the pid namespace of the command that serves; 0 if unknown.
        start_ticks: its start, in clock ticks since the machine booted (proc(5)).
    """

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> Process:
        """A process that runs now; pid 0 if there is none."""
        ticks = _start_ticks(pid)
        return cls(pid, ticks) if ticks else cls(0, 0)

    @property
    def alive(self) -> bool:
        """Whether it still runs, as this pid namespace sees it."""
        return self.pid > 0 and _start_ticks(self.pid) == self.start_ticks


class RunningReplica(NamedTuple):
    """One replica of a server.

    Attributes:
        name: of the replica.
        pid: of the engine's first process; 0 if unknown.
        leader: the root of the replica's process tree: the engine's first process, or its sandbox's.
        replica_id: the id of its life.
        boot: the kind of its start: `cold`, `woken` or `restored`.
        reason: why it was started again; empty for its first start.
        restarts: how often it was started again.
        gpus: numbers of its GPUs in the driver's order; empty without a GPU, and where CUDA chose.
        since: Unix time at which it began to serve or sleep, seconds.
        log: file with its output; empty if there is none.
    """

    name: str
    pid: int
    leader: Process
    replica_id: str
    boot: str
    reason: str
    restarts: int
    gpus: tuple[int, ...]
    since: float
    log: str


class RunningServer(NamedTuple):
    """One command that serves.

    Attributes:
        file: its file.
        torpor: version.
        command: `up`, `snapshot restore` or `serve`.
        process: of the command.
        here: whether the command runs in the reader's pid namespace.
        deployment: name.
        model: served name.
        app_file: file that defines the deployment.
        backend: name of the snapshot backend.
        url: where clients reach it.
        snapshot: folder that its replicas are restored from; empty for none.
        state: `starting`, `serving`, `asleep` or `ending`; of a deployment of `serve` also `on disk`, `waking`, `sleeping` or
            `capturing`.
        control_key: of the control paths of `serve`; empty for another command.
        since: Unix time at which the command began, seconds.
        wanted: how many replicas should run.
        restarting: how many replicas are started again now, or wait for that.
        last_event: the latest event of a replica (`ReplicaEvent`); empty for none.
        last_event_at: its Unix time, seconds.
        replicas: that serve or sleep.
    """

    file: Path
    torpor: str
    command: str
    process: Process
    here: bool
    deployment: str
    model: str
    app_file: str
    backend: str
    url: str
    snapshot: str
    state: str
    control_key: str
    since: float
    wanted: int
    restarting: int
    last_event: str
    last_event_at: float
    replicas: tuple[RunningReplica, ...]


class Unreadable(NamedTuple):
    """A file of a running command that cannot be read.

    Attributes:
        file: which one.
        problem: why, as a sentence.
    """

    file: Path
    problem: str


class RunFile:
    """The file of this command.

    A cache that cannot be written only hides the command from `torpor status`.

    Args:
        command: what a user typed, without `torpor`.
    """

    def __init__(self, command: str) -> None:
        self._command = command
        self._began = time.time()
        self._file = _folder() / f"{_BEGIN}{os.getpid()}-{os.urandom(4).hex()}{_END}"
        self._lock_fd = -1
        self._closed = False
        self._writing = threading.Lock()

    def write(self, facts: Mapping[str, object]) -> None:
        """Replace the file's content.

        Args:
            facts: the fields of `RunningServer` that this class does not know; `replicas` as a list of fields. `control_key` may be
                left out.
        """
        content = {
            "schema": _SCHEMA,
            "torpor": __version__,
            "command": self._command,
            **_identity(),
            "since": self._began,
            "control_key": "",
            **facts,
        }
        with self._writing, contextlib.suppress(OSError):
            if not self._closed:
                self._put(json.dumps(content).encode())

    def close(self) -> None:
        """Remove the file. Harmless to repeat."""
        with self._writing, contextlib.suppress(OSError):
            self._closed = True
            if self._lock_fd >= 0:
                try:
                    self._file.unlink(missing_ok=True)
                finally:
                    os.close(self._lock_fd)
                    self._lock_fd = -1

    def _put(self, data: bytes) -> None:
        """Write a new file, and lock it before it gets its name."""
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = self._file.with_name(f".{self._file.name}")
        unfinished.unlink(missing_ok=True)
        file_fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.suppress(OSError):  # on a disk without locks
                fcntl.flock(file_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left = memoryview(data)
            while left:
                left = left[os.write(file_fd, left) :]
            unfinished.rename(self._file)
        except BaseException:
            os.close(file_fd)
            unfinished.unlink(missing_ok=True)
            raise
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
        self._lock_fd = file_fd


def servers() -> tuple[RunningServer | Unreadable, ...]:
    """Every command of this user that serves with this cache root, oldest first. Files of killed commands are removed."""
    found: list[RunningServer | Unreadable] = []
    folder = _folder()
    try:
        folder_fd = opened_folder(folder)
    except OSError:
        return ()
    try:
        names = [name for name in os.listdir(folder_fd) if name.startswith(_BEGIN) and name.endswith(_END)]  # noqa: PTH208
        found += [one for name in sorted(names) if (one := _server(folder, name, folder_fd))]
    finally:
        os.close(folder_fd)
    return tuple(sorted(found, key=lambda one: one.since if isinstance(one, RunningServer) else 0.0))


def snapshot_users() -> list[tuple[str, Path]]:
    """The commands that serve from a snapshot: each in words, with the snapshot's folder without links."""
    return [
        (f"torpor {server.command} (pid {server.process.pid})", real_folder(Path(server.snapshot)))
        for server in servers()
        if isinstance(server, RunningServer) and server.snapshot
    ]


def _server(folder: Path, name: str, folder_fd: int) -> RunningServer | Unreadable | None:
    try:
        locked = _is_locked(name, folder_fd)
    except (OSError, SnapshotError):
        return None  # gone meanwhile, another user's, or no file of ours
    if locked is False:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder_fd)
        return None
    try:
        server = _read(folder, name, read_json(folder, name, folder_fd, most=_MOST_BYTES))
    except FileNotFoundError:
        return None
    except SnapshotError as error:
        said = plain(str(error)).removesuffix(f"; {NEW_ONE}").removesuffix(".")
        return Unreadable(folder / name, f"{said}. A server of yours may run all the same; its file goes when it ends.")
    gone = not server.process.alive if server.here else locked is None
    return None if gone else server


def _is_locked(name: str, folder_fd: int) -> bool | None:
    """Whether a live command locks the file; None if its disk knows no locks.

    Raises:
        SnapshotError: it is no regular file of this user.
        OSError: it cannot be opened.
    """
    check_owned(os.stat(name, dir_fd=folder_fd, follow_symlinks=False), stat.S_IFREG, closed=False)
    file_fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder_fd)
    try:
        fcntl.flock(file_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    else:
        same = os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_ino == os.fstat(file_fd).st_ino
        return not same  # replaced meanwhile: somebody lives
    finally:
        os.close(file_fd)


def _read(folder: Path, name: str, fields: Fields) -> RunningServer:
    if fields.content.get("schema") != _SCHEMA:
        raise SnapshotError(
            f"{folder / name} is of another version of Torpor than this one ({__version__}), which reads format {_SCHEMA}."
        )
    fields.take("schema")
    server = RunningServer(
        file=folder / name,
        torpor=fields.text("torpor"),
        command=fields.text("command"),
        process=_process(fields.inner("process")),
        here=(fields.text("kernel_boot"), fields.whole("pid_namespace")) == _place(),
        since=fields.number("since", _LAST_TIME_S),
        deployment=fields.text("deployment"),
        model=fields.text("model"),
        app_file=fields.text("app_file"),
        backend=fields.text("backend"),
        url=fields.text("url"),
        snapshot=fields.text("snapshot"),
        state=fields.choice("state", _STATES),
        control_key=fields.text("control_key"),
        wanted=fields.whole("wanted"),
        restarting=fields.whole("restarting"),
        last_event=fields.text("last_event"),
        last_event_at=fields.number("last_event_at", _LAST_TIME_S),
        replicas=tuple(map(_replica, fields.each("replicas"))),
    )
    fields.end()
    return server


def _replica(fields: Fields) -> RunningReplica:
    replica = RunningReplica(
        name=fields.text("name"),
        pid=fields.whole("pid", 0, _LAST_PID),
        leader=_process(fields.inner("leader")),
        replica_id=fields.text("replica_id"),
        boot=fields.text("boot"),
        reason=fields.text("reason"),
        restarts=fields.whole("restarts"),
        gpus=fields.wholes("gpus"),
        since=fields.number("since", _LAST_TIME_S),
        log=fields.text("log"),
    )
    fields.end()
    return replica


def _process(fields: Fields) -> Process:
    process = Process(fields.whole("pid", 0, _LAST_PID), fields.whole("start_ticks", 0, _MOST))
    fields.end()
    return process


def _folder() -> Path:
    return cache_root() / "run"


def _identity() -> dict[str, object]:
    kernel_boot, pid_namespace = _place()
    return {"process": Process.of(os.getpid())._asdict(), "kernel_boot": kernel_boot, "pid_namespace": pid_namespace}


def _place() -> tuple[str, int]:
    """The kernel's boot id and this process's pid namespace: a pid has a meaning only within both."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116
    except OSError:
        return "", 0


def _start_ticks(pid: int) -> int:
    """When a process began (proc(5)); 0 if there is none, or only a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])
