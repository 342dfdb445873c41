"""A snapshot's folder as a folder: whose it is, how it gets to its place, and how it goes.

    what is there?      only a snapshot that Torpor wrote and that is this user's is replaced or removed (`found_instead`)
    through links       a symbolic link stands for the folder that it leads to, in every command; the link itself stays
    made whole          written beside its place, then exchanged with what is there in one step (renameat2)
    left over           who writes holds a lock on his folder, which the kernel lets go with him, in whatever pid namespace

A restore imports this module before CRIU begins, so what only a capture needs is imported where it is used.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import DamagedSnapshotError, SnapshotError
from torpor.snapshots.store.manifest import FAILURES, IMAGES, LOGS, MANIFEST, MANIFEST_BYTES, OUTSIDE, PRIVATE
from torpor.snapshots.store.reading import ANEW, check_owned, opened_folder, read_json, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "Hold",
    "Mark",
    "check_place",
    "check_same",
    "checked",
    "found_instead",
    "left_overs",
    "made_whole",
    "real_folder",
    "recover",
    "remove_folder",
    "unchanged",
    "unused",
]

_PRIVATE_BITS = 0o077
_WORLD_WRITES = stat.S_IWOTH
_PARTS = {MANIFEST, PRIVATE, OUTSIDE, IMAGES, LOGS, FAILURES}
_SHOWN = 5
_ATTEMPTS = 5
_LEFT_FOR_S = 3600.0
_TAG = re.compile(r"([0-9a-f]{8})?[0-9a-f]{8}|\d+")  # older versions: a pid
_LEFT_OVER = re.compile(r"\.(.+)\.(?:replaced|partial|removed)-(?:[0-9a-f]{16}|[0-9a-f]{8}|\d+)", re.DOTALL)
_ESCAPED = re.compile(rb"\\([0-7]{3})")  # proc(5): blanks and such in a mount point
_NO_BOOT = "0" * 8
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
_LONGEST_NAME = 200
_LONGEST_PATH = 4096


class Mark(NamedTuple):
    """Which folder and which manifest was looked at: device, number of each, and the manifest's time of change."""

    device: int
    folder: int
    manifest: int
    changed_ns: int


def real_folder(folder: Path) -> Path:
    """The folder that a path stands for: absolute, and without symbolic links, which need not lead anywhere."""
    return Path(os.path.realpath(folder))


def checked(folder: Path) -> Mark:
    """Make sure that a snapshot is this user's own and private, and say which one it is.

    A snapshot is memory that will be run: nobody else may write it, and nobody else may read it.

    Args:
        folder: without links.

    Raises:
        SnapshotError: it is not, or anybody may put another folder in its place.
    """
    _check_parents(folder)
    if not folder.exists():
        recover(folder, clear=False)
    try:
        folder_fd = opened_folder(folder)
    except FileNotFoundError:
        raise DamagedSnapshotError(
            f"{folder} holds no snapshot: there is no {MANIFEST} in it. `torpor snapshot create APP {folder}` makes one."
        ) from None
    except OSError as error:
        raise DamagedSnapshotError(
            f"{folder} holds no snapshot: it cannot be opened as a folder ({error.strerror})."
        ) from error
    try:
        facts = os.fstat(folder_fd)
        if facts.st_uid != os.geteuid():
            raise DamagedSnapshotError(
                f"{folder} belongs to user {facts.st_uid}, not to you ({os.geteuid()}): to restore it would run their code. "
                "Make one of your own."
            )
        if facts.st_mode & _PRIVATE_BITS:
            raise DamagedSnapshotError(
                f"{folder} is open to other users (mode {facts.st_mode & 0o777:o}): it holds memory and keys. If nobody has "
                f"changed it: chmod 700 {folder}"
            )
        manifest, changed_ns = 0, 0
        with contextlib.suppress(FileNotFoundError):
            inner = os.stat(MANIFEST, dir_fd=folder_fd, follow_symlinks=False)
            manifest, changed_ns = inner.st_ino, inner.st_mtime_ns
        return Mark(facts.st_dev, facts.st_ino, manifest, changed_ns)
    finally:
        os.close(folder_fd)


def check_same(folder: Path, mark: Mark) -> None:
    """Make sure that the folder is still the one that was looked at.

    Raises:
        SnapshotError: another one has come in its place.
    """
    try:
        same = checked(folder) == mark
    except SnapshotError as error:
        raise SnapshotError(f"The snapshot was changed while it was being restored: {error}") from error
    if not same:
        raise SnapshotError(
            f"The snapshot {folder} was replaced by another while it was being restored; nothing of it runs. Restore again."
        )


@contextlib.contextmanager
def unchanged(folder: Path, mark: Mark) -> Iterator[None]:
    """Make sure that the block found the folder that was looked at, from its begin to its end.

    Raises:
        SnapshotError: another one came in its place; said also where the block failed because of that.
    """
    check_same(folder, mark)
    try:
        yield
    except SnapshotError:
        check_same(folder, mark)
        raise
    check_same(folder, mark)


def found_instead(folder: Path) -> str:
    """What a folder is, if not a snapshot that Torpor wrote for this user; empty if it is one, of whatever version.

    Args:
        folder: without links.
    """
    try:
        check_owned(folder.lstat(), stat.S_IFDIR, closed=False)  # open to others: to be removed, not to be restored
        folder_fd = opened_folder(folder)
    except FileNotFoundError:
        return "there is nothing"
    except SnapshotError as error:
        return f"it {error}"
    except OSError as error:
        return f"it cannot be opened ({error.strerror})"
    try:
        names = sorted(os.listdir(folder_fd))  # noqa: PTH208 - of a descriptor
        fields = read_json(folder, MANIFEST, folder_fd, most=MANIFEST_BYTES, closed=False)
        return (
            _other_kind(fields.content)
            or _other_images(folder_fd)
            or _others(fields.content, names)
            or _others_inside(fields.content, folder_fd)
            or _mounted(folder)
        )
    except FileNotFoundError:
        return f"there is no {MANIFEST} in it; it holds {_listed(names)}"
    except SnapshotError as error:
        return str(error).removesuffix(f"; {ANEW}")
    finally:
        os.close(folder_fd)


def _other_kind(content: Mapping[str, object]) -> str:
    schema, made = content.get("schema"), content.get("deployment")
    if type(schema) is int and isinstance(made, dict) and isinstance(made.get("torpor"), str):
        return ""
    return f"its {MANIFEST} is not of a snapshot, but says {_listed(sorted(content))}"


def _others(content: Mapping[str, object], names: list[str]) -> str:
    """What stands beside the parts of a snapshot."""
    listed = content.get("files")
    own = _PARTS | {str(path).partition("/")[0] for path in listed} if isinstance(listed, dict) else _PARTS
    others = [name for name in names if name not in own and not name.startswith(f".{FAILURES}.")]
    return f"beside a snapshot it holds {_listed(others)}, which Torpor did not write" if others else ""


def _others_inside(content: Mapping[str, object], folder_fd: int) -> str:
    """What stands in the folders of a snapshot that its list of files does not name; folders alone without such a list."""
    listed = content.get("files")
    for part in (IMAGES, LOGS):
        own = {str(path) for path in listed if str(path).startswith(f"{part}/")} if isinstance(listed, dict) else set()
        others = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            inner_fd = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder_fd)
            try:
                with os.scandir(inner_fd) as entries:
                    for entry in entries:
                        path = f"{part}/{entry.name}"
                        if path not in own and (own or entry.is_dir(follow_symlinks=False)):
                            others.append(path)
            finally:
                os.close(inner_fd)
        if others:
            return f"beside the files of a snapshot it holds {_listed(sorted(others))}, which Torpor did not write"
    return ""


def _mounted(folder: Path) -> str:
    """Which other disk is mounted in a folder: what is on it is not the snapshot's, and would be deleted with it."""
    begin = os.fsencode(folder) + b"/"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
            place = _ESCAPED.sub(lambda code: bytes([int(code[1], 8)]), line.split(b" ")[4])
            if place.startswith(begin):
                return f"something is mounted in it, at {shown(os.fsdecode(place), _LONGEST_PATH)}; unmount it first"
    return ""


def _other_images(folder_fd: int) -> str:
    try:
        check_owned(os.stat(IMAGES, dir_fd=folder_fd, follow_symlinks=False), stat.S_IFDIR, closed=False)
    except FileNotFoundError:
        return f"there is no folder {IMAGES} in it"
    except SnapshotError as error:
        return f"its folder {IMAGES} {error}"
    return ""


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(map(shown, names[:_SHOWN])) or "nothing") + more


def check_place(folder: Path) -> None:
    """Make sure that a snapshot can be put at a path, whatever is there now.

    Raises:
        SnapshotError: it is a mount point, its parent takes nothing from this user, or everybody may rename there.
    """
    if folder.parent == folder or os.path.ismount(folder):
        raise SnapshotError(
            f"{folder} is a mount point, which cannot be replaced; choose a folder in it: {folder / 'kept'}"
        )
    _named(folder, "partial", _NO_BOOT)
    _check_parents(folder)
    parent = next(parent for parent in folder.parents if os.path.lexists(parent))
    if not parent.is_dir():
        raise SnapshotError(f"{folder} cannot be made: {parent} is no folder.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise SnapshotError(f"{folder} cannot be made: you may not write to {parent}. Choose another folder.")


def _check_parents(folder: Path) -> None:
    """Whoever may rename in a parent can put another folder in the place of the one that was checked.

    A parent that is writable to all without the sticky bit is refused; the owners and groups of parents are trusted.
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
    """A new folder beside the target that takes its place when the block succeeds, and vanishes otherwise.

    Killed at any moment this leaves the old snapshot or the new one at the target; what else it leaves goes with the next
    capture (`recover`). The new folder is locked meanwhile.

    Args:
        folder: the target, without links.

    Raises:
        SnapshotError: something else than a snapshot has come there meanwhile; it stays.
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
    """Take a snapshot away, in one step, and delete it then.

    Args:
        folder: one that `found_instead` takes for a snapshot.

    Raises:
        SnapshotError: it is not the one that was looked at any more, or it cannot be deleted.
    """
    import shutil  # noqa: PLC0415 - a restore has no use for it

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
        raise SnapshotError(f"{folder} was taken away, but what is in it could not be deleted; it is {doomed} now.")


def recover(folder: Path, *, clear: bool = True) -> None:
    """Mend what a killed capture of this target left: bring back what it had taken away, and delete the rest.

    Only on a disk that cannot exchange two folders can a snapshot have been taken away for a new one that never came. Left
    alone is what somebody may still write: what is locked, and what another machine (or boot) wrote in the last hour.

    Args:
        folder: the target, without links.
        clear: delete the rest.
    """
    import shutil  # noqa: PLC0415 - hardly ever

    for left, kind in _left_over(folder):
        with contextlib.suppress(OSError), _locked_if_dead(left) as dead:
            if not dead:
                continue
            if kind == "replaced" and not os.path.lexists(folder) and not found_instead(left):
                left.rename(folder)
            elif clear and not _mounted(left):
                shutil.rmtree(left, ignore_errors=True)


class Hold:
    """Says that this process uses a snapshot: by a lock on its folder, which the kernel lets go with the process.

    Whoever removes snapshots leaves it alone then (`unused`). The folder's time of change says when it was used last. Both
    are wishes: a folder that is gone, read-only, or on a disk without locks ends no restore.
    """

    def __init__(self) -> None:
        self._folder_fd = -1

    def take(self, folder: Path, *, used: bool = True) -> None:
        """Hold a snapshot in place of the one before.

        Args:
            folder: without links.
            used: note that it is used now.
        """
        import fcntl  # noqa: PLC0415 - a restore takes its hold while CRIU works

        with contextlib.suppress(OSError):
            folder_fd = opened_folder(folder)
            self.release()
            self._folder_fd = folder_fd
            fcntl.flock(folder_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if used:
            with contextlib.suppress(OSError):
                os.utime(folder)

    def release(self) -> None:
        """Let go of it. Harmless to repeat."""
        if self._folder_fd >= 0:
            os.close(self._folder_fd)
            self._folder_fd = -1


@contextlib.contextmanager
def unused(folder: Path) -> Iterator[bool]:
    """Whether no process holds a snapshot; none begins to in the block. A disk without locks cannot tell: True."""
    try:
        folder_fd = opened_folder(folder)
    except OSError:
        yield True
        return
    try:
        yield _lock(folder_fd, otherwise=True)
    finally:
        os.close(folder_fd)


def left_overs(parent: Path) -> dict[Path, Path]:
    """What killed captures and removals left in a folder, each with the target that it belongs to."""
    found = {}
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(parent)):  # noqa: PTH208 - no pattern is to be made of a name
            if match := _LEFT_OVER.fullmatch(name):
                found[parent / name] = parent / match[1]
    return found


def _left_over(folder: Path) -> Iterator[tuple[Path, str]]:
    """What bears the target's name and a tag, and its kind; names are compared as they are."""
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(folder.parent)):  # noqa: PTH208 - no pattern is to be made of a name
            for kind in ("replaced", "partial", "removed"):
                begin = f".{folder.name}.{kind}-"
                if name.startswith(begin) and _TAG.fullmatch(name.removeprefix(begin)):
                    yield folder.parent / name, kind


@contextlib.contextmanager
def _locked_if_dead(left: Path) -> Iterator[bool]:
    """Whether nobody is at work in a folder any more; nobody else clears it up meanwhile."""
    folder_fd = opened_folder(left)
    try:
        facts = os.fstat(folder_fd)
        newest = max(facts.st_mtime, *(_changed(name, folder_fd) for name in (IMAGES, LOGS)))
        tag = left.name.rpartition("-")[2]
        here = len(tag) == len(_NO_BOOT) * 2 and tag.startswith(_boot())
        old = time.time() - newest > _LEFT_FOR_S or (len(tag) < len(_NO_BOOT) * 2 and _is_bare(folder_fd, tag))
        yield facts.st_uid == os.geteuid() and (here or old) and _lock(folder_fd, otherwise=old)
    finally:
        os.close(folder_fd)


def _is_bare(folder_fd: int, tag: str) -> bool:
    """Whether nothing is in a folder of an older version, which called it by its pid, and that process is not to be seen."""
    return not os.listdir(folder_fd) and not Path(f"/proc/{tag}").exists()


def _changed(name: str, folder_fd: int) -> float:
    try:
        return os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mtime
    except OSError:
        return 0.0


def _lock(folder_fd: int, *, otherwise: bool) -> bool:
    """Lock a folder until its descriptor is closed; False if somebody has locked it, `otherwise` if its disk knows no locks."""
    import fcntl  # noqa: PLC0415

    try:
        fcntl.flock(folder_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return otherwise
    return True


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A new, locked folder beside the target."""
    fresh = _named(folder, "partial", _NO_BOOT)  # not of this boot, so that it is left alone before it is locked
    fresh.mkdir(mode=0o700)
    folder_fd = opened_folder(fresh)
    try:
        partial = fresh
        if _lock(folder_fd, otherwise=False):
            partial = _named(folder, "partial", _boot())
            fresh.rename(partial)
        yield partial
    finally:
        os.close(folder_fd)


def _put(partial: Path, folder: Path) -> None:
    """Put a folder in the place of what is there: nothing, an empty folder, or a snapshot."""
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
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile: once more
            _exchange(partial, folder)
            return
    raise SnapshotError(f"{folder} cannot be put in its place: somebody else makes and removes it all the time.")


def _exchange(partial: Path, folder: Path) -> None:
    """Let the new folder and the old one change places; the old one is looked at once more, where nobody else finds it."""
    _swap(partial, folder)
    if reason := found_instead(partial):  # it came there after it was looked at
        _swap(partial, folder)
        raise _not_replaced(folder, reason)


def _swap(partial: Path, folder: Path) -> None:
    """Exchange two folders, in one step where the kernel and the disk can, else in two that `recover` knows."""
    if _exchanged(partial, folder):
        return
    old = _named(folder, "replaced", _boot())
    old_fd = opened_folder(folder)
    try:
        _lock(old_fd, otherwise=False)
        folder.rename(old)
        partial.rename(folder)
        old.rename(partial)
    finally:
        os.close(old_fd)


def _not_replaced(folder: Path, reason: str) -> SnapshotError:
    return SnapshotError(
        f"{folder} was not replaced: it is no snapshot any more: {reason}. It stays as it is, and the new snapshot was given up."
    )


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names in one step (renameat2(2), Linux 3.15); False where kernel, C library or disk cannot."""
    import ctypes  # noqa: PLC0415

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
    """Delete what lies at the temporary name: the unfinished snapshot, or the one that was replaced; nothing else."""
    import shutil  # noqa: PLC0415

    with contextlib.suppress(OSError):
        ours = partial.lstat().st_ino == new or (unless.stat().st_ino == new and not found_instead(partial))
        if ours and not _mounted(partial):
            shutil.rmtree(partial, ignore_errors=True)


def _named(folder: Path, kind: str, boot: str) -> Path:
    if len(os.fsencode(folder.name)) > _LONGEST_NAME:
        raise SnapshotError(f"{folder}: its name is too long; allowed are {_LONGEST_NAME} bytes.")
    return folder.with_name(f".{folder.name}.{kind}-{boot}{os.urandom(4).hex()}")


def _boot() -> str:
    """Eight digits for this boot of this kernel: a lock of any process of it is seen here."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[: len(_NO_BOOT)]
    except OSError:
        return _NO_BOOT
