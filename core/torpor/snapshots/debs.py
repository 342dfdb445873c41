"""Debian package files: what is needed of one is unpacked, without dpkg where Python can (deb(5))."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import tarfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from torpor.child_process import run_child
from torpor.errors import SnapshotError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["unpack_programs"]

_MAGIC = b"!<arch>\n"
_HEADER_BYTES = 60
_KEPT = ("usr/sbin/criu", "usr/lib/criu/", "usr/lib/x86_64-linux-gnu/", "lib/x86_64-linux-gnu/")
_LEFT_OUT = ("/gconv/", "/audit/", "/compel/")
_DPKG_TIMEOUT_S = 60.0


def unpack_programs(package: Path, root: Path) -> None:
    """Unpack CRIU and the shared libraries out of a package, nothing else of it; owners and special bits are dropped.

    Args:
        package: a `.deb` file.
        root: where to; `lib` and `usr/lib` become one.

    Raises:
        SnapshotError: it is damaged, or packed in a way that nothing here can read.
    """
    try:
        with _content(package) as tar:
            for member in tar:
                path = PurePosixPath(member.name.removeprefix("./"))
                if str(path).startswith(_KEPT) and not any(part in f"/{path}" for part in _LEFT_OUT):
                    _unpack_member(tar, member, root / path)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise SnapshotError(f"The package file {package.name} is damaged: {error}.") from error


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    if ".." in target.parts or not (member.isreg() or member.issym()):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if member.issym():
        target.symlink_to(Path(member.linkname).name)  # a library's other name, in the same folder
        return
    with target.open("xb") as stream:
        shutil.copyfileobj(tar.extractfile(member) or io.BytesIO(), stream)
    target.chmod(0o755 if member.mode & 0o100 else 0o644)


@contextlib.contextmanager
def _content(package: Path) -> Iterator[tarfile.TarFile]:
    """The package's files: read by Python, or by dpkg-deb where Python lacks the compression (zstd before 3.14)."""
    name, data = _data_member(package)
    try:
        tar = tarfile.open(fileobj=io.BytesIO(data), mode="r:*")  # noqa: SIM115 - closed below
    except tarfile.ReadError:
        if not shutil.which("dpkg-deb"):
            raise SnapshotError(
                f"{package.name} holds {name}, which this Python cannot read and there is no dpkg-deb: install dpkg, or use "
                "Python 3.14 or newer (zstd), or a Python that was built with lzma (xz)."
            ) from None
        tar = tarfile.open(fileobj=io.BytesIO(_by_dpkg(package)), mode="r:")  # noqa: SIM115
    with tar:
        yield tar


def _by_dpkg(package: Path) -> bytes:
    try:
        unpacked = run_child(["dpkg-deb", "--fsys-tarfile", str(package)], timeout_s=_DPKG_TIMEOUT_S)
        unpacked.check_returncode()
    except subprocess.SubprocessError as error:
        raise SnapshotError(f"dpkg-deb cannot read {package.name}: {error}.") from error
    return unpacked.stdout


def _data_member(package: Path) -> tuple[str, bytes]:
    """Name and content of the archive's `data.tar.*` (ar(5): 60-byte headers, content padded to even length)."""
    with package.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("it is no package file")
        while len(header := stream.read(_HEADER_BYTES)) == _HEADER_BYTES:
            name = header[:16].decode("ascii", errors="replace").strip().rstrip("/")
            size = int(header[48:58])
            if name.startswith("data.tar"):
                data = stream.read(size)
                if len(data) != size:
                    break
                return name, data
            stream.seek(size + size % 2, io.SEEK_CUR)
    raise ValueError("it ends too early")
