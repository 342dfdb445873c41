"""The output of engines in files, readable while they run: one log for each life of a replica, limited in bytes and number.

    <cache root>/logs/<deployment>/<replica>-<UTC time>-<6 hex digits>.log     what comes now
                                   ....log.1  ....log.2  ...                   what came before; the highest number is the oldest

A log that grows beyond `FILE_BYTES` is renamed step by step, never copied, so an interrupted rotation loses nothing. The oldest
of `FILES` files is removed. A deployment keeps the last `ENDED_KEPT` logs of ended replicas. Only the owner can read logs. The
writer of a log locks it, so that others see whether its replica still runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import threading
import time
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torpor.errors import ConfigurationError
from torpor.telemetry.events import log as log_event

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "ENDED_KEPT",
    "FILES",
    "FILE_BYTES",
    "LOG_VARIABLE",
    "Follower",
    "KeptLog",
    "LogFile",
    "Sink",
    "new_log",
    "replica_log",
    "segments",
    "stored_logs",
]

LOG_VARIABLE = "TORPOR_ENGINE_LOG"
"""Where engines' output goes instead of their own logs: a file (appended to, never rotated), or `-` for standard error."""

FILE_BYTES = 16 << 20
"""Bytes of one file of a log."""

FILES = 4
"""Files of one log."""

ENDED_KEPT = 10
"""Logs of ended replicas that a deployment keeps."""

_SUFFIX = ".log"
_LOOK_S = 0.2
_FINISH_S = 5.0
_READ_BYTES = 1 << 16
_STDERR = 2
_NAME = re.compile(r"(?P<replica>.+)-\d{8}T\d{6}-[0-9a-f]{6}\.log", re.DOTALL)
_SEGMENT = re.compile(r"(?P<base>.+\.log)(?:\.(?P<number>\d{1,3}))?", re.DOTALL)
_wanted: ContextVar[tuple[Path, str] | None] = ContextVar("wanted", default=None)


class Sink(Protocol):
    """Where an engine's output goes."""

    @property
    def path(self) -> Path | None:
        """The file; None for standard error."""

    def write(self, data: bytes) -> None:
        """Append."""

    def close(self) -> None:
        """Write no more. Harmless to repeat."""


class LogFile:
    """Writes a log.

    Args:
        path: the file; its folder is created.
        file_bytes: size at which it is rotated.
        files: how many files it may have, with the current one.
        fixed: append, and neither rotate nor lock: others may write the file as well.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, *, file_bytes: int = FILE_BYTES, files: int = FILES, fixed: bool = False) -> None:
        self.path = path
        self._file_bytes, self._files, self._fixed = file_bytes, files, fixed
        path.parent.mkdir(mode=0o777 if fixed else 0o700, parents=True, exist_ok=True)
        self._descriptor = self._opened()
        self._size = os.fstat(self._descriptor).st_size

    def write(self, data: bytes) -> None:
        """Append. What cannot be written (a full disk) is dropped: an engine must not stop for its log."""
        with contextlib.suppress(OSError):
            if not self._fixed and self._size and self._size + len(data) > self._file_bytes:
                self._rotate()
            view = memoryview(data)
            while view:
                written = os.write(self._descriptor, view)
                self._size += written
                view = view[written:]

    def close(self) -> None:
        """Write no more. Harmless to repeat."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _rotate(self) -> None:
        """Rename every file to the next number, up to the first free number, the last file first."""
        last = next(
            (number for number in range(1, self._files) if not self._numbered(number).exists()), self._files - 1
        )
        if last < 1:
            self.path.unlink(missing_ok=True)
        for number in range(last, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                self._numbered(number - 1).replace(self._numbered(number))
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        opened, old = self._opened(), self._descriptor
        self._descriptor, self._size = opened, os.fstat(opened).st_size
        os.close(old)

    def _numbered(self, number: int) -> Path:
        return self.path if number == 0 else self.path.with_name(f"{self.path.name}.{number}")

    def _opened(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        if self._fixed:
            return os.open(self.path, flags, 0o600)
        descriptor = os.open(self.path, flags | os.O_NOFOLLOW, 0o600)
        with contextlib.suppress(OSError):  # on a disk without locks it counts as ended
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return descriptor


class _StandardError:
    """A log on standard error."""

    path: Path | None = None

    def write(self, data: bytes) -> None:
        """Append."""
        with contextlib.suppress(OSError):
            view = memoryview(data)
            while view:
                view = view[os.write(_STDERR, view) :]

    def close(self) -> None:
        """It stays open."""


class Follower:
    """Copies a growing file into a log, in a thread of its own: the output of an engine in a sandbox.

    The beginning of the file may become a hole; the file never gets shorter.

    Args:
        folder: descriptor of the folder in which the file is.
        file: path below it; the file may appear later.
        log: gets the output; closed at the end.
    """

    def __init__(self, folder: int, file: Path, log: Sink) -> None:
        self._folder, self._file, self.log = folder, file, log
        self._source = -1
        self._read = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="torpor-log", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Copy the rest and stop. Call it before the folder's descriptor is closed. Harmless to repeat."""
        self._over.set()
        self._thread.join(_FINISH_S)

    def _run(self) -> None:
        try:
            while not self._over.wait(_LOOK_S):
                self._copy()
            self._copy()
        except OSError:  # the source has gone
            pass
        finally:
            if self._source >= 0:
                os.close(self._source)
            self.log.close()

    def _copy(self) -> None:
        if self._source < 0:
            try:
                self._source = os.open(self._file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
            except FileNotFoundError:
                return
        size = os.fstat(self._source).st_size
        while self._read < size:
            with contextlib.suppress(OSError):  # ENXIO: nothing but a hole; elsewhere there are no holes
                self._read = os.lseek(self._source, self._read, os.SEEK_DATA)
            chunk = os.pread(self._source, min(_READ_BYTES, size - self._read), self._read)
            if not chunk:
                return
            self._read += len(chunk)
            self.log.write(chunk)


@contextlib.contextmanager
def replica_log(folder: Path | None, replica: str) -> Iterator[None]:
    """Have an engine that is started inside the block keep a log.

    Args:
        folder: of the deployment's logs; None keeps none, unless `TORPOR_ENGINE_LOG` is set.
        replica: its name.
    """
    token = _wanted.set((folder, replica) if folder is not None else None)
    try:
        yield
    finally:
        _wanted.reset(token)


def new_log(where: str, wanted: tuple[Path, str] | None = None) -> Sink | None:
    """The log of an engine that is started now, according to `replica_log` and `TORPOR_ENGINE_LOG`; None for none.

    If the cache root cannot be written, the engine runs without a log: only its last lines are kept.

    Args:
        where: the value of `TORPOR_ENGINE_LOG`.
        wanted: folder and name of the replica, in place of what `replica_log` says.

    Raises:
        ConfigurationError: the file that the variable names cannot be written.
    """
    if where == "-":
        return _StandardError()
    if where:
        try:
            return LogFile(Path(where), fixed=True)
        except OSError as error:
            raise ConfigurationError(
                f"{LOG_VARIABLE} is {where!r}, which cannot be written: {error.strerror}."
            ) from error
    if (chosen := wanted or _wanted.get()) is None:
        return None
    folder, replica = chosen
    try:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        log = LogFile(folder / f"{replica}-{stamp}-{os.urandom(3).hex()}{_SUFFIX}")
    except OSError as error:
        log_event("warning", "engine_log_cannot_be_kept", folder=str(folder), error=error.strerror or str(error))
        return None
    _forget_ended(folder)
    return log


class KeptLog(NamedTuple):
    """A log on the disk.

    Attributes:
        path: its newest file.
        deployment: name.
        replica: the replica's name.
        runs: whether it is still written.
        changed_at: Unix time of the last line, seconds.
    """

    path: Path
    deployment: str
    replica: str
    runs: bool
    changed_at: float


def stored_logs(root: Path) -> list[KeptLog]:
    """Every log below a folder `logs`, newest first. Files of other users are left out."""
    found = []
    with contextlib.suppress(OSError):
        for folder in root.iterdir():
            if folder.is_dir() and not folder.is_symlink():
                found += [_kept(folder, path, files) for path, files in _groups(folder).items()]
    return sorted(found, key=lambda log: (log.runs, log.changed_at), reverse=True)


def segments(path: Path) -> list[Path]:
    """The files of a log, the oldest first."""
    numbered = []
    with contextlib.suppress(OSError):
        for entry in path.parent.iterdir():
            match = _SEGMENT.fullmatch(entry.name)
            if match and match["base"] == path.name and _own(entry):
                numbered.append((int(match["number"] or 0), entry))
    return [entry for _, entry in sorted(numbered, reverse=True)]


def _groups(folder: Path) -> dict[Path, list[Path]]:
    """The logs of a deployment, each with its files."""
    groups: dict[Path, list[Path]] = {}
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            match = _SEGMENT.fullmatch(entry.name)
            if match and _NAME.fullmatch(match["base"]) and _own(entry):
                groups.setdefault(folder / match["base"], []).append(entry)
    return groups


def _kept(folder: Path, path: Path, files: list[Path]) -> KeptLog:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return KeptLog(path, folder.name, match["replica"], _runs(path), _changed_at(files))


def _changed_at(files: list[Path]) -> float:
    times = [0.0]
    for file in files:
        with contextlib.suppress(OSError):  # renamed meanwhile
            times.append(file.stat().st_mtime)
    return max(times)


def _own(file: Path) -> bool:
    try:
        facts = file.lstat()
    except OSError:
        return False
    return stat.S_ISREG(facts.st_mode) and facts.st_uid == os.geteuid()


def _runs(path: Path) -> bool:
    """Whether a process writes the log: it holds a lock, in any pid namespace."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _forget_ended(folder: Path) -> None:
    """Remove the oldest logs of ended replicas; other files in the folder stay."""
    groups = _groups(folder)
    ended = sorted(
        (path for path in groups if not _runs(path)), key=lambda path: _changed_at(groups[path]), reverse=True
    )
    for path in ended[ENDED_KEPT:]:
        for file in groups[path]:
            with contextlib.suppress(OSError):  # another process may do the same
                file.unlink()
