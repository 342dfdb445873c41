"""`torpor.snapshots.sandbox.side_files`: packs and unpacks the content of private folders."""

from __future__ import annotations

import io
import os
import socket
import stat
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from torpor import NoRoomError, SnapshotError
from torpor.snapshots.sandbox.side_files import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRATCH, SHM = Path("/private/scratch"), Path("/private/shm")


class Folders:
    """Two private folders with paths as inside a sandbox."""

    def __init__(self, root: Path) -> None:
        self.outside = {SCRATCH: root / "scratch", SHM: root / "shm"}
        for folder in self.outside.values():
            folder.mkdir(parents=True)
        self.opened = {inside: os.open(folder, os.O_RDONLY) for inside, folder in self.outside.items()}

    def close(self) -> None:
        """Close the descriptors."""
        for descriptor in self.opened.values():
            os.close(descriptor)


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Folders]:
    """The folders of the dumped tree."""
    folders = Folders(tmp_path / "full")
    yield folders
    folders.close()


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Folders]:
    """The folders of a replica."""
    folders = Folders(tmp_path / "empty")
    yield folders
    folders.close()


@pytest.mark.ordinary_user
def test_everything_except_sockets_is_unpacked_unchanged(full: Folders, empty: Folders, tmp_path: Path) -> None:
    """Content, modes, times, links, pipes and odd names; a hard link stays one file."""
    scratch, shm = full.outside[SCRATCH], full.outside[SHM]
    (scratch / "folder" / "inner").mkdir(parents=True)
    (scratch / "folder").chmod(0o1777)
    (scratch / "folder" / "inner" / "odd\n\udcffname").write_bytes(os.urandom(3_000_000))
    (scratch / "suid").write_bytes(b"x")
    (scratch / "suid").chmod(0o4755)
    (scratch / "twin").hardlink_to(scratch / "suid")
    (scratch / "link").symlink_to("/etc/passwd")
    os.mkfifo(scratch / "pipe", 0o622)
    (shm / "segment").write_bytes(b"\0" * 4096)
    os.utime(shm / "segment", (1_600_000_000, 1_600_000_000.5))
    with socket.socket(socket.AF_UNIX) as local:
        local.bind(str(shm / "socket"))
        size = pack(full.opened, tmp_path / "side.tar", emptied=SCRATCH / "log")
    assert size == (tmp_path / "side.tar").stat().st_size
    assert stat.S_IMODE((tmp_path / "side.tar").stat().st_mode) == 0o600
    unpack(empty.opened, tmp_path / "side.tar")
    (shm / "socket").unlink()
    for inside, folder in full.outside.items():
        assert listing(folder) == listing(empty.outside[inside])
    twin, suid = (empty.outside[SCRATCH] / name for name in ("twin", "suid"))
    assert twin.samefile(suid)
    assert (empty.outside[SHM] / "segment").stat().st_mtime == 1_600_000_000.5


def listing(folder: Path) -> dict[str, tuple[int, str | bytes]]:
    """Mode and content of everything in a folder."""
    found: dict[str, tuple[int, str | bytes]] = {}
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        content: str | bytes = str(path.readlink()) if path.is_symlink() else b""
        if stat.S_ISREG(mode):
            content = path.read_bytes()
        found[str(path.relative_to(folder))] = mode, content
    return found


def test_runs_of_zeroes_take_no_space(full: Folders, empty: Folders, tmp_path: Path) -> None:
    """An almost empty message ring is small in the archive and in a replica's memory."""
    ring = full.outside[SHM] / "ring"
    with ring.open("wb") as file:
        for at in (0, 3 << 20, (3 << 20) + 65536, 20_000_001):
            file.seek(at)
            file.write(os.urandom(70_000))
        file.truncate(40_000_003)
    assert pack(full.opened, tmp_path / "side.tar", emptied=SCRATCH / "log") < 1_000_000
    unpack(empty.opened, tmp_path / "side.tar")
    copy = empty.outside[SHM] / "ring"
    assert copy.read_bytes() == ring.read_bytes()
    assert copy.stat().st_blocks * 512 < 1_000_000


@pytest.mark.parametrize(
    ("pieces", "size"), [("0+4", "3"), ("-1+4", "9"), ("8+4", "9"), ("0+5", "9"), ("x", "9"), ("0+4", "x")]
)
def test_pieces_that_do_not_fit_are_refused(empty: Folders, tmp_path: Path, pieces: str, size: str) -> None:
    """They lie outside of the file, are longer than the content, or are not numbers: the archive is damaged."""
    archive = tmp_path / "side.tar"
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo("private/shm/file")
        member.size, member.pax_headers = 4, {"TORPOR.pieces": pieces, "TORPOR.size": size}
        tar.addfile(member, io.BytesIO(b"data"))
    with pytest.raises(SnapshotError, match=r"Cannot unpack the side files .*side\.tar"):
        unpack(empty.opened, archive)


def test_the_log_is_packed_empty(full: Folders, empty: Folders, tmp_path: Path) -> None:
    """A replica needs the file, but begins a new log."""
    (full.outside[SCRATCH] / "log").write_text("what the first engine said")
    pack(full.opened, tmp_path / "side.tar", emptied=SCRATCH / "log")
    unpack(empty.opened, tmp_path / "side.tar")
    assert (empty.outside[SCRATCH] / "log").read_text() == ""


def test_folders_that_a_sandbox_already_has_are_no_conflict(full: Folders, empty: Folders, tmp_path: Path) -> None:
    """Every new sandbox already has `tmp` and `log` in its scratch folder."""
    for folders in (full, empty):
        (folders.outside[SCRATCH] / "tmp").mkdir()
    (full.outside[SCRATCH] / "tmp" / "file").write_text("content")
    pack(full.opened, tmp_path / "side.tar", emptied=SCRATCH / "log")
    unpack(empty.opened, tmp_path / "side.tar")
    assert (empty.outside[SCRATCH] / "tmp" / "file").read_text() == "content"


def archive_of(tmp_path: Path, *members: tuple[str, bytes, str]) -> Path:
    """An archive with members of a type, name and link target that `pack` would not write."""
    path = tmp_path / "hostile.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mode = kind, target, 0o755
            member.size = 4 if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(b"evil"))
    return path


@pytest.mark.parametrize(
    "members",
    [
        [("private/scratch/../../evil", tarfile.REGTYPE, "")],
        [("etc/evil", tarfile.REGTYPE, "")],
        [("private/scratch/missing/evil", tarfile.REGTYPE, "")],
        [("private/scratch/link", tarfile.SYMTYPE, "{outside}"), ("private/scratch/link/evil", tarfile.REGTYPE, "")],
        [("private/scratch/link", tarfile.SYMTYPE, "{outside}/evil"), ("private/scratch/link", tarfile.REGTYPE, "")],
        [("private/scratch/link", tarfile.SYMTYPE, "{outside}"), ("private/scratch/link", tarfile.DIRTYPE, "")],
        [("private/scratch/link", tarfile.LNKTYPE, "{outside}/victim")],
        [("private/scratch/link", tarfile.LNKTYPE, "private/scratch/../../victim")],
        [("private/scratch/device", tarfile.CHRTYPE, "")],
    ],
)
def test_an_archive_that_reaches_outside_is_refused(
    empty: Folders, tmp_path: Path, members: list[tuple[str, bytes, str]]
) -> None:
    """By `..`, an absolute path, a symbolic or hard link, or a device: no file is written elsewhere."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("untouched")
    archive = archive_of(tmp_path, *((name, kind, target.format(outside=outside)) for name, kind, target in members))
    with pytest.raises(SnapshotError, match="Cannot unpack the side files"):
        unpack(empty.opened, archive)
    assert [file.name for file in outside.iterdir()] == ["victim"]
    assert (outside / "victim").read_text() == "untouched"
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_truncated_archive_is_an_error(full: Folders, empty: Folders, tmp_path: Path, kept: float) -> None:
    """The message names the file."""
    (full.outside[SCRATCH] / "file").write_bytes(os.urandom(1_000_000))
    archive = tmp_path / "side.tar"
    size = pack(full.opened, archive, emptied=SCRATCH / "log")
    os.truncate(archive, int(size * kept))
    with pytest.raises(SnapshotError, match=r"side\.tar"):
        unpack(empty.opened, archive)


def test_a_missing_archive_is_an_error(empty: Folders, tmp_path: Path) -> None:
    """The message names the file."""
    with pytest.raises(SnapshotError, match=r"nowhere\.tar"):
        unpack(empty.opened, tmp_path / "nowhere.tar")


def test_an_archive_that_cannot_be_written_leaves_no_part_of_it(full: Folders, small_disk: Path) -> None:
    """A full disk; the message says so."""
    (full.outside[SCRATCH] / "file").write_bytes(os.urandom(6 << 20))
    with pytest.raises(NoRoomError, match="No space left on device"):
        pack(full.opened, small_disk / "side.tar", emptied=SCRATCH / "log")
    assert list(small_disk.iterdir()) == []
