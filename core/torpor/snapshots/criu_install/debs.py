"""Unpacks the needed files of Debian packages; without dpkg where Python knows the compression (deb(5)).

Packages are not trusted. Sizes are bounded and links stay in their folder. Members that a library package never has (devices, hard
links, a file twice) raise an error that names package and member.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import lzma
import os
import re
import shutil
import stat
import subprocess
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, cast

from typing_extensions import override

from torpor.engine.child_process import run_child
from torpor.errors import NoRoomError, SnapshotError
from torpor.network.shortage import is_disk_full

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["unpack_programs"]

_MAGIC = b"!<arch>\n"
_HEADER_BYTES = 60
_HEADER_END = b"`\n"
_MOST_ARCHIVE_MEMBERS = 16
_KEPT = ("usr/sbin/criu", "usr/lib/criu/", "usr/lib/x86_64-linux-gnu/", "lib/x86_64-linux-gnu/")
_LEFT_OUT = ("/gconv/", "/audit/", "/compel/")
_DPKG_TIMEOUT_S = 60.0
_DPKG = 'ulimit -f "$1" && exec dpkg-deb --fsys-tarfile "$2" > "$3"'
_ULIMIT_BLOCK = 512  # unit of `ulimit -f` in sh(1)
_MOST_MEMBERS = 20_000
_MOST_BYTES = 256 << 20
_LEAST_ALLOWED_BYTES = 16 << 20
_MOST_EXPANSION = 40
"""Largest ratio of unpacked to packed size; C libraries have 4 to 8."""
_MODULES = {".xz": "lzma", ".gz": "gzip", ".bz2": "bz2"}
_END = tarfile.EOFHeaderError  # type: ignore[attr-defined, unused-ignore]
_DAMAGED = tarfile.HeaderError
_COPY_BYTES = 1 << 20
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SHOWN_CHARACTERS = 120


def unpack_programs(package: Path, root: Path) -> None:
    """Unpack only CRIU and shared libraries from a package, without owners and special mode bits.

    Args:
        package: a `.deb` file.
        root: folder to unpack into.

    Raises:
        NoRoomError: the disk of the folder is full.
        SnapshotError: the package is damaged, has a forbidden member, or nothing here knows its compression; the message names
            package and member.
    """
    member = ""
    done: set[PurePosixPath] = set()
    try:
        with _content(package) as tar:
            for found in _members(tar):
                member = found.name
                path = PurePosixPath(member.removeprefix("./"))
                if str(path).startswith(_KEPT) and not any(part in f"/{path}" for part in _LEFT_OUT):
                    _unpack_member(tar, found, root, path, done)
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, ValueError, OSError) as error:
        if is_disk_full(error):
            raise NoRoomError(
                f"There is no room in {root} for the package file {package.name}. Free some room."
            ) from error
        where = f" at or after its member {_shown(member)}" if member else ""
        raise SnapshotError(
            f"The package file {package.name} is damaged{where}: {error}. Nothing of it is used; fetch it again or from another "
            "mirror (--mirror)."
        ) from error


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for number, member in enumerate(tar):
        if number >= _MOST_MEMBERS:
            raise ValueError(f"it has more than {_MOST_MEMBERS} members")
        yield member


def _unpack_member(
    tar: tarfile.TarFile, member: tarfile.TarInfo, root: Path, path: PurePosixPath, done: set[PurePosixPath]
) -> None:
    """Unpack a file or link below the root.

    Raises:
        ValueError: it is something else, or leads out of its folder.
    """
    if ".." in path.parts or _CONTROL.search(member.name):
        raise ValueError("its name leads out of the package or holds control characters")
    if member.isdir():
        return
    if member.issparse() or not (member.isreg() or member.issym()):
        raise ValueError("it is not a plain file, folder or symbolic link")
    if path in done:
        raise ValueError("the package has it twice")
    done.add(path)
    target = root / path
    _make_parents(root, path)
    target.unlink(missing_ok=True)
    if member.issym():
        target.symlink_to(_name_beside(member.linkname))
        return
    source = tar.extractfile(member)
    if source is None or member.size < 0:
        raise ValueError(f"it has no content (size {member.size})")
    with target.open("xb") as stream:
        shutil.copyfileobj(source, stream, _COPY_BYTES)
        if stream.tell() != member.size:
            raise ValueError(f"it has {stream.tell()} bytes of {member.size}")
    target.chmod(0o755 if member.mode & 0o100 else 0o644)


def _make_parents(root: Path, path: PurePosixPath) -> None:
    """Make the folders of a member; a link among them is refused, since files would land elsewhere."""
    folder = root
    folder.mkdir(parents=True, exist_ok=True)
    for part in path.parts[:-1]:
        folder /= part
        if folder.is_symlink():
            raise ValueError(f"its folder {part} is a symbolic link")
        folder.mkdir(exist_ok=True)


def _name_beside(link: str) -> str:
    """The last part of a link's target: another name of a library, in the same folder."""
    name = link.rpartition("/")[2]
    if name in ("", ".", "..") or _CONTROL.search(link):
        raise ValueError(f"it is a symbolic link to {_shown(link)}, which is not a file beside it")
    return name


def _shown(text: str) -> str:
    return ascii(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}...")


class _Strict(tarfile.TarInfo):
    """A member whose damaged header is an error; `tarfile` would take it for the end of the archive."""

    @classmethod
    @override
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> _Strict:
        try:
            return super().fromtarfile(tarfile)
        except _END:
            raise
        except _DAMAGED as error:
            raise ValueError(f"the next header is damaged ({error})") from error


class _Part(io.RawIOBase):
    """The next `length` bytes of a stream, as a stream."""

    def __init__(self, stream: IO[bytes], length: int) -> None:
        self._stream = stream
        self._left = length

    @override
    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # of RawIOBase
        data = self._stream.read(min(len(buffer), self._left))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


class _Bounded:
    """A stream that raises an error at a limit: a small file may unpack to any size."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._left = limit

    def read(self, size: int) -> bytes:
        data = self._stream.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"it unpacks to more than {self._limit >> 20} MB")
        return data


@contextlib.contextmanager
def _content(package: Path) -> Iterator[tarfile.TarFile]:
    """The files of the package, unpacked by Python, or by dpkg-deb if Python lacks the compression (zstd before 3.14)."""
    with _regular(package) as stream:
        name, length = _to_data(stream)
        limit = min(_MOST_BYTES, max(_LEAST_ALLOWED_BYTES, _MOST_EXPANSION * length))
        with contextlib.ExitStack() as stack:
            part = io.BufferedReader(_Part(stream, length))
            unpacked = _by_python(name, part, stack) or stack.enter_context(_by_dpkg(package, name, limit))
            bounded = cast("IO[bytes]", _Bounded(unpacked, limit))
            yield stack.enter_context(tarfile.open(fileobj=bounded, mode="r|", tarinfo=_Strict))


@contextlib.contextmanager
def _regular(package: Path) -> Iterator[IO[bytes]]:
    """Open a file and check the descriptor: reading a FIFO would never end."""
    descriptor = os.open(package, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is not a regular file")
        yield stream


def _by_python(name: str, stream: IO[bytes], stack: contextlib.ExitStack) -> IO[bytes] | None:
    """The unpacked content as a stream; None if this Python lacks the compression."""
    suffix = name.removeprefix("data.tar")
    if suffix == "":
        return stream
    if suffix == ".zst":
        try:
            from compression import zstd  # type: ignore[import-not-found, unused-ignore] # noqa: PLC0415 - only where Python has it: 3.14
        except ImportError:
            return None
        unpacked: IO[bytes] = stack.enter_context(zstd.open(stream))
        return unpacked
    module = _MODULES.get(suffix)
    if module is None or suffix[1:] not in tarfile.TarFile.OPEN_METH:  # a Python may have been built without one
        return None
    opened: IO[bytes] = stack.enter_context(importlib.import_module(module).open(stream, "rb"))
    return opened


@contextlib.contextmanager
def _by_dpkg(package: Path, name: str, limit: int) -> Iterator[IO[bytes]]:
    """The content, unpacked by dpkg-deb into a file that cannot grow beyond the limit."""
    if not shutil.which("dpkg-deb"):
        raise SnapshotError(
            f"{package.name} holds {name}, which this Python cannot read, and there is no dpkg-deb. Install dpkg, or use Python "
            "3.14 or newer (zstd), or a Python that was built with lzma (xz)."
        )
    with tempfile.TemporaryDirectory(prefix="torpor-deb-") as folder:
        file = Path(folder, "data.tar")
        blocks = str(limit // _ULIMIT_BLOCK + 1)
        argv = ("/bin/sh", "-c", _DPKG, "sh", blocks, str(package.absolute()), str(file))
        try:
            done = run_child(argv, timeout_s=_DPKG_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise ValueError(f"dpkg-deb did not finish within {_DPKG_TIMEOUT_S:g} s") from None
        if done.returncode != 0 and not (file.exists() and file.stat().st_size > limit):
            said = done.stderr.decode(errors="replace").strip().replace("\n", "; ")
            raise ValueError(f"dpkg-deb cannot read it ({said[:500] or done.returncode})")
        with file.open("rb") as stream:
            yield stream


def _to_data(stream: IO[bytes]) -> tuple[str, int]:
    """Seek to the content of `data.tar.*` in the archive; its name and length (ar(5): 60-byte headers, even lengths).

    Raises:
        ValueError: there is none, or the archive is damaged.
    """
    end = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if stream.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("it is not a package file")
    for _ in range(_MOST_ARCHIVE_MEMBERS):
        header = stream.read(_HEADER_BYTES)
        if len(header) != _HEADER_BYTES:
            break
        name = header[:16].decode("ascii", errors="replace").strip().rstrip("/")
        length = header[48:58].strip()
        if header[58:] != _HEADER_END or not length.isdigit():
            raise ValueError(
                f"the header of {_shown(name)} in it is damaged (size {_shown(length.decode('ascii', 'replace'))})"
            )
        size = int(length)
        if stream.tell() + size > end:
            raise ValueError(f"it ends too early: {_shown(name)} in it has {end - stream.tell()} bytes of {size}")
        if name.startswith("data.tar"):
            return name, size
        stream.seek(size + size % 2, os.SEEK_CUR)
    raise ValueError("it ends too early, or has no data.tar")
