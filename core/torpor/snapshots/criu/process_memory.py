"""The memory of one process in a dump, divided into what replicas map and what CRIU copies."""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import TYPE_CHECKING, BinaryIO

from torpor.snapshots.criu import image_fields as field
from torpor.snapshots.criu.common_pages import Run
from torpor.snapshots.criu.images import Image, Message
from torpor.snapshots.criu.malloc_blocks import MallocBlocks
from torpor.snapshots.sandbox.pid1 import punch_hole

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["ProcessMemory"]

_PAGE = 4096
_PIECE_BYTES = 16 << 20
_LEAST_PAGES = 16
_MOST_MAPPINGS = 16_000
"""For one process. The kernel allows 65,530 (vm.max_map_count), and the engine needs some of them."""

# sys/mman.h
_READ_WRITE, _MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_NORESERVE = 3, 0x02, 0x20, 0x4000


class ProcessMemory:
    """One process of a dump.

    Args:
        images: folder of the dump.
        pid: of the process, inside.
        areas: its mappings (VMAs), by address.
        old: paths of memory files of an earlier snapshot, by file id.
        map_new: divide anonymous memory, too; otherwise only what the process maps from an earlier snapshot becomes mapped.

    Attributes:
        mapped: what replicas will map, by address; offsets are in the file that `split_pages` writes.
    """

    def __init__(
        self, images: Path, pid: int, areas: Sequence[Message], old: Mapping[int, Path], *, map_new: bool
    ) -> None:
        self._areas = areas
        self._map_new = map_new
        self._pagemap_file = images / f"pagemap-{pid}.img"
        self._pagemap = Image.read(self._pagemap_file)
        self._pages = images / f"pages-{self._pagemap.messages[0].number(field.PAGEMAP_PAGES_ID)}.img"
        self._inherited = [
            _Inherited(area, file)
            for area in areas
            if (file := old.get(area.number(field.VMA_FILE)))
            and area.number(field.VMA_STATUS) & field.AREA_PRIVATE_FILE
        ]
        self.mapped, self._copied = self._divided()
        at = self._pages.stat().st_size
        for area in self._inherited:
            area.offset = at
            self.mapped.append(Run(area.start, area.end, at))
            at += area.end - area.start
        self.mapped.sort()

    def split_pages(self, file: Path) -> None:
        """Rename the pages file to `file`, and write a new one, with its list, that holds only what CRIU copies.

        In `file` those pages become holes, and so do pages of zeroes (a large part of a GPU's saved memory).
        """
        self._pages.rename(file)
        with file.open("r+b") as source, os.fdopen(_created(self._pages), "wb") as target:
            for entry, run in self._copied:
                if entry.number(field.RUN_FLAGS) & field.RUN_PRESENT:
                    source.seek(run.offset)
                    target.write(source.read(run.end - run.start))
                    punch_hole(source.fileno(), run.offset, run.end - run.start)
            for area in self._inherited:
                area.write(source)
            for start, end in _zeroes(source, self.mapped):
                punch_hole(source.fileno(), start, end - start)
        entries = [
            entry.replaced({field.RUN_START: run.start, _pages_field(entry): (run.end - run.start) // _PAGE})
            for entry, run in self._copied
        ]
        Image(magic=self._pagemap.magic, messages=[self._pagemap.messages[0], *entries]).write(self._pagemap_file)

    def new_areas(self, mapped: Iterable[Run]) -> Iterator[Message]:
        """The areas of the process, cut so that each mapped run is an area that maps a file."""
        runs = iter(mapped)
        run = next(runs, None)
        for area in self._areas:
            start, end = area.number(field.VMA_START), area.number(field.VMA_END)
            while run and run.start < end:
                if start < run.start:
                    yield area.replaced({field.VMA_START: start, field.VMA_END: run.start})
                yield _mapping(area, run)
                start = run.end
                run = next(runs, None)
            if start < end:
                yield area.replaced({field.VMA_START: start})

    def _divided(self) -> tuple[list[Run], list[tuple[Message, Run]]]:
        """Runs to map; and entries of CRIU's list, each with the part of it that CRIU copies."""
        mapped: list[Run] = []
        copied: list[tuple[Message, Run]] = []
        inherited = {area.start: area for area in self._inherited}
        with self._pages.open("rb") as stream, _words(stream) as words:
            blocks = MallocBlocks(words)
            for entry, run, area in self._runs():
                present = entry.number(field.RUN_FLAGS) & field.RUN_PRESENT
                earlier = inherited.get(area.number(field.VMA_START))
                if present and earlier:
                    earlier.written.append(run)
                elif present and self._map_new and _can_be_mapped(area):
                    for piece, in_block in blocks.split(run, area.number(field.VMA_END)):
                        short = piece.end - piece.start < _LEAST_PAGES * _PAGE
                        if in_block or short or len(mapped) >= _MOST_MAPPINGS:
                            copied.append((entry, piece))
                        else:
                            mapped.append(piece)
                else:
                    copied.append((entry, run))
        return mapped, copied

    def _runs(self) -> Iterator[tuple[Message, Run, Message]]:
        """Every entry of CRIU's list, cut at the ends of areas: the entry, the run, and its area."""
        offset = 0
        areas = iter(self._areas)
        area = next(areas)
        for entry in self._pagemap.messages[1:]:
            start = entry.number(field.RUN_START)
            last = start + entry.number(_pages_field(entry)) * _PAGE
            while start < last:
                while area.number(field.VMA_END) <= start:
                    area = next(areas)
                end = min(last, area.number(field.VMA_END))
                yield entry, Run(start, end, offset), area
                if entry.number(field.RUN_FLAGS) & field.RUN_PRESENT:
                    offset += end - start
                start = end


class _Inherited:
    """An area that a replica maps from the snapshot it came from. Its content goes into the new file, at `offset`.

    Attributes:
        written: pages that the replica has written to since; they lie further up in the new file.
    """

    def __init__(self, area: Message, file: Path) -> None:
        self.start, self.end = area.number(field.VMA_START), area.number(field.VMA_END)
        self.offset = 0
        self.written: list[Run] = []
        self._file, self._file_offset = file, area.number(field.VMA_OFFSET)

    def write(self, target: BinaryIO) -> None:
        """Write what the old file holds, then over it the pages that the replica has written to."""
        target.truncate(max(target.seek(0, os.SEEK_END), self.offset + self.end - self.start))
        with self._file.open("rb") as source:
            for at, size in _data(source, self._file_offset, self.end - self.start):
                source.seek(at)
                target.seek(self.offset + at - self._file_offset)
                target.write(source.read(size))
        for run in self.written:
            target.seek(run.offset)
            content = target.read(run.end - run.start)
            target.seek(self.offset + run.start - self.start)
            target.write(content)
            punch_hole(target.fileno(), run.offset, run.end - run.start)
        target.flush()  # the caller reads the file past this buffer


def _mapping(area: Message, run: Run) -> Message:
    """The part of an area that maps a run: private, of a file."""
    return area.replaced(
        {
            field.VMA_START: run.start,
            field.VMA_END: run.end,
            field.VMA_OFFSET: run.offset,
            field.VMA_FILE: run.file,
            field.VMA_FLAGS: area.number(field.VMA_FLAGS) & ~_MAP_ANONYMOUS,
            field.VMA_STATUS: field.AREA_REGULAR | field.AREA_PRIVATE_FILE,
            field.VMA_OPEN_FLAGS: os.O_RDONLY,
        }
    )


def _can_be_mapped(area: Message) -> bool:
    """Whether it is private, anonymous, readable and writable memory without advice (madvise(2))."""
    return (
        area.number(field.VMA_STATUS) & ~field.AREA_HEAP == field.AREA_REGULAR | field.AREA_PRIVATE_ANONYMOUS
        and area.number(field.VMA_PROTECTION) == _READ_WRITE
        and area.number(field.VMA_FLAGS) & ~_MAP_NORESERVE == _MAP_PRIVATE | _MAP_ANONYMOUS
        and not area.number(field.VMA_ADVICE)
    )


def _pages_field(entry: Message) -> int:
    """The field with an entry's number of pages: CRIU 4.2 has a second one, of 64 bits."""
    return field.RUN_PAGES if entry.number(field.RUN_PAGES) else field.RUN_PAGES_32


@contextlib.contextmanager
def _words(stream: BinaryIO) -> Iterator[memoryview]:
    """A file's content as words of 64 bits, without reading it."""
    if not os.fstat(stream.fileno()).st_size:
        yield memoryview(b"").cast("Q")
        return
    with (
        mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as content,
        memoryview(content) as view,
        view.cast("Q") as words,
    ):
        yield words


def _zeroes(stream: BinaryIO, runs: Iterable[Run]) -> Iterator[tuple[int, int]]:
    """Start and end of each stretch of zero pages in a file, bytes."""
    nothing = bytes(_PAGE)
    with _words(stream) as words:
        for run in runs:
            start = None
            last = run.offset + run.end - run.start
            for at in range(run.offset, last, _PAGE):
                zero = not words[at // 8] and words[at // 8 : (at + _PAGE) // 8].tobytes() == nothing
                if zero and start is None:
                    start = at
                elif not zero and start is not None:
                    yield start, at
                    start = None
            if start is not None:
                yield start, last


def _data(stream: BinaryIO, offset: int, size: int) -> Iterator[tuple[int, int]]:
    """Position and size of the data between holes in a part of a file, in pieces of at most 16 MiB."""
    at, last = offset, offset + size
    while at < last:
        try:
            at = os.lseek(stream.fileno(), at, os.SEEK_DATA)
        except OSError:  # ENXIO: only holes up to the end
            return
        end = min(os.lseek(stream.fileno(), at, os.SEEK_HOLE), last)
        while at < end:
            piece = min(end - at, _PIECE_BYTES)
            yield at, piece
            at += piece


def _created(file: Path) -> int:
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
