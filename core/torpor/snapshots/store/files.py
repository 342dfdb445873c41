"""The files of a snapshot, as the manifest lists them: whether one is missing, cut or changed."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from torpor.errors import DamagedSnapshotError
from torpor.snapshots.store.manifest import HEAD_BYTES, MANIFEST, FileFacts
from torpor.snapshots.store.reading import check_owned, opened_file, opened_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torpor.snapshots.store.manifest import Manifest

__all__ = ["damaged_files", "describe_files"]

_SHOWN = 8


def describe_files(folder: Path) -> dict[str, FileFacts]:
    """Size, first bytes and hash of every file under a snapshot's folder, without the manifest."""
    return {
        str(file.relative_to(folder)): FileFacts(size=file.stat().st_size, head=_head(file), sha256=_sha256(file))
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }


def damaged_files(folder: Path, manifest: Manifest, *, full: bool) -> tuple[str, ...]:
    """What is wrong with a snapshot's files, a sentence each.

    Args:
        folder: the snapshot.
        manifest: its manifest.
        full: compare the hash of every file, not only size and first bytes.
    """
    found = list(_damages(folder, manifest, full=full))
    more = [f"so are {len(found) - _SHOWN} more files"] if len(found) > _SHOWN else []
    return tuple(found[:_SHOWN] + more)


def _damages(folder: Path, manifest: Manifest, *, full: bool) -> Iterator[str]:
    with contextlib.ExitStack() as opened:
        try:
            folders = {"": opened_folder(folder)}
        except OSError as error:
            gone = isinstance(error, FileNotFoundError)
            yield f"its folder {folder} {'is gone' if gone else f'cannot be opened: {error.strerror}'}"
            return
        opened.callback(_close_all, folders)
        told: set[str] = set()
        for path, wanted in manifest.files.items():
            try:
                yield from _damage(path, wanted, folders, full=full)
            except FileNotFoundError:
                yield f"its file {path} is missing"
            except DamagedSnapshotError as error:
                yield f"its file {path} {error}"
            except _FolderError as error:
                parent = path.rpartition("/")[0]
                if parent not in told:
                    yield f"its folder {parent} {error}"
                told.add(parent)
            except OSError as error:
                yield f"its file {path} cannot be read: {error.strerror}"


def _damage(path: str, wanted: FileFacts, folders: dict[str, int], *, full: bool) -> Iterator[str]:
    """Compare one file with the manifest."""
    parent, _, name = path.rpartition("/")
    descriptor, facts = opened_file(name, _inner_folder(folders, parent))
    try:
        size, head = facts.st_size, os.read(descriptor, HEAD_BYTES).hex()
        same = size == wanted.size and (not full or _sha256(descriptor) == wanted.sha256)
    finally:
        os.close(descriptor)
    if size != wanted.size:
        yield f"its file {path} has {size} bytes, not {wanted.size}: it was cut or changed"
    elif head != wanted.head or not same:
        yield f"its file {path} was changed: its content is not what was written"


class _FolderError(Exception):
    """A folder of a snapshot cannot be trusted; the message is the rest of a sentence about it."""


def _close_all(folders: Mapping[str, int]) -> None:
    for folder_fd in folders.values():
        os.close(folder_fd)


def _inner_folder(folders: dict[str, int], path: str) -> int:
    """A descriptor of a folder in the snapshot, opened part by part: no part is a link, and all belong to this user.

    Raises:
        OSError: it cannot be opened.
        _FolderError: it cannot be trusted.
    """
    if path not in folders:
        parent, _, name = path.rpartition("/")
        parent_fd = _inner_folder(folders, parent)
        try:
            check_owned(os.stat(name, dir_fd=parent_fd, follow_symlinks=False), stat.S_IFDIR)
            folders[path] = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
            check_owned(os.fstat(folders[path]), stat.S_IFDIR)
        except DamagedSnapshotError as error:
            raise _FolderError(error) from None
    return folders[path]


def _head(file: Path) -> str:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return os.read(descriptor, HEAD_BYTES).hex()
    finally:
        os.close(descriptor)


def _sha256(file: Path | int) -> str:
    import hashlib  # noqa: PLC0415 - hashlib: 2.4 ms that a check without hashes saves

    with open(file, "rb", closefd=not isinstance(file, int)) as stream:
        stream.seek(0)
        return hashlib.file_digest(stream, "sha256").hexdigest()
