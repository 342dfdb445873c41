"""`torpor.snapshots.criu.mapped_memory` and the modules below it: what replicas map, and what CRIU goes on copying."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.snapshots.conftest import wait_for
from torpor import SnapshotError
from torpor.snapshots.criu.allocators import needs_zeroes
from torpor.snapshots.criu.images import Image, Message
from torpor.snapshots.criu.mapped_memory import map_memory
from torpor.snapshots.criu.run import dump, restore
from torpor.snapshots.sandbox.sandbox import FIRST_PID, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.snapshots.conftest import MakeSandbox
    from torpor.snapshots.criu.program import Criu

PROGRAM = Path(__file__).with_name("memory_program.py")
MEGABYTES = 24
TIMEOUT_S = 60.0


def ask(sandbox: Sandbox, command: str = "sum", *, port: int = 8000) -> dict[str, str]:
    """One command to `memory_program.py`."""
    with sandbox.connect(port, timeout_s=20.0) as connection, connection.makefile("rw") as lines:
        lines.write(command + "\n")
        lines.flush()
        answer: dict[str, str] = json.loads(lines.readline())
    return answer


def mappings(sandbox: Sandbox, pid: int = FIRST_PID) -> dict[str, int]:
    """Bytes of each snapshot file that a process of the tree maps, by default its leader."""
    pid = sandbox.host_pids()[pid]
    found: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if match := re.match(r"(\w+)-(\w+) (\S+) .* (\S*/memory-\d+\.img)$", line):
            start, end, access, name = match.groups()
            assert access == "rw-p"
            found[name] = found.get(name, 0) + int(end, 16) - int(start, 16)
    return found


def own_megabytes(sandbox: Sandbox) -> float:
    """Memory that the leader shares with nobody."""
    pid = sandbox.host_pids()[FIRST_PID]
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(number) for number in re.findall(r"^Anonymous: +(\d+) kB", rollup, re.MULTILINE)) / 1024


def hashes(images: Path) -> dict[str, str]:
    """The hash of every file."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in images.iterdir() if file.is_file()}


@pytest.fixture
def images(criu: Criu, make_sandbox: MakeSandbox, tmp_path: Path) -> Path:
    """A dump of `memory_program.py`; `before.json` has its answer before."""
    original = make_sandbox("original")
    original.spawn([sys.executable, str(PROGRAM), str(MEGABYTES)], env={"PATH": os.environ["PATH"]})
    assert wait_for(original.log_tail, 20.0), original.poll()
    (tmp_path / "before.json").write_text(json.dumps(ask(original)))
    dumped = dump(criu, original, tmp_path / "images", timeout_s=TIMEOUT_S)
    assert dumped.mapped_bytes > MEGABYTES << 20
    original.kill()
    return tmp_path / "images"


@pytest.fixture
def copies(criu: Criu, make_sandbox: MakeSandbox, tmp_path: Path, images: Path) -> Callable[[str], Sandbox]:
    """Restores of that dump."""

    def copy(name: str) -> Sandbox:
        replica = make_sandbox(name)
        (tmp_path / name).mkdir(mode=0o700)
        restore(criu, replica, images, work=tmp_path / name, timeout_s=TIMEOUT_S)
        return replica

    return copy


@pytest.mark.criu
@pytest.mark.ordinary_user
def test_replicas_share_the_files_and_never_each_others_writes(
    copies: Callable[[str], Sandbox], images: Path, tmp_path: Path
) -> None:
    """What one writes is not seen by the others, by a later replica, or in the files."""
    before, kept = json.loads((tmp_path / "before.json").read_text()), hashes(images)
    one, two = copies("one"), copies("two")
    assert mappings(one) == mappings(two)
    assert sum(mappings(one).values()) > MEGABYTES << 20
    assert own_megabytes(two) < MEGABYTES / 2
    assert ask(one) == ask(two) == before
    changed = ask(one, "write 5")
    assert changed["buffer"] != before["buffer"]
    assert changed["block"] != before["block"]
    assert own_megabytes(one) > MEGABYTES
    assert ask(two) == before
    assert ask(copies("three")) == before
    assert hashes(images) == kept


@pytest.mark.criu
def test_a_block_that_grows_by_mremap_does_not_run_into_the_file(
    copies: Callable[[str], Sandbox], tmp_path: Path
) -> None:
    """It would get SIGBUS behind the end of the file: glibc's realloc grows such a block's mapping."""
    before = json.loads((tmp_path / "before.json").read_text())
    replica = copies("one")
    for megabytes in (1, 64, 400):
        assert ask(replica, f"grow {megabytes}")["block"] == before["block"]
    assert replica.poll() is None


@pytest.mark.criu
def test_a_page_given_back_shows_what_was_captured(copies: Callable[[str], Sandbox]) -> None:
    """Not zeroes, as in anonymous memory; so CRIU copies processes with jemalloc or Go's runtime."""
    replica = copies("one")
    assert int.from_bytes(bytes.fromhex(ask(replica, "write 5")["first"]), "little") == 5
    assert int.from_bytes(bytes.fromhex(ask(replica, "trim")["first"]), "little") == 1


@pytest.mark.criu
@pytest.mark.parametrize("copy_memory", [False, True])
def test_a_snapshot_of_a_replica_needs_no_other_snapshot(
    criu: Criu,
    copies: Callable[[str], Sandbox],
    make_sandbox: MakeSandbox,
    images: Path,
    tmp_path: Path,
    *,
    copy_memory: bool,
) -> None:
    """It holds what the replica mapped and what it wrote; the first snapshot can be deleted."""
    replica = copies("one")
    untouched = ask(replica)
    ask(replica, "write 5")
    ask(replica, "trim")  # some of it as captured
    before = ask(replica)
    assert before != untouched
    again = tmp_path / "again"
    dumped = dump(criu, replica, again, timeout_s=TIMEOUT_S, copy_memory=copy_memory)
    assert dumped.mapped_bytes > MEGABYTES << 20
    shutil.rmtree(images)
    for name in ("two", "three"):
        copy = make_sandbox(name)
        (tmp_path / name).mkdir(mode=0o700)
        restore(criu, copy, again, work=tmp_path / name, timeout_s=TIMEOUT_S)
        assert {Path(file).parent for file in mappings(copy)} == {again}
        assert ask(copy) == before
    written = sum(file.stat().st_blocks * 512 for file in again.glob("*.img"))
    assert written < 2.2 * (MEGABYTES << 20)


@pytest.mark.criu
@pytest.mark.ordinary_user
def test_pages_that_forks_share_are_written_once(criu: Criu, make_sandbox: MakeSandbox, tmp_path: Path) -> None:
    """They map their parent's file; each can write to its pages without the others seeing it.

    The same holds for a snapshot of a replica, which needs no other snapshot.
    """
    ports = (8000, 8001, 8002)
    tree = make_sandbox("original")
    tree.spawn([sys.executable, str(PROGRAM), str(MEGABYTES), "2"], env={"PATH": os.environ["PATH"]})
    assert wait_for(lambda: len(tree.log_tail()) == len(ports), 20.0), tree.poll()
    before = [ask(tree, port=port) for port in ports]
    assert len({answer["buffer"] for answer in before}) == len(ports)
    for name, earlier in (("one", ""), ("two", "one")):
        images = tmp_path / f"images-{name}"
        dump(criu, tree, images, timeout_s=TIMEOUT_S)
        shutil.rmtree(tmp_path / f"images-{earlier}", ignore_errors=not earlier)
        assert sum(file.stat().st_blocks * 512 for file in images.glob("*.img")) < 1.8 * (MEGABYTES << 20)
        tree = make_sandbox(name)
        (tmp_path / name).mkdir(mode=0o700)
        restore(criu, tree, images, work=tmp_path / name, timeout_s=TIMEOUT_S)
        assert [ask(tree, port=port) for port in ports] == before
        leader, *forks = sorted(pid for pid in tree.host_pids() if pid >= FIRST_PID)
        for fork in forks:
            files = mappings(tree, fork)
            assert {Path(file).parent for file in files} == {images}
            assert files[str(images / f"memory-{leader}.img")] > 0.9 * (MEGABYTES << 20)
        before[1] = ask(tree, "write 5", port=8001)
        assert [ask(tree, port=port) for port in ports] == before
        before[1] = ask(tree, "write 1", port=8001)  # now it has its parent's content, in pages of its own
        assert before[1]["buffer"] == before[0]["buffer"]


@pytest.mark.criu
def test_replicas_run_on_when_the_snapshot_is_removed(copies: Callable[[str], Sandbox], images: Path) -> None:
    """The kernel keeps the files until the last replica ends."""
    replica = copies("one")
    before = ask(replica)
    for file in images.iterdir():
        file.unlink()
    images.rmdir()
    assert ask(replica) == before
    ask(replica, "write 9")


@pytest.mark.criu
def test_memory_is_copied_if_asked_for(criu: Criu, make_sandbox: MakeSandbox, tmp_path: Path) -> None:
    """CRIU then restores it as without Torpor."""
    original = make_sandbox("original")
    original.spawn([sys.executable, str(PROGRAM), "4"], env={"PATH": os.environ["PATH"]})
    assert wait_for(original.log_tail, 20.0), original.poll()
    before = ask(original)
    dumped = dump(criu, original, tmp_path / "images", timeout_s=TIMEOUT_S, copy_memory=True)
    assert dumped.mapped_bytes == 0
    assert not list((tmp_path / "images").glob("memory-*.img"))
    replica = make_sandbox("replica")
    (tmp_path / "work").mkdir(mode=0o700)
    restore(criu, replica, tmp_path / "images", work=tmp_path / "work", timeout_s=TIMEOUT_S)
    assert ask(replica) == before
    assert mappings(replica) == {}


def elf(path: Path, sections: dict[str, bytes]) -> Path:
    """A file with an ELF header and these sections."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in (*sections, ".shstrtab"))
    contents = [*sections.values(), names]
    offsets = [64 + sum(map(len, contents[:number])) for number in range(len(contents))]
    table = 64 + sum(map(len, contents))
    entries = b"".join(
        struct.pack("<IIQQQQIIQQ", names.index(name.encode() + b"\0"), 1, 0, 0, offset, len(content), 0, 0, 1, 0)
        for name, offset, content in zip((*sections, ".shstrtab"), offsets, contents, strict=True)
    )
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01",
        3,
        62,
        1,
        0,
        0,
        table,
        0,
        64,
        0,
        0,
        64,
        len(contents),
        len(contents) - 1,
    )
    path.write_bytes(header + b"".join(contents) + entries)
    return path


@pytest.mark.parametrize(
    ("sections", "found"),
    [
        ({".text": b"<jemalloc>", ".rodata": b"nothing"}, ""),
        ({".text": b"code", ".rodata": b"\0<jemalloc>: Error in %s\0"}, "jemalloc"),
        ({".go.buildinfo": b"x", ".rodata": b""}, "Go's runtime"),
        ({}, ""),
    ],
)
def test_allocators_that_rely_on_zeroes_are_found(tmp_path: Path, sections: dict[str, bytes], found: str) -> None:
    """By jemalloc's own messages, and by the section that every Go program has."""
    assert needs_zeroes(elf(tmp_path / "library.so", sections)) == found


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF\x02\x01", b"\x7fELF\x02\x01" + b"\xff" * 100])
def test_files_that_are_not_libraries_are_skipped(tmp_path: Path, content: bytes) -> None:
    """Scripts, and truncated files."""
    (tmp_path / "file").write_bytes(content)
    assert needs_zeroes(tmp_path / "file") == ""
    assert needs_zeroes(tmp_path / "gone") == ""


@pytest.mark.criu
@pytest.mark.parametrize(("section", "reason"), [(".rodata", "jemalloc"), (None, "not glibc")])
def test_criu_copies_a_process_that_relies_on_zeroes(
    criu: Criu, make_sandbox: MakeSandbox, tmp_path: Path, section: str | None, reason: str
) -> None:
    """Its images stay as CRIU wrote them, and the result has the reason."""
    original = make_sandbox("original")
    original.spawn([sys.executable, str(PROGRAM), "4"], env={"PATH": os.environ["PATH"]})
    assert wait_for(original.log_tail, 20.0), original.poll()
    images = tmp_path / "images"
    dump(criu, original, images, timeout_s=TIMEOUT_S, copy_memory=True)
    files = Image.read(images / "files.img")
    for number, entry in enumerate(files.messages):
        regular = Message.parse(entry.data(3))
        if regular.data(6).endswith(b"/libc.so.6"):
            other = elf(tmp_path / "libother.so", {".rodata": b"<jemalloc>"}) if section else Path("/lib/ld-musl.so")
            path = [(field, kind, os.fsencode(other) if field == 6 else value) for field, kind, value in regular.fields]
            files.messages[number] = Message(
                [(field, kind, Message(path).pack() if field == 3 else value) for field, kind, value in entry.fields]
            )
    files.write(images / "files.img")
    before = hashes(images)
    mapped = map_memory(images, Path("/scratch/memory"), filtered=False)
    assert mapped.bytes == 0
    assert list(mapped.copied) == [FIRST_PID]
    assert reason in mapped.copied[FIRST_PID]
    assert hashes(images) == before


def test_an_image_is_written_as_it_was_read(tmp_path: Path) -> None:
    """Including unknown fields, large numbers and nested messages."""
    message = Message(
        [(1, 0, 0), (2, 0, (1 << 64) - 1), (3, 2, b"\0text"), (4, 1, b"12345678"), (5, 5, b"1234"), (900, 0, 128)]
    )
    image = Image(magic=b"\x19CVT%@\x08V", messages=[message, Message()])
    image.write(tmp_path / "one.img")
    again = Image.read(tmp_path / "one.img")
    assert again.magic == image.magic
    assert [one.fields for one in again.messages] == [message.fields, []]
    again.write(tmp_path / "two.img")
    assert (tmp_path / "two.img").read_bytes() == (tmp_path / "one.img").read_bytes()
    changed = message.replaced({1: 7, 6: 8})
    assert (changed.number(1), changed.number(6), changed.data(3), changed.number(2)) == (
        7,
        8,
        b"\0text",
        (1 << 64) - 1,
    )
    assert message.number(1) == 0


@pytest.mark.parametrize(
    "content", [b"\x19CVT%@\x08V\xff\0\0\0", b"\x19CVT%@\x08V\x02\0\0\0\x0a\x09", b"\x19CVT%@\x08V\x01\0\0\0\x0f"]
)
def test_a_damaged_image_is_named(tmp_path: Path, content: bytes) -> None:
    """Truncated between entries or inside one, or with an unknown wire type."""
    (tmp_path / "mm-1.img").write_bytes(content)
    with pytest.raises(SnapshotError, match=r"mm-1\.img cannot be read"):
        Image.read(tmp_path / "mm-1.img")


@pytest.mark.slow
@pytest.mark.fault("an image of CRIU is damaged before it is rewritten", area="snapshot files", outcome="refused")
def test_damaged_images_are_refused(sandbox: Sandbox, criu: Criu, tmp_path: Path) -> None:
    """With changed or missing bytes in the images that describe memory: they are rewritten, or an error names them."""
    sandbox.spawn([sys.executable, str(PROGRAM), "1"], env={"PATH": os.environ["PATH"]})
    assert wait_for(sandbox.log_tail, 20.0), sandbox.poll()
    dump(criu, sandbox, tmp_path / "whole", timeout_s=TIMEOUT_S, copy_memory=True)
    described = [
        path.name for path in (tmp_path / "whole").glob("*.img") if path.name.startswith(("files", "mm-", "pagemap-"))
    ]
    chosen, said = random.Random(20261130), list[str]()
    for number in range(40):
        images = shutil.copytree(tmp_path / "whole", tmp_path / str(number))
        file = images / chosen.choice(described)
        data = bytearray(file.read_bytes())
        if number % 4 == 0:
            del data[chosen.randrange(len(data)) :]
        for _ in range(3):
            if data:
                data[chosen.randrange(len(data))] = chosen.randrange(256)
        file.write_bytes(data)
        try:
            map_memory(images, tmp_path / "mount", filtered=False)
        except (SnapshotError, OSError) as error:  # `dump` says the latter as an error of the snapshot
            said.append(str(error))
        shutil.rmtree(images)
    assert len(said) > 15
    assert all(str(tmp_path) in one for one in said)
