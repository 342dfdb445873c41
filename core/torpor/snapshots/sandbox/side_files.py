"""Packs the content of a sandbox's private folders beside CRIU's images, since CRIU saves open files as paths only.

The archive is a tar file without the runs of zeroes in files: engines keep message rings in /dev/shm that are hundreds of megabytes
long and almost empty (vLLM 0.32: 420 MB). The extended header of a member lists the pieces of its content.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
import time
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, cast

from torpor.errors import DamagedSnapshotError, NoRoomError, SnapshotError
from torpor.network.shortage import is_disk_full
from torpor.snapshots.store.fields import NEW_ONE, shown
from torpor.snapshots.store.reading import opened_file, opened_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["pack", "unpack"]

_COPY_BYTES = 1 << 20
_BLOCK = 1 << 16
_ZEROS = bytes(_BLOCK)
_PIECES, _SIZE = "TORPOR.pieces", "TORPOR.size"
_MOST_BYTES = 1 << 40  # of a file, with its runs of zeroes
_MOST_SECONDS = 1 << 36  # of a modification time, before and after 1970
_LAST_ID = (1 << 32) - 2
_OTHERS_WRITE = 0o022
_UNPACK_S = 110.0  # a restore has 120
_ERRORS = (OSError, ValueError, OverflowError, RecursionError, EOFError, tarfile.TarError)


def pack(folders: Mapping[Path, int], archive: Path, *, emptied: Path) -> int:
    """Pack the folders into a tar archive (0600), completely or not at all.

    Args:
        folders: by path inside the sandbox, a descriptor of the folder.
        archive: the file to write.
        emptied: a file that is packed without its content.

    Returns:
        The archive's size in bytes.

    Raises:
        NoRoomError: the disk is full.
        SnapshotError: the archive cannot be written, or a file cannot be read.
    """
    unfinished = archive.with_name(f".{archive.name}.unfinished")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with (
            os.fdopen(descriptor, "wb") as stream,
            tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for folder, folder_fd in folders.items():
                _add_folder(tar, folder, folder_fd, emptied)
        unfinished.rename(archive)
        return archive.stat().st_size
    except OSError as error:
        kind = NoRoomError if is_disk_full(error) else SnapshotError
        raise kind(f"Cannot pack the private folders into {archive}: {error.strerror or error}.") from error
    finally:
        unfinished.unlink(missing_ok=True)


def unpack(folders: Mapping[Path, int], archive: Path) -> None:
    """Unpack an archive into the folders.

    Raises:
        DamagedSnapshotError: the archive is missing, or others may write to it.
        SnapshotError: the archive is damaged, holds a path outside of the folders, or there is no room.
    """
    try:
        descriptor = _opened(archive)
        with os.fdopen(descriptor, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            _unpack_all(tar, folders)
    except SnapshotError as error:
        raise DamagedSnapshotError(f"Cannot unpack the side files {archive}: the archive {error}; {NEW_ONE}") from None
    except _ERRORS as error:
        raise SnapshotError(
            f"Cannot unpack the side files {archive}: {shown(str(error), 500)}. Either this machine has too little memory, or the "
            "snapshot is damaged; then take a new one."
        ) from error


def _opened(archive: Path) -> int:
    """A descriptor of the archive.

    Raises:
        SnapshotError: it is missing, or others may write to it.
    """
    try:
        folder_fd = opened_folder(archive.parent)
        try:
            return opened_file(archive.name, folder_fd)[0]
        finally:
            os.close(folder_fd)
    except FileNotFoundError:
        raise SnapshotError("is missing") from None


def _unpack_all(tar: tarfile.TarFile, folders: Mapping[Path, int]) -> None:
    unpacked = {PurePosixPath(folder): True for folder in folders}
    deadline = time.monotonic() + _UNPACK_S
    for member in tar:
        try:
            _unpack(tar, member, folders, unpacked)
        except _ERRORS as error:
            raise tarfile.TarError(f"{member.name!r}: {error}") from error
        if time.monotonic() > deadline:
            raise tarfile.TarError(f"only as far as {member.name!r} was unpacked within {_UNPACK_S:g} s")


def _add_folder(tar: tarfile.TarFile, folder: Path, folder_fd: int, emptied: Path) -> None:
    top = f"/proc/self/fd/{folder_fd}"
    device = os.fstat(folder_fd).st_dev
    for path, inner_folders, files in os.walk(top):
        inner_folders[:] = [name for name in inner_folders if os.lstat(f"{path}/{name}").st_dev == device]
        for name in sorted(inner_folders) + sorted(files):
            inside = folder / f"{path}/{name}"[len(top) + 1 :]
            member = tar.gettarinfo(f"{path}/{name}", arcname=str(inside))
            if member is None:  # a socket, which CRIU binds again
                continue
            if member.ischr() or member.isblk():
                raise SnapshotError(
                    f"{inside} is a device, which a snapshot cannot hold. Remove it before the capture."
                )
            if member.isreg() and inside != emptied:
                with open(f"{path}/{name}", "rb") as content:  # noqa: PTH123
                    _add_file(tar, member, content)
            else:
                member.size = 0
                tar.addfile(member)


def _add_file(tar: tarfile.TarFile, member: tarfile.TarInfo, content: io.BufferedReader) -> None:
    """Add a file without its runs of zeroes."""
    pieces = _pieces(content)
    member.pax_headers = {
        _PIECES: ",".join(f"{start}+{length}" for start, length in pieces),
        _SIZE: str(member.size),
    }
    member.size = sum(length for _, length in pieces)
    tar.addfile(member, cast("IO[bytes]", _Joined(content, pieces)))


def _pieces(content: io.BufferedReader) -> list[tuple[int, int]]:
    """The pieces of a file between runs of zeroes: start and length in bytes, ascending."""
    pieces: list[tuple[int, int]] = []
    at = 0
    while block := content.read(_BLOCK):
        if block != _ZEROS[: len(block)]:
            start, length = pieces[-1] if pieces else (at, 0)
            if start + length == at:
                pieces[-1:] = [(start, length + len(block))]
            else:
                pieces.append((at, len(block)))
        at += len(block)
    return pieces


class _Joined:
    """Reads the pieces of a file one after another."""

    def __init__(self, content: io.BufferedReader, pieces: list[tuple[int, int]]) -> None:
        self._content = content
        self._left = list(reversed(pieces))

    def read(self, size: int) -> bytes:
        """The next bytes; fewer than `size` only at the end."""
        data = b""
        while len(data) < size and self._left:
            start, length = self._left.pop()
            self._content.seek(start)
            chunk = self._content.read(min(length, size - len(data)))
            if not chunk:
                break  # the file became shorter: tarfile raises an error
            data += chunk
            if length > len(chunk):
                self._left.append((start + len(chunk), length - len(chunk)))
        return data


def _write(stream: io.BufferedWriter, content: IO[bytes], member: tarfile.TarInfo) -> None:
    """Write the pieces of a file to their positions; holes stay between them."""
    size = int(member.pax_headers.get(_SIZE, member.size))
    if not 0 <= size <= _MOST_BYTES:
        raise tarfile.TarError(f"it has a size of {size} bytes")
    for piece in filter(None, member.pax_headers.get(_PIECES, f"0+{member.size}").split(",")):
        start, length = (int(number) for number in piece.split("+"))
        if not 0 <= start <= start + length <= size:
            raise tarfile.TarError("a piece lies outside of the file")
        stream.seek(start)
        while length:
            if not (chunk := content.read(min(_COPY_BYTES, length))):
                raise tarfile.TarError("it is shorter than its pieces")
            length -= stream.write(chunk)
    if content.read(1):
        raise tarfile.TarError("it is longer than its pieces")
    stream.truncate(size)


def _unpack(
    tar: tarfile.TarFile, member: tarfile.TarInfo, folders: Mapping[Path, int], unpacked: dict[PurePosixPath, bool]
) -> None:
    """Unpack a member, and note whether it is a folder. Its own folder must be unpacked before, so that no link leads elsewhere."""
    path = PurePosixPath("/", member.name)
    if not unpacked.get(path.parent) or ".." in path.parts:
        raise tarfile.TarError("it lies in none of the private folders")
    if path in unpacked:
        raise tarfile.TarError("it is in the archive twice")
    _check_numbers(member)
    target = _outside(path, folders)
    if member.isdir():
        with contextlib.suppress(FileExistsError):
            os.mkdir(target)  # noqa: PTH102 - paths under /proc/self/fd, not for pathlib
        if not stat.S_ISDIR(os.lstat(target).st_mode):
            raise tarfile.TarError("it is not a folder")
    elif member.issym():
        os.symlink(member.linkname, target)  # noqa: PTH211
    elif member.islnk():
        original = PurePosixPath("/", member.linkname)
        if unpacked.get(original) is not False:
            raise tarfile.TarError(f"it is a link to {member.linkname!r}, which is not a file of the archive")
        os.link(_outside(original, folders), target, follow_symlinks=False)
    elif member.isfifo():
        os.mkfifo(target)
    elif member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse():
        content = tar.extractfile(member) or io.BytesIO()
        with _created(target) as stream:
            _write(stream, content, member)
    else:
        raise tarfile.TarError("it is of a kind that `pack` never writes")
    unpacked[path] = member.isdir()
    _set_attributes(target, member)


def _check_numbers(member: tarfile.TarInfo) -> None:
    for what, value, least, most in (
        ("size", member.size, 0, _MOST_BYTES),
        ("user", member.uid, 0, _LAST_ID),
        ("group", member.gid, 0, _LAST_ID),
        ("modification time", member.mtime, -_MOST_SECONDS, _MOST_SECONDS),
    ):
        if not least <= value <= most:  # also refuses NaN
            raise tarfile.TarError(f"its {what} is {value:g}")


def _outside(path: PurePosixPath, folders: Mapping[Path, int]) -> str:
    """The path by which this process reaches a path inside the sandbox."""
    folder = max((folder for folder in folders if path.is_relative_to(folder)), key=lambda folder: len(folder.parts))
    return f"/proc/self/fd/{folders[folder]}/{path.relative_to(folder)}"


@contextlib.contextmanager
def _created(target: str) -> Iterator[io.BufferedWriter]:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        yield stream


def _set_attributes(target: str, member: tarfile.TarInfo) -> None:
    if os.geteuid() == 0:
        os.chown(target, member.uid, member.gid, follow_symlinks=False)
    if not member.issym():
        os.chmod(target, _mode(member))  # noqa: PTH101
        os.utime(target, (member.mtime, member.mtime))


def _mode(member: tarfile.TarInfo) -> int:
    """The mode of a member; set-user-ID and set-group-ID are dropped if other users may write to the file.

    Otherwise the bits stay as they were: private folders are mounted `nosuid`, so they have no effect there.
    """
    if member.isdir():
        return member.mode & 0o3777
    return member.mode & (0o1777 if member.mode & _OTHERS_WRITE else 0o7777)
