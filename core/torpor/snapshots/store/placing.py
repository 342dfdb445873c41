"""How a snapshot's folder gets to its place, and how it is removed.

complete or not at all  a snapshot is written beside its place, then exchanged with what is there in one step (renameat2)
left over               a writer holds a lock on its folder; what is not locked was left by a killed process
                        (a pull goes on with what it finds; after an hour it is cleared as well)
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.errors import SnapshotError
from torpor.snapshots.store.found import found_instead, mounted_inside
from torpor.snapshots.store.hold import lock_alone
from torpor.snapshots.store.manifest import IMAGES, LOGS
from torpor.snapshots.store.reading import opened_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_parents", "check_place", "left_overs", "made_whole", "recover", "remove_folder"]

_WORLD_WRITES = stat.S_IWOTH
_ATTEMPTS = 5
_LEFT_FOR_S = 3600.0
_KINDS = ("replaced", "partial", "removed", "pull")
_TAG = re.compile(r"([0-9a-f]{8})?[0-9a-f]{8}|\d+")  # older versions: a pid
_LEFT_OVER = re.compile(rf"\.(.+)\.(?:{'|'.join(_KINDS)})-(?:[0-9a-f]{{16}}|[0-9a-f]{{8}}|\d+)", re.DOTALL)
_NO_BOOT = "0" * 8
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
_LONGEST_NAME = 200


def check_place(folder: Path) -> None:
    """Check that a snapshot can be put at a path, whatever is there now.

    Raises:
        SnapshotError: it is a mount point, this user may not write to its parent, or everybody may rename there.
    """
    if folder.parent == folder or os.path.ismount(folder):
        raise SnapshotError(
            f"{folder} is a mount point, which cannot be replaced; choose a folder in it: {folder / 'kept'}"
        )
    _named(folder, "partial", _NO_BOOT)
    check_parents(folder)
    parent = next(parent for parent in folder.parents if os.path.lexists(parent))
    if not parent.is_dir():
        raise SnapshotError(f"{folder} cannot be made: {parent} is not a folder.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise SnapshotError(f"{folder} cannot be made: you may not write to {parent}. Choose another folder.")


def check_parents(folder: Path) -> None:
    """Check that not everybody can put another folder in place of the one that was checked.

    That is so in a parent that is writable to all without the sticky bit. Owners and groups of the parents are trusted.

    Raises:
        SnapshotError: there is such a parent.
    """
    for parent in folder.parents:
        with contextlib.suppress(OSError):
            mode = parent.stat().st_mode
            if mode & _WORLD_WRITES and not mode & stat.S_ISVTX:
                raise SnapshotError(
                    f"{parent} is writable to everybody (mode {mode & 0o7777:o}): any user could put a folder of their own in "
                    f"the place of {folder}. Use another place, or: chmod o-w {parent}"
                )


@contextlib.contextmanager
def made_whole(folder: Path) -> Iterator[Path]:
    """A new, locked folder beside the target; it takes the target's place if the block succeeds, else it is deleted.

    A process that is killed at any moment leaves the old snapshot or the new one at the target. The next capture deletes
    whatever else it left (`recover`).

    Args:
        folder: the target, without links.

    Raises:
        SnapshotError: meanwhile something other than a snapshot appeared at the target; it stays.
        OSError: the disk refuses.
    """
    recover(folder)
    with _beside(folder) as partial:
        number = partial.stat().st_ino
        try:
            yield partial
            _put(partial, folder)
        finally:
            _delete(partial, unless=folder, new=number)


def remove_folder(folder: Path) -> None:
    """Move a snapshot away in one step, then delete it.

    Args:
        folder: a snapshot, according to `found_instead`.

    Raises:
        SnapshotError: another folder took its place, or it cannot be deleted.
    """
    doomed = _named(folder, "removed", _boot())
    try:
        folder.rename(doomed)  # from here on nobody can begin to restore it
        if reason := found_instead(doomed):
            doomed.rename(folder)
            raise SnapshotError(f"{folder} has just been replaced: {reason}. Nothing was removed.")
        shutil.rmtree(doomed, ignore_errors=True)
    except OSError as error:
        raise SnapshotError(f"{folder} cannot be removed: {error.strerror or error}.") from error
    if doomed.exists():
        raise SnapshotError(f"{folder} was moved to {doomed}, but its files could not be deleted.")


def recover(folder: Path, *, clear: bool = True) -> None:
    """Repair what a killed capture of this target left: move the old snapshot back, and delete the rest.

    A snapshot can be missing only on a disk that cannot exchange two folders in one step. A folder that somebody may still write
    stays: a locked one, and one that another machine (or boot) wrote in the last hour.

    Args:
        folder: the target, without links.
        clear: delete the rest.
    """
    for left, kind in _left_over(folder):
        with contextlib.suppress(OSError), _locked_if_dead(left) as dead:
            if not dead:
                continue
            if kind == "replaced" and not os.path.lexists(folder) and not found_instead(left):
                left.rename(folder)
            elif clear and not mounted_inside(left):
                shutil.rmtree(left, ignore_errors=True)


def left_overs(parent: Path) -> dict[Path, Path]:
    """What killed captures and removals left in a folder, each with its target."""
    found = {}
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(parent)):  # noqa: PTH208 - a name may hold the signs of a pattern
            if match := _LEFT_OVER.fullmatch(name):
                found[parent / name] = parent / match[1]
    return found


def _left_over(folder: Path) -> Iterator[tuple[Path, str]]:
    """Left-overs of one target, each with its kind."""
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(folder.parent)):  # noqa: PTH208 - a name may hold the signs of a pattern
            for kind in _KINDS:
                begin = f".{folder.name}.{kind}-"
                if name.startswith(begin) and _TAG.fullmatch(name.removeprefix(begin)):
                    yield folder.parent / name, kind


@contextlib.contextmanager
def _locked_if_dead(left: Path) -> Iterator[bool]:
    """Whether nobody writes to a folder any more; nobody else can clear it during the block."""
    folder_fd = opened_folder(left)
    try:
        facts = os.fstat(folder_fd)
        newest = max(facts.st_mtime, *(_changed(name, folder_fd) for name in (IMAGES, LOGS)))
        tag = left.name.rpartition("-")[2]
        here = len(tag) == len(_NO_BOOT) * 2 and tag.startswith(_boot())
        old = time.time() - newest > _LEFT_FOR_S or (len(tag) < len(_NO_BOOT) * 2 and _is_bare(folder_fd, tag))
        yield facts.st_uid == os.geteuid() and (here or old) and lock_alone(folder_fd, without_locks=old)
    finally:
        os.close(folder_fd)


def _is_bare(folder_fd: int, tag: str) -> bool:
    """Whether an older version left an empty folder, named after a pid that no process has."""
    return not os.listdir(folder_fd) and not Path(f"/proc/{tag}").exists()


def _changed(name: str, folder_fd: int) -> float:
    try:
        return os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mtime
    except OSError:
        return 0.0


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A new, locked folder beside the target."""
    fresh = _named(folder, "partial", _NO_BOOT)  # a tag of no boot: `recover` leaves it alone until it is locked
    fresh.mkdir(mode=0o700)
    folder_fd = opened_folder(fresh)
    try:
        partial = fresh
        if lock_alone(folder_fd, without_locks=False):
            partial = _named(folder, "partial", _boot())
            fresh.rename(partial)
        yield partial
    finally:
        os.close(folder_fd)


def _put(partial: Path, folder: Path) -> None:
    """Put a folder in the place of nothing, an empty folder, or a snapshot."""
    for _ in range(_ATTEMPTS):
        try:
            partial.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        else:
            return
        if reason := found_instead(folder):
            raise _not_replaced(folder, reason)
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile: try again
            _exchange(partial, folder)
            return
    raise SnapshotError(f"{folder} cannot be put in its place: another process keeps making and removing it.")


def _exchange(partial: Path, folder: Path) -> None:
    """Swap the new folder and the old one, then check the old one again where nobody else finds it."""
    _swap(partial, folder)
    if reason := found_instead(partial):  # it appeared after the first check
        _swap(partial, folder)
        raise _not_replaced(folder, reason)


def _swap(partial: Path, folder: Path) -> None:
    """Swap two folders in one step if kernel and disk can, else in two steps that `recover` can repair."""
    if _exchanged(partial, folder):
        return
    old = _named(folder, "replaced", _boot())
    old_fd = opened_folder(folder)
    try:
        lock_alone(old_fd, without_locks=False)
        folder.rename(old)
        partial.rename(folder)
        old.rename(partial)
    finally:
        os.close(old_fd)


def _not_replaced(folder: Path, reason: str) -> SnapshotError:
    return SnapshotError(
        f"{folder} was not replaced: it is no longer a snapshot: {reason}. It stays as it is, and the new snapshot was deleted."
    )


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names in one step (renameat2(2), Linux 3.15); False if kernel, C library or disk cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    names = os.fsencode(one), os.fsencode(other)
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _delete(partial: Path, *, unless: Path, new: int) -> None:
    """Delete what lies at the temporary name: the unfinished snapshot or the replaced one, nothing else."""
    with contextlib.suppress(OSError):
        ours = partial.lstat().st_ino == new or (unless.stat().st_ino == new and not found_instead(partial))
        if ours and not mounted_inside(partial):
            shutil.rmtree(partial, ignore_errors=True)


def _named(folder: Path, kind: str, boot: str) -> Path:
    if len(os.fsencode(folder.name)) > _LONGEST_NAME:
        raise SnapshotError(f"{folder}: its name is too long; at most {_LONGEST_NAME} bytes are allowed.")
    return folder.with_name(f".{folder.name}.{kind}-{boot}{os.urandom(4).hex()}")


def _boot() -> str:
    """Eight digits of the kernel's boot id: within one boot a lock of any process is visible."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[: len(_NO_BOOT)]
    except OSError:
        return _NO_BOOT
