"""Which GPUs the commands of this user have taken, so that two that start at once do not choose the same one.

A claim is a file for each GPU of a replica, `gpu-claims/UUID.PID.RANDOM` below the cache root, locked by its command: the kernel
lets go of it when the command ends, however it ends. The file holds the bytes that a restore is about to take, and nothing once
its memory is on the GPU, where the driver counts it. Who chooses holds the lock of the folder meanwhile (`choosing`).

A claim keeps nobody out. GPUs with fewer replicas come first, whoever has them, and one that is named (`--gpus`) is taken if its
memory suffices. On a disk without locks, or one that cannot be written, nothing is claimed. Other users' commands are not seen.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torpor.snapshots.store.paths import cache_root

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Claim", "Claimed", "choosing", "claim", "claimed"]

_FOLDER = "gpu-claims"
_LOCK = "lock"
_NAME = re.compile(r"(?P<uuid>GPU-[0-9a-fA-F-]+)\.(?P<pid>\d{1,10})\.[0-9a-f]{8}")
_MOST_DIGITS = 20
_CHOOSING_S, _LOOK_S = 10.0, 0.02
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Claimed(NamedTuple):
    """What other commands have claimed of a GPU.

    Attributes:
        replicas: how many of their replicas have it.
        reserved: by pid of the command, bytes that it is about to take.
    """

    replicas: int
    reserved: Mapping[int, int]


class Claim:
    """The GPUs of one replica; released at the latest when this process ends."""

    def __init__(self, files: Mapping[Path, int]) -> None:
        self._files = dict(files)

    def settle(self) -> None:
        """The replica's memory is on its GPUs: from here on the driver counts it."""
        for descriptor in self._files.values():
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)

    def release(self) -> None:
        """Let go. Harmless to repeat."""
        for file, descriptor in self._files.items():
            with contextlib.suppress(OSError):
                file.unlink()
            os.close(descriptor)
        self._files.clear()


@contextlib.contextmanager
def choosing() -> Iterator[None]:
    """Choose alone: what others claim is seen, and what is claimed here is seen by them. Without a lock after ten seconds."""
    descriptor = -1
    with contextlib.suppress(OSError):
        _folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(_folder() / _LOCK, _FLAGS | os.O_CREAT, 0o600)
    try:
        _lock(descriptor)
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def claim(reserved: Mapping[str, int]) -> Claim:
    """Claim GPUs; to be called while `choosing`.

    Args:
        reserved: by UUID, bytes that the replica is about to take; 0 if nobody has to keep them free for it.
    """
    files: dict[Path, int] = {}
    for uuid, size in reserved.items():
        file = _folder() / f"{uuid}.{os.getpid()}.{os.urandom(4).hex()}"
        unlocked = file.with_name(
            f".{file.name}"
        )  # whoever looked at it before it is locked would take it for left over
        with contextlib.suppress(OSError):
            descriptor = os.open(unlocked, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
            files[file] = descriptor
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(descriptor, str(size).encode())
            unlocked.rename(file)
    return Claim(files)


def claimed() -> dict[str, Claimed]:
    """What other commands of this user have claimed, by UUID."""
    found: dict[str, Claimed] = {}
    for file, match in _files():
        pid = int(match["pid"])
        if pid == os.getpid() or (size := _held(file)) is None:
            continue
        before = found.get(match["uuid"], Claimed(0, {}))
        reserved = {**before.reserved, pid: before.reserved.get(pid, 0) + size} if size else before.reserved
        found[match["uuid"]] = Claimed(before.replicas + 1, reserved)
    return found


def _folder() -> Path:
    return cache_root() / _FOLDER


def _files() -> Iterator[tuple[Path, re.Match[str]]]:
    with contextlib.suppress(OSError):
        for entry in sorted(os.scandir(_folder()), key=lambda one: one.name):
            if match := _NAME.fullmatch(entry.name):
                yield Path(entry.path), match


def _held(file: Path) -> int | None:
    """The bytes that a claim reserves; None, and the file goes, if its command has ended."""
    try:
        descriptor = os.open(file, _FLAGS)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(descriptor, _MOST_DIGITS)
        return int(text) if text.isdigit() else 0
    except OSError:
        return None
    else:
        with contextlib.suppress(OSError):
            file.unlink()
        return None
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Wait for the lock, but not for ever: who is stopped in the middle of a choice stops nobody else."""
    end = time.monotonic() + _CHOOSING_S
    while descriptor >= 0 and time.monotonic() < end:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOOK_S)
        except OSError:
            return
        else:
            return
