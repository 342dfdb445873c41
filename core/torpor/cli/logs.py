"""`torpor logs`: the output of engines, of running replicas or of the last one that ended."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.app_file import load_app
from torpor.cli.terminal import result, say
from torpor.engine.logs import segments, stored_logs
from torpor.errors import ConfigurationError, TorporError
from torpor.snapshots.store.paths import cache_root
from torpor.values.bounds import checked_count
from torpor.values.plain_text import one_line, plain

if TYPE_CHECKING:
    from torpor.engine.logs import KeptLog

__all__ = ["MAX_LINES", "Reader", "run_logs"]

MAX_LINES = 1_000_000
_READ_BYTES = 1 << 16
_POLL_S = 0.2
_LOOK_S = 1.0


def run_logs(name: str, *, follow: bool, lines: int) -> None:
    """Print the last lines; with `follow` also new lines, until a signal.

    Args:
        name: an app file, a deployment or a replica; empty for all.
        follow: keep printing, also for replicas that start meanwhile.
        lines: how many of each log.

    Raises:
        ConfigurationError: there is no log of that name.
        TorporError: there is no log at all.
    """
    checked_count("-n", lines, least=0, most=MAX_LINES, what="lines")
    wanted = _name(name)
    chosen = _chosen(wanted)
    readers = {log.path: Reader(log.path) for log in chosen}
    names = {log.path: log.replica for log in chosen}
    several = len(chosen) > 1
    for log in chosen:
        say(f"{'running' if log.runs else 'ended'}: {one_line(log.path)}")
    for path, reader in readers.items():
        _print(reader.last(lines, whole=follow), names[path] if several else "")
    looked_at = time.monotonic()
    while follow:
        time.sleep(_POLL_S)
        if time.monotonic() - looked_at >= _LOOK_S:
            looked_at = time.monotonic()
            for log in _running(wanted):
                if log.path not in readers:
                    say(f"running: {one_line(log.path)}")
                    readers[log.path], names[log.path], several = Reader(log.path), log.replica, True
        for path, reader in readers.items():
            _print(reader.more(), names[path] if several else "")


class Reader:
    """One log, read across its files.

    Args:
        path: its newest file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._pending = b""

    def last(self, count: int, *, whole: bool = False) -> list[str]:
        """The last lines; `more` continues from there.

        Args:
            count: how many.
            whole: leave an unfinished line to `more`.
        """
        chunks: list[bytes] = []
        ended = 0
        for file in reversed(segments(self._path)):
            descriptor = _opened(file)
            if descriptor < 0:
                continue
            position = os.fstat(descriptor).st_size
            if self._descriptor < 0:
                self._descriptor = descriptor
                os.lseek(descriptor, position, os.SEEK_SET)
            while position and ended <= count:
                size = min(_READ_BYTES, position)
                position -= size
                chunks.append(os.pread(descriptor, size, position))
                ended += chunks[-1].count(b"\n")
            if descriptor != self._descriptor:
                os.close(descriptor)
        found = _lines(b"".join(reversed(chunks)))
        if whole:
            self._pending = found.pop()
        found = [line for line in found if line]
        return [_text(line) for line in found[-count:]] if count else []

    def more(self) -> list[str]:
        """The lines since the last call."""
        if self._descriptor < 0:
            self._descriptor = _opened(next(iter(segments(self._path)), self._path))
        data = self._pending
        while self._descriptor >= 0:
            data += self._rest()
            if (following := self._following()) is None:
                break
            data += self._rest()  # the engine writes to the next file now
            os.close(self._descriptor)
            self._descriptor = _opened(following)
        *found, self._pending = _lines(data)
        return [_text(line) for line in found if line]

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _rest(self) -> bytes:
        data = b""
        while chunk := os.read(self._descriptor, _READ_BYTES):
            data += chunk
        return data

    def _following(self) -> Path | None:
        """The file after the current one, once that was rotated; None while it is the newest."""
        own = os.fstat(self._descriptor).st_ino
        files = segments(self._path)
        numbers = []
        for file in files:
            with contextlib.suppress(OSError):  # renamed meanwhile: the next call looks again
                numbers.append(file.stat().st_ino)
        if len(numbers) < len(files) or not files or files[-1] != self._path or numbers[-1] == own:
            return None
        return files[numbers.index(own) + 1] if own in numbers else files[0]


def _lines(data: bytes) -> list[bytes]:
    """Split lines; a progress bar ends its lines with a carriage return."""
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")


def _text(line: bytes) -> str:
    return plain(line.decode(errors="replace"))


def _opened(file: Path) -> int:
    with contextlib.suppress(OSError):
        return os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    return -1


def _print(lines: list[str], name: str) -> None:
    before = f"{one_line(name)} | " if name else ""
    for line in lines:
        result(before + line)


def _name(given: str) -> str:
    """The name of an app file's deployment; any other name unchanged."""
    if given.endswith(".py") and Path(given).is_file():
        return load_app(given).deployment.name
    return given


def _of(name: str, log: KeptLog) -> bool:
    return name in ("", log.deployment, log.replica, log.path.name, log.path.stem)


def _running(name: str) -> list[KeptLog]:
    return [log for log in stored_logs(cache_root() / "logs") if log.runs and _of(name, log)]


def _chosen(name: str) -> list[KeptLog]:
    """The running ones of that name; if none runs, the one that ended last."""
    root = cache_root() / "logs"
    logs = stored_logs(root)
    if not logs:
        raise TorporError(
            f"There is no log yet in {root}: engines that `torpor up` and `torpor snapshot restore` start have one."
        )
    found = [log for log in logs if _of(name, log)]
    if not found:
        known = ", ".join(sorted({log.deployment for log in logs} | {log.replica for log in logs}))
        raise ConfigurationError(
            f"There is no log of {name!r} in {root}; there are logs of {known}. Give an app file, a deployment or a replica."
        )
    return [log for log in found if log.runs] or found[:1]
