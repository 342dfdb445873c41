"""Hostile `side.tar` archives: each raises an error that names the member, at once, and no file lands elsewhere."""

from __future__ import annotations

import io
import math
import os
import random
import stat
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from torpor import SnapshotError
from torpor.snapshots.sandbox.side_files import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BOX = Path("/box")
SEED = 20261130
pytestmark = pytest.mark.timeout(30)


class Member(NamedTuple):
    """A member for an archive: name, type, content, link target, extended header, and other attributes."""

    name: str
    kind: bytes = tarfile.REGTYPE
    data: bytes = b""
    target: str = ""
    extended: dict[str, str] = {}  # noqa: RUF012 - never written to
    mode: int = 0o644
    numbers: dict[str, float] = {}  # noqa: RUF012 - never written to


@pytest.fixture
def box(tmp_path: Path) -> Iterator[tuple[Path, dict[Path, int]]]:
    """An empty private folder, in the form that `unpack` takes."""
    folder = tmp_path / "box"
    folder.mkdir()
    folder_fd = os.open(folder, os.O_RDONLY)
    yield folder, {BOX: folder_fd}
    os.close(folder_fd)


def write_archive(file: Path, *members: Member, form: int = tarfile.PAX_FORMAT) -> Path:
    """Write an archive with exactly these members."""
    with tarfile.open(file, "w", format=form) as tar:
        for one in members:
            member = tarfile.TarInfo(one.name)
            member.type, member.linkname, member.mode = one.kind, one.target, one.mode
            member.pax_headers = one.extended
            member.size = len(one.data)
            for name, value in one.numbers.items():
                setattr(member, name, value)
            tar.addfile(member, io.BytesIO(one.data) if one.kind == tarfile.REGTYPE else None)
    file.chmod(0o600)
    return file


def pieces(text: str, size: str) -> dict[str, str]:
    """The extended header of a file with runs of zeroes."""
    return {"TORPOR.pieces": text, "TORPOR.size": size}


HOSTILE: dict[str, tuple[Member, ...]] = {
    "a name with dots": (Member("box/../x", data=b"1"),),
    "an absolute path": (Member("/etc/faults", data=b"1"),),
    "the folder above": (Member(".", kind=tarfile.DIRTYPE),),
    "through a link": (Member("box/l", kind=tarfile.SYMTYPE, target="{outside}"), Member("box/l/x", data=b"1")),
    "a folder over a link": (
        Member("box/l", kind=tarfile.SYMTYPE, target="{outside}"),
        Member("box/l", kind=tarfile.DIRTYPE),
        Member("box/l/x", data=b"1"),
    ),
    "a file over a link": (
        Member("box/l", kind=tarfile.SYMTYPE, target="{outside}/victim"),
        Member("box/l", data=b"2"),
    ),
    "a hard link outside": (Member("box/h", kind=tarfile.LNKTYPE, target="{outside}/victim"),),
    "a hard link to a folder": (
        Member("box/d", kind=tarfile.DIRTYPE),
        Member("box/h", kind=tarfile.LNKTYPE, target="box/d"),
    ),
    "a file over a hard link to a link": (
        Member("box/l", kind=tarfile.SYMTYPE, target="{outside}/victim"),
        Member("box/h", kind=tarfile.LNKTYPE, target="box/l"),
        Member("box/h", data=b"2"),
    ),
    "the private folder as a link": (
        Member("box", kind=tarfile.SYMTYPE, target="{outside}"),
        Member("box/x", data=b"1"),
    ),
    "a character device": (Member("box/c", kind=tarfile.CHRTYPE),),
    "a block device": (Member("box/b", kind=tarfile.BLKTYPE),),
    "a file of an unknown kind": (Member("box/c", kind=b"Z", numbers={"size": 0}),),
    "a member that stands twice": (Member("box/f", data=b"1"), Member("box/f", data=b"2")),
    "a folder that stands twice": (Member("box/d", kind=tarfile.DIRTYPE), Member("box/d", kind=tarfile.DIRTYPE)),
    "a piece before the file": (Member("box/f", data=b"123", extended=pieces("-5+3", "10")),),
    "a piece of negative length": (Member("box/f", data=b"123", extended=pieces("5+-3", "10")),),
    "a piece behind the file": (Member("box/f", data=b"123", extended=pieces("8+3", "10")),),
    "pieces that are no numbers": (Member("box/f", data=b"123", extended=pieces("a+b+c", "x")),),
    "a piece of too many digits": (Member("box/f", data=b"123", extended=pieces("9" * 5000 + "+3", "10")),),
    "a size of thirty digits": (Member("box/f", data=b"123", extended=pieces("0+3", str(10**30))),),
    "a size of four exabytes": (Member("box/f", data=b"123", extended=pieces("0+3", str(2**62))),),
    "a negative size": (Member("box/f", extended=pieces("", "-1")),),
    "less than its pieces": (Member("box/f", data=b"123", extended=pieces("0+3,0+3", "10")),),
    "more than its pieces": (Member("box/f", data=b"123456", extended=pieces("0+3", "10")),),
    "a name with a NUL": (Member("box/a\0b", data=b"1", extended={"path": "box/a\0b"}),),
    "a name that is too long": (Member("box/" + "n" * 300, data=b"1"),),
    "a time without end": (Member("box/f", data=b"1", extended={"mtime": "1e300"}),),
    "a time that is no number": (Member("box/f", data=b"1", extended={"mtime": "nan"}),),
    "an endless time": (Member("box/f", data=b"1", extended={"mtime": "-inf"}),),
    "a huge user": (Member("box/f", data=b"1", extended={"uid": str(2**40)}),),
    "a negative group": (Member("box/f", data=b"1", extended={"gid": "-1"}),),
    "a sparse file of GNU tar": (
        Member("box/f", data=b"1", extended={"GNU.sparse.map": "0,1", "GNU.sparse.size": str(2**62)}),
    ),
    "a size in the extended header": (Member("box/f", data=b"1", extended={"size": str(2**60)}),),
}


@pytest.mark.fault(
    "the side files of a snapshot hold a hostile or impossible member", area="snapshot files", outcome="refused"
)
@pytest.mark.parametrize("what", HOSTILE)
def test_a_member_that_no_capture_writes_is_refused_by_name(
    box: tuple[Path, dict[Path, int]], tmp_path: Path, what: str
) -> None:
    """No file is written outside, nothing hangs, and no other exception is raised."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("untouched")
    members = [one._replace(target=one.target.format(outside=outside)) for one in HOSTILE[what]]
    archive = write_archive(tmp_path / "side.tar", *members)
    with pytest.raises(SnapshotError, match=r"Cannot unpack the side files .*side\.tar: ") as error:
        unpack(box[1], archive)
    said = str(error.value).partition("side.tar: ")[2]
    assert any(said.startswith("'" + one.name.split("\0")[0][:40]) for one in members), said
    assert "\n" not in str(error.value)
    assert {path.name for path in tmp_path.rglob("*") if not path.is_relative_to(box[0])} == {
        "outside",
        "side.tar",
        "victim",
    }
    assert (outside / "victim").read_text() == "untouched"


@pytest.mark.fault(
    "a side file that everybody may write to would run as its owner", area="snapshot files", outcome="held"
)
def test_files_that_others_can_change_lose_their_set_id_bits(box: tuple[Path, dict[Path, int]], tmp_path: Path) -> None:
    """Set-user-ID and set-group-ID are dropped there; a file that others cannot write to keeps its bits."""
    folder, folders = box
    archive = write_archive(
        tmp_path / "side.tar",
        Member("box/program", data=b"1", mode=0o6777),
        Member("box/shared", data=b"1", mode=0o2775),
        Member("box/own", data=b"1", mode=0o4755),
        Member("box/folder", kind=tarfile.DIRTYPE, mode=0o7777),
        Member("box/folder/pipe", kind=tarfile.FIFOTYPE, mode=0o6622),
    )
    unpack(folders, archive)
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in folder.rglob("*")}
    assert modes == {"program": 0o777, "shared": 0o775, "own": 0o4755, "folder": 0o3777, "pipe": 0o622}


@pytest.mark.fault("the archive of side files is a pipe, a link or a folder", area="snapshot files", outcome="refused")
@pytest.mark.parametrize(
    "put", [lambda path: os.mkfifo(path, 0o600), lambda path: path.symlink_to("/dev/zero"), Path.mkdir]
)
def test_an_archive_that_is_not_a_regular_file_is_refused(
    box: tuple[Path, dict[Path, int]], tmp_path: Path, put: Callable[[Path], object]
) -> None:
    """At once: reading a FIFO would never end."""
    put(tmp_path / "side.tar")
    with pytest.raises(
        SnapshotError, match=r"Cannot unpack the side files .*side\.tar: the archive is a .*, not a regular file"
    ):
        unpack(box[1], tmp_path / "side.tar")


@pytest.mark.fault("bytes of the side files are flipped or cut off", area="snapshot files", outcome="refused")
def test_every_mutation_of_an_archive_is_unpacked_or_refused(box: tuple[Path, dict[Path, int]], tmp_path: Path) -> None:
    """200 faults in headers and content, among them negative lengths, for which `tarfile` reads a member without end."""
    folder, folders = box
    archive = write_archive(
        tmp_path / "side.tar",
        Member("box/folder", kind=tarfile.DIRTYPE),
        Member("box/folder/file", data=b"content" * 50, extended=pieces("0+350", "9000")),
        Member("box/link", kind=tarfile.SYMTYPE, target="folder"),
        Member("box/twin", kind=tarfile.LNKTYPE, target="box/folder/file"),
    )
    whole, chosen, refused = archive.read_bytes(), random.Random(SEED), 0
    for number in range(200):
        data = bytearray(whole)
        if number % 10 == 0:
            del data[chosen.randrange(len(data)) :]
        for _ in range(chosen.randrange(1, 4)):
            if data:
                data[chosen.randrange(len(data))] = chosen.randrange(256)
        _mend_checksums(data, chosen)
        archive.write_bytes(data)
        try:
            unpack(folders, archive)
        except SnapshotError:
            refused += 1
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    assert refused > 40


def _mend_checksums(data: bytearray, chosen: random.Random) -> None:
    """Correct the checksums of half of the headers; give some a negative length in base 256."""
    for at in range(0, len(data) - 512, 512):
        if data[at + 257 : at + 262] == b"ustar" and chosen.random() < 0.5:
            if chosen.random() < 0.2:
                data[at + 124 : at + 136] = b"\xff" * 10 + bytes([chosen.randrange(256), 0])
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device")
@pytest.mark.fault("an engine has made a device in a private folder", area="snapshot files", outcome="refused")
def test_a_device_is_found_at_the_capture(box: tuple[Path, dict[Path, int]], tmp_path: Path) -> None:
    """And not only at the first restore: a snapshot cannot hold a device."""
    os.mknod(box[0] / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    with pytest.raises(SnapshotError, match=r"/box/null is a device, which a snapshot cannot hold"):
        pack(box[1], tmp_path / "side.tar", emptied=BOX / "log")
    assert [path.name for path in tmp_path.iterdir()] == ["box"]


def test_times_before_1970_and_parts_of_seconds_are_kept(box: tuple[Path, dict[Path, int]], tmp_path: Path) -> None:
    """Every time that a file can have is allowed."""
    unpack(box[1], write_archive(tmp_path / "side.tar", Member("box/f", data=b"1", extended={"mtime": "-12.5"})))
    assert math.isclose((box[0] / "f").stat().st_mtime, -12.5)
