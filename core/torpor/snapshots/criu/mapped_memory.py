"""Memory that replicas map instead of having it copied: most of a restore by CRIU is the kernel filling pages.

A dump writes private memory to `pages-N.img`, and a restore reads all of it into fresh pages of each replica. Here, after the
dump, the long runs of pages are taken out of CRIU's hands: the file becomes `memory-PID.img`, and the image says that these
addresses are private mappings of it. A restored process then begins with the page cache's own pages, shared by all replicas;
what it writes to becomes its own, page by page. Short runs, stacks, code and libraries' data stay CRIU's.

Two things behave otherwise in a mapping of a file than in anonymous memory, so what counts on them is left alone:

* MADV_DONTNEED brings the captured bytes back, not zeroes. glibc, CPython, mimalloc and tcmalloc never count on zeroes after
  it; jemalloc and Go's runtime do. Engines that are started as root are refused it (`torpor.snapshots.sandbox.engine_filter`), and
  allocators that are refused count on nothing; otherwise a process that has one of the two in it is not touched.
* mremap(2) that lets a mapping grow shows the file's next bytes, or ends in SIGBUS behind its end. glibc does that in realloc(3)
  with blocks that have a mapping of their own: they are known by their headers and stay CRIU's. Other C libraries are not known
  so well: a process without glibc is not touched.

What a fork still has in common with its parent goes into one file only (`torpor.snapshots.criu.common_pages`).

A replica that is dumped again maps files of the snapshot that it came from. Their content, with what it has written since, goes
into the new files, so that every snapshot stands on its own.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from torpor.errors import SnapshotError
from torpor.snapshots.criu.common_pages import CommonPages, Run
from torpor.snapshots.criu.images import Image, Message
from torpor.snapshots.sandbox.pid1 import punch_hole

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["Mapped", "is_memory_file", "map_memory", "mapped_bytes", "needs_zeroes"]

_MEMORY_FILE = re.compile(r"/.*/memory-\d+\.img")
_PIECE_BYTES = 16 << 20
_PAGE = 4096
_LEAST_PAGES = 16
_MOST_MAPPINGS = 16_000
"""Of one process; the kernel allows 65,530 (vm.max_map_count), and the engine wants some of them."""

_DAMAGED = (LookupError, TypeError, ValueError, ArithmeticError, StopIteration, RuntimeError, MemoryError, struct.error)
"""What a damaged image leads to where it is used: numbers that are texts, fields that are missing, lengths without end."""

# Field numbers: images/{mm,vma,pagemap,fdinfo,regfile}.proto
_MM_VMAS = 14
_VMA_START, _VMA_END, _VMA_OFFSET, _VMA_FILE, _VMA_PROT, _VMA_FLAGS, _VMA_STATUS, _VMA_ADVICE = 1, 2, 3, 4, 5, 6, 7, 9
_PAGES_ID = 1
_RUN_START, _RUN_PAGES_32, _RUN_FLAGS, _RUN_PAGES = 1, 2, 4, 5
_FILE_TYPE, _FILE_ID, _FILE_REGULAR = 1, 2, 3
_REGULAR_OWNER, _REGULAR_NAME, _REGULAR_SIZE, _REGULAR_MODE = 5, 6, 8, 10

# criu/include/image.h, include/common/page.h, sys/mman.h
_REGULAR_AREA, _HEAP, _PRIVATE_FILE, _PRIVATE_ANONYMOUS = 1 << 0, 1 << 5, 1 << 6, 1 << 9
_READ_WRITE, _EXECUTE, _MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_NORESERVE = 3, 4, 0x02, 0x20, 0x4000
_PRESENT = 1 << 2
_REGULAR_FILE = 1
_MODE = 0o100600

_BLOCK_FLAGS, _OWN_MAPPING = 7, 2  # of a size in a header of glibc's malloc (malloc/malloc.c: IS_MMAPPED)
_BLOCK_OFFSETS = (0, 16, 48)  # where such a header stands in its first page: malloc, and aligned to 32 and 64 bytes

_JEMALLOC, _GO_SECTIONS = b"<jemalloc>", (b".go.buildinfo", b".note.go.buildid")
_ELF = struct.Struct("<16xHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """What became of a dump.

    Attributes:
        bytes: memory that replicas map from files.
        kept: processes whose memory CRIU copies as ever, and why.
    """

    bytes: int
    kept: Mapping[int, str]


def is_memory_file(path: str) -> bool:
    """Whether a path is that of a snapshot's memory file; not of one that was removed."""
    return _MEMORY_FILE.fullmatch(path) is not None


def mapped_bytes(pid: int) -> int:
    """How much memory a process maps from a snapshot, in bytes; 0 for one that cannot be looked at."""
    total = 0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
            words = line.split(None, 5)
            if is_memory_file(words[-1]):
                start, _, end = words[0].partition("-")
                total += int(end, 16) - int(start, 16)
    return total


def map_memory(images: Path, mount: Path, *, filtered: bool, anew: bool = True) -> Mapped:
    """Have the replicas of a dump map its memory. The dump is whole before and after; between, it is not.

    Args:
        images: folder that CRIU has written.
        mount: path inside a replica's sandbox under which it finds this folder.
        filtered: whether the tree lives under `torpor.snapshots.sandbox.engine_filter`.
        anew: map what was not mapped before; otherwise only what the tree itself maps from a snapshot.

    Raises:
        SnapshotError: an image is damaged.
        OSError: disk full, ...
    """
    try:
        return _mapped(images, mount, filtered=filtered, anew=anew)
    except _DAMAGED as error:
        raise SnapshotError(
            f"CRIU's images in {images} do not fit together ({type(error).__name__}: {error}): they are damaged, or of a CRIU that "
            "Torpor does not know. Make the snapshot again."
        ) from error


def _mapped(images: Path, mount: Path, *, filtered: bool, anew: bool) -> Mapped:
    files = Image.read(images / "files.img")
    names = _names(files)
    next_id = 1 + max((entry.number(_FILE_ID) for entry in files.messages), default=0)
    old = {number: Path(name) for number, name in names.items() if is_memory_file(name)}
    looked_at: dict[str, str] = {}
    common = CommonPages()
    mapped, kept = 0, {}
    for mm_file in sorted(images.glob("mm-*.img")):
        pid = int(mm_file.stem.removeprefix("mm-"))
        mm = Image.read(mm_file)
        areas = [Message.parse(value) for number, _, value in mm.messages[0].fields if number == _MM_VMAS]  # type: ignore[arg-type]
        if reason := _reason_to_keep(areas, names, looked_at, filtered=filtered):
            kept[pid] = reason
        process = _Process(images, pid, areas, old, anew=anew and not reason)
        if not process.mapped:
            continue
        file = images / f"memory-{pid}.img"
        process.split_pages(file)
        runs = common.taken_out(file, [run._replace(file=next_id) for run in process.mapped])
        mm.messages[0] = _with_areas(mm.messages[0], process.new_areas(runs))
        mm.write(mm_file)
        files.messages.append(_file_entry(next_id, mount / file.name, file.stat().st_size))
        mapped += sum(run.end - run.start for run in process.mapped)
        next_id += 1
    files.write(images / "files.img")
    return Mapped(bytes=mapped, kept=kept)


def needs_zeroes(program: Path) -> str:
    """What in a program or library counts on zeroes after MADV_DONTNEED; empty when nothing does, or it cannot be read."""
    with contextlib.suppress(OSError, ValueError, IndexError, struct.error), program.open("rb") as stream:
        for name, offset, size in _sections(stream):
            if name in _GO_SECTIONS:
                return "Go's runtime"
            if name == b".rodata":
                stream.seek(offset)
                if _JEMALLOC in stream.read(size):
                    return "jemalloc"
    return ""


class _Process:
    """One process of a dump: which of its pages are to be mapped, and which are left to CRIU."""

    def __init__(
        self, images: Path, pid: int, areas: Sequence[Message], old: Mapping[int, Path], *, anew: bool
    ) -> None:
        self._areas = areas
        self._anew = anew
        self._copies: list[_Copy] = []
        self._pagemap_file = images / f"pagemap-{pid}.img"
        self._pagemap = Image.read(self._pagemap_file)
        self._pages = images / f"pages-{self._pagemap.messages[0].number(_PAGES_ID)}.img"
        for area in areas:
            if (file := old.get(area.number(_VMA_FILE))) and area.number(_VMA_STATUS) & _PRIVATE_FILE:
                self._copies.append(
                    _Copy(area.number(_VMA_START), area.number(_VMA_END), file, area.number(_VMA_OFFSET))
                )
        self.mapped, self._left = self._sorted_runs()
        at = self._pages.stat().st_size
        for copy in self._copies:
            copy.offset = at
            self.mapped.append(Run(copy.start, copy.end, at))
            at += copy.end - copy.start
        self.mapped.sort()

    def split_pages(self, file: Path) -> None:
        """Let the pages file become `file`; CRIU gets a new one with what is left to it, and a list of that.

        What is left to CRIU, and pages of zeroes (much of a GPU's saved memory is), take no room in `file`.
        """
        self._pages.rename(file)
        with file.open("r+b") as source, os.fdopen(_created(self._pages), "wb") as target:
            for entry, run in self._left:
                if entry.number(_RUN_FLAGS) & _PRESENT:
                    source.seek(run.offset)
                    target.write(source.read(run.end - run.start))
                    punch_hole(source.fileno(), run.offset, run.end - run.start)
            for copy in self._copies:
                copy.write(source)
            for start, end in _zeroes(source, self.mapped):
                punch_hole(source.fileno(), start, end - start)
        left = [
            entry.replaced(**{f"f{_RUN_START}": run.start, f"f{_pages_field(entry)}": (run.end - run.start) // _PAGE})
            for entry, run in self._left
        ]
        Image(magic=self._pagemap.magic, messages=[self._pagemap.messages[0], *left]).write(self._pagemap_file)

    def new_areas(self, mapped: Iterable[Run]) -> Iterator[Message]:
        """The areas of the process, those with mapped runs in them cut at the runs' ends."""
        runs = iter(mapped)
        run = next(runs, None)
        for area in self._areas:
            start, end = area.number(_VMA_START), area.number(_VMA_END)
            while run and run.start < end:
                if start < run.start:
                    yield area.replaced(f1=start, f2=run.start)
                flags = area.number(_VMA_FLAGS) & ~_MAP_ANONYMOUS
                numbers = {"f1": run.start, "f2": run.end, "f3": run.offset, "f4": run.file, "f6": flags}
                yield area.replaced(**numbers, f7=_REGULAR_AREA | _PRIVATE_FILE, f10=os.O_RDONLY)
                start = run.end
                run = next(runs, None)
            if start < end:
                yield area.replaced(f1=start)

    def _sorted_runs(self) -> tuple[list[Run], list[tuple[Message, Run]]]:
        """Runs to be mapped, and entries of CRIU's list with what stays of them."""
        mapped: list[Run] = []
        left: list[tuple[Message, Run]] = []
        offset = 0
        copies = {copy.start: copy for copy in self._copies}
        areas = iter(self._areas)
        area = next(areas)
        with self._pages.open("rb") as stream, _words(stream) as words:
            blocks = _Blocks(words)
            for entry in self._pagemap.messages[1:]:
                start, present = entry.number(_RUN_START), bool(entry.number(_RUN_FLAGS) & _PRESENT)
                last = start + entry.number(_pages_field(entry)) * _PAGE
                while start < last:
                    while area.number(_VMA_END) <= start:
                        area = next(areas)
                    end = min(last, area.number(_VMA_END))
                    run = Run(start, end, offset)
                    copy = copies.get(area.number(_VMA_START))
                    if present and copy:
                        copy.written.append(run)
                    elif present and self._anew and _can_be_mapped(area):
                        for piece, own in blocks.parted(run, area.number(_VMA_END)):
                            if own or piece.end - piece.start < _LEAST_PAGES * _PAGE or len(mapped) >= _MOST_MAPPINGS:
                                left.append((entry, piece))
                            else:
                                mapped.append(piece)
                    else:
                        left.append((entry, run))
                    if present:
                        offset += end - start
                    start = end
        return mapped, left


class _Copy:
    """An area that a replica maps from the snapshot it came from: its content goes into the new file, at `offset`."""

    def __init__(self, start: int, end: int, file: Path, file_offset: int) -> None:
        self.start, self.end = start, end
        self.offset = 0
        self.written: list[Run] = []
        self._file, self._file_offset = file, file_offset

    def write(self, target: BinaryIO) -> None:
        """Write what was mapped, and over it the pages that the replica has written to, which lie further up in `target`."""
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
        target.flush()  # the file is looked at past this buffer next


class _Blocks:
    """Blocks of glibc's malloc with a mapping of their own, found by their headers; what only looks like one does no harm."""

    def __init__(self, words: memoryview) -> None:
        self._words = words
        self._until = 0  # address up to which the last block found reaches

    def parted(self, run: Run, area_end: int) -> Iterator[tuple[Run, bool]]:
        """Pieces of a run, and whether each belongs to such a block."""
        at = run.start
        while at < run.end:
            block = at < self._until
            end = min(self._until, run.end) if block else self._next_block(run, at, area_end)
            if end > at:
                yield Run(at, end, run.offset + at - run.start), block
            at = end

    def _next_block(self, run: Run, at: int, area_end: int) -> int:
        """Address of the next block's first page in the run, or the run's end."""
        page_words = _PAGE // 8
        first = (run.offset + at - run.start) // 8
        last = first + (run.end - at) // 8
        found = run.end
        for shift in _BLOCK_OFFSETS:
            for page, size in enumerate(self._words[first + shift // 8 + 1 : last : page_words]):
                if size & _BLOCK_FLAGS != _OWN_MAPPING:
                    continue
                address, whole = at + page * _PAGE, (size & ~_BLOCK_FLAGS) + shift
                if address >= found:
                    break
                before = self._words[first + page * page_words + shift // 8]
                if before == shift and whole and whole % _PAGE == 0 and address + whole <= area_end:
                    found = address
                    self._until = address + whole
                    break
        return found


def _can_be_mapped(area: Message) -> bool:
    return (
        area.number(_VMA_STATUS) & ~_HEAP == _REGULAR_AREA | _PRIVATE_ANONYMOUS
        and area.number(_VMA_PROT) == _READ_WRITE
        and area.number(_VMA_FLAGS) & ~_MAP_NORESERVE == _MAP_PRIVATE | _MAP_ANONYMOUS
        and not area.number(_VMA_ADVICE)
    )


def _reason_to_keep(
    areas: Iterable[Message], names: Mapping[int, str], looked_at: dict[str, str], *, filtered: bool
) -> str:
    """Why the memory of a process is not to be touched; empty when it may be."""
    glibc = False
    programs = {
        area.number(_VMA_FILE)
        for area in areas
        if area.number(_VMA_STATUS) & _PRIVATE_FILE and area.number(_VMA_PROT) & _EXECUTE
    }
    for name in sorted(names.get(program, "") for program in programs):
        glibc = glibc or Path(name).name == "libc.so.6"
        if not filtered and name not in looked_at:
            looked_at[name] = needs_zeroes(Path(name))
        if found := looked_at.get(name):
            return f"{name} holds {found}, which counts on zeroes after MADV_DONTNEED"
    return "" if glibc else "its C library is not glibc"


def _names(files: Image) -> dict[int, str]:
    """Path of every regular file by its id."""
    regular = [entry for entry in files.messages if entry.number(_FILE_TYPE) == _REGULAR_FILE]
    return {
        entry.number(_FILE_ID): Message.parse(entry.data(_FILE_REGULAR)).data(_REGULAR_NAME).decode(errors="replace")
        for entry in regular
    }


def _file_entry(file_id: int, path: Path, size: int) -> Message:
    nobody = Message((number, 0, 0) for number in range(1, 6)).pack()  # nobody gets signals for it
    regular = Message(
        [
            (1, 0, file_id),
            (2, 0, os.O_RDONLY),
            (3, 0, 0),
            (_REGULAR_OWNER, 2, nobody),
            (_REGULAR_NAME, 2, os.fsencode(path)),
            (_REGULAR_SIZE, 0, size),
            (_REGULAR_MODE, 0, _MODE),
        ]
    )
    return Message([(_FILE_TYPE, 0, _REGULAR_FILE), (_FILE_ID, 0, file_id), (_FILE_REGULAR, 2, regular.pack())])


def _with_areas(mm: Message, areas: Iterable[Message]) -> Message:
    others = [field for field in mm.fields if field[0] != _MM_VMAS]
    return Message([*others, *((_MM_VMAS, 2, area.pack()) for area in areas)])


def _pages_field(entry: Message) -> int:
    """Where an entry has its number of pages: CRIU 4.2 has 64 bits for it, in a field of its own."""
    return _RUN_PAGES if entry.number(_RUN_PAGES) else _RUN_PAGES_32


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
    """Where pages of zeroes lie in a file, bytes."""
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
    """Where in a part of a file there is more than holes: position and size, bytes, in pieces of at most 16 MiB."""
    at, last = offset, offset + size
    while at < last:
        try:
            at = os.lseek(stream.fileno(), at, os.SEEK_DATA)
        except OSError:  # ENXIO: holes up to the end
            return
        end = min(os.lseek(stream.fileno(), at, os.SEEK_HOLE), last)
        while at < end:
            piece = min(end - at, _PIECE_BYTES)
            yield at, piece
            at += piece


def _created(file: Path) -> int:
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


def _sections(stream: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Name, offset and size of the sections of an ELF file of 64 bits (elf(5))."""
    header = stream.read(_ELF.size)
    if not header.startswith(b"\x7fELF\x02\x01"):
        return
    *_, table, _, _, _, _, size, count, names = _ELF.unpack(header)
    stream.seek(table)
    content = stream.read(size * count)
    sections = [_SECTION.unpack_from(content, at) for at in range(0, size * count, size)]
    stream.seek(sections[names][4])
    strings = stream.read(sections[names][5])
    for name, _, _, _, offset, length, *_ in sections:
        yield strings[name : strings.index(b"\0", name)], offset, length
