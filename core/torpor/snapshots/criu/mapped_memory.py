"""Memory that replicas map from files instead of copying it: CRIU spends most of a restore on filling pages.

A dump writes private memory to `pages-N.img`, and a restore copies all of it into new pages of each replica. After the dump, the
long runs of pages move out of CRIU's hands: they go to `memory-PID.img`, and the image says that their addresses are a private
mapping of that file. A restored process starts with the pages of the page cache, which all replicas share. Each page that it
writes to becomes its own. Short runs, stacks, code and the data of libraries stay with CRIU.

A mapping of a file differs from anonymous memory in two ways, so memory that relies on either stays with CRIU:

* MADV_DONTNEED makes the captured bytes visible again, not zeroes. glibc, CPython, mimalloc and tcmalloc do not rely on zeroes
  after it; jemalloc and Go's runtime do. A filter denies MADV_DONTNEED to engines that were started as root
  (`torpor.snapshots.sandbox.engine_filter`), and an allocator that is denied it relies on nothing. Without the filter, CRIU copies
  all memory of a process that contains jemalloc or Go's runtime.
* mremap(2) that grows a mapping shows the next bytes of the file, or ends in SIGBUS behind its end. glibc grows large blocks in
  realloc(3) that way; they have a mapping of their own, are known by their headers, and stay with CRIU. The headers of other C
  libraries are not known, so CRIU copies all memory of a process without glibc.

Pages that a fork shares with its parent go into one file only (`torpor.snapshots.criu.common_pages`).

A replica that is dumped again maps files of the snapshot it came from. Their content goes into the new files, with what the
replica has written since, so that no snapshot needs another.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torpor.errors import DamagedSnapshotError
from torpor.snapshots.criu import image_fields as field
from torpor.snapshots.criu.allocators import needs_zeroes
from torpor.snapshots.criu.common_pages import CommonPages
from torpor.snapshots.criu.images import BYTES, VARINT, Image, Message
from torpor.snapshots.criu.memory_files import is_memory_file
from torpor.snapshots.criu.process_memory import ProcessMemory

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Mapped", "map_memory"]

_DAMAGED = (LookupError, TypeError, ValueError, ArithmeticError, StopIteration, RuntimeError, MemoryError, struct.error)
"""What using a damaged image raises: texts in place of numbers, missing fields, huge lengths."""

_EXECUTABLE = 4  # PROT_EXEC, sys/mman.h
_MODE = 0o100600


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """The result for a dump.

    Attributes:
        bytes: memory that replicas map from files.
        copied: by pid inside, why CRIU copies all memory of a process.
    """

    bytes: int
    copied: Mapping[int, str]


def map_memory(images: Path, mount: Path, *, filtered: bool, map_new: bool = True) -> Mapped:
    """Rewrite a dump so that its replicas map its memory. A failure in between leaves the dump unusable.

    Args:
        images: folder that CRIU has written.
        mount: path of this folder inside a replica's sandbox.
        filtered: whether the tree runs under `torpor.snapshots.sandbox.engine_filter`.
        map_new: map all suitable memory; otherwise only what the tree itself maps from a snapshot.

    Raises:
        DamagedSnapshotError: an image is damaged.
        OSError: disk full, ...
    """
    try:
        return _mapped(images, mount, filtered=filtered, map_new=map_new)
    except _DAMAGED as error:
        raise DamagedSnapshotError(
            f"CRIU's images in {images} do not fit together ({type(error).__name__}: {error}). They are damaged, or Torpor does "
            "not know the CRIU that wrote them. Take a new snapshot."
        ) from error


def _mapped(images: Path, mount: Path, *, filtered: bool, map_new: bool) -> Mapped:
    files = Image.read(images / "files.img")
    names = _names(files)
    next_id = 1 + max((entry.number(field.FILE_ID) for entry in files.messages), default=0)
    old = {number: Path(name) for number, name in names.items() if is_memory_file(name)}
    found: dict[str, str] = {}
    common = CommonPages()
    mapped, copied = 0, {}
    for mm_file in sorted(images.glob("mm-*.img")):
        pid = int(mm_file.stem.removeprefix("mm-"))
        mm = Image.read(mm_file)
        areas = [
            Message.parse(cast("bytes", value)) for number, _, value in mm.messages[0].fields if number == field.MM_VMAS
        ]
        if reason := _reason_to_copy(areas, names, found, filtered=filtered):
            copied[pid] = reason
        process = ProcessMemory(images, pid, areas, old, map_new=map_new and not reason)
        if not process.mapped:
            continue
        file = images / f"memory-{pid}.img"
        process.split_pages(file)
        runs = common.deduplicated(file, [run._replace(file=next_id) for run in process.mapped])
        mm.messages[0] = _with_areas(mm.messages[0], process.new_areas(runs))
        mm.write(mm_file)
        files.messages.append(_file_entry(next_id, mount / file.name, file.stat().st_size))
        mapped += sum(run.end - run.start for run in process.mapped)
        next_id += 1
    files.write(images / "files.img")
    return Mapped(bytes=mapped, copied=copied)


def _reason_to_copy(
    areas: Iterable[Message], names: Mapping[int, str], found: dict[str, str], *, filtered: bool
) -> str:
    """Why CRIU has to copy all memory of a process; empty when replicas may map it.

    Args:
        areas: of the process.
        names: paths of files by their ids.
        found: answers of `needs_zeroes` so far, by path.
        filtered: see `map_memory`.
    """
    glibc = False
    programs = {
        area.number(field.VMA_FILE)
        for area in areas
        if area.number(field.VMA_STATUS) & field.AREA_PRIVATE_FILE and area.number(field.VMA_PROTECTION) & _EXECUTABLE
    }
    for name in sorted(names.get(program, "") for program in programs):
        glibc = glibc or Path(name).name == "libc.so.6"
        if not filtered and name not in found:
            found[name] = needs_zeroes(Path(name))
        if part := found.get(name):
            return f"{name} contains {part}, which relies on zeroes after MADV_DONTNEED"
    return "" if glibc else "its C library is not glibc"


def _names(files: Image) -> dict[int, str]:
    """Path of every regular file by its id."""
    regular = [entry for entry in files.messages if entry.number(field.FILE_TYPE) == field.TYPE_REGULAR]
    return {
        entry.number(field.FILE_ID): Message.parse(entry.data(field.FILE_REGULAR))
        .data(field.REGULAR_NAME)
        .decode(errors="replace")
        for entry in regular
    }


def _file_entry(file_id: int, path: Path, size: int) -> Message:
    """An entry of `files.img` for a memory file."""
    owner = Message((number, VARINT, 0) for number in field.OWNER_FIELDS)  # no process gets signals for it
    regular = Message(
        [
            (field.REGULAR_ID, VARINT, file_id),
            (field.REGULAR_FLAGS, VARINT, os.O_RDONLY),
            (field.REGULAR_POSITION, VARINT, 0),
            (field.REGULAR_OWNER, BYTES, owner.pack()),
            (field.REGULAR_NAME, BYTES, os.fsencode(path)),
            (field.REGULAR_SIZE, VARINT, size),
            (field.REGULAR_MODE, VARINT, _MODE),
        ]
    )
    return Message(
        [
            (field.FILE_TYPE, VARINT, field.TYPE_REGULAR),
            (field.FILE_ID, VARINT, file_id),
            (field.FILE_REGULAR, BYTES, regular.pack()),
        ]
    )


def _with_areas(mm: Message, areas: Iterable[Message]) -> Message:
    others = [one for one in mm.fields if one[0] != field.MM_VMAS]
    return Message([*others, *((field.MM_VMAS, BYTES, area.pack()) for area in areas)])
