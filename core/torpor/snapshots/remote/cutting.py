"""Cut files into the contents of chunks.

A large file is cut on a grid of `CHUNK_BYTES`; holes are left out, and what is only zeros becomes no chunk. Small files are packed
together, because a store needs a request for each chunk and an engine has some hundred small images.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import DamagedSnapshotError
from torpor.snapshots.remote.chunks import CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["Part", "Source", "content_of", "cut", "is_zeros"]

_SMALL_BYTES = 1 << 20
_SHORT_HOLE = 64 << 10
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Source(NamedTuple):
    """A file to push: where it is, its name in the store's manifest, its size in bytes."""

    file: Path
    path: str
    size: int


class Part(NamedTuple):
    """A part of a source: index of the source, offset and length in bytes."""

    source: int
    at: int
    length: int


def cut(sources: Sequence[Source]) -> Iterator[tuple[Part, ...]]:
    """The parts of each chunk: those of one cell of a large file, or many small files whole. Holes are left out.

    Raises:
        OSError: a file cannot be read.
    """
    packed: list[Part] = []
    for number, source in enumerate(sources):
        if source.size > _SMALL_BYTES:
            yield from _cells(number, source)
        elif source.size:
            if sum(part.length for part in packed) + source.size > CHUNK_BYTES:
                yield tuple(packed)
                packed = []
            packed.append(Part(number, 0, source.size))
    if packed:
        yield tuple(packed)


def content_of(parts: Sequence[Part], sources: Sequence[Source]) -> bytes:
    """The content of a chunk.

    Raises:
        DamagedSnapshotError: a file has become shorter.
        OSError: it cannot be read.
    """
    return b"".join(_read(sources[part.source], part) for part in parts)


def is_zeros(content: bytes) -> bool:
    """Whether all bytes are zeros; takes no time for other content."""
    return content[:64].count(0) == len(content[:64]) and content.count(0) == len(content)


def _read(source: Source, part: Part) -> bytes:
    descriptor = os.open(source.file, _FLAGS)
    try:
        content = os.pread(descriptor, part.length, part.at)
        while len(content) < part.length:
            more = os.pread(descriptor, part.length - len(content), part.at + len(content))
            if not more:
                raise DamagedSnapshotError(f"{source.file} became shorter while it was pushed; nothing was published.")
            content += more
        return content
    finally:
        os.close(descriptor)


def _cells(number: int, source: Source) -> Iterator[tuple[Part, ...]]:
    """The parts with data in each cell of the grid; a hole below `_SHORT_HOLE` counts as data."""
    descriptor = os.open(source.file, _FLAGS)
    try:
        parts: list[Part] = []
        for at, end in _extents(descriptor, source.size):
            begin = at
            while begin < end:
                cell = begin // CHUNK_BYTES
                stop = min(end, (cell + 1) * CHUNK_BYTES)
                if parts and parts[-1].at // CHUNK_BYTES != cell:
                    yield tuple(parts)
                    parts = []
                parts.append(Part(number, begin, stop - begin))
                begin = stop
        if parts:
            yield tuple(parts)
    finally:
        os.close(descriptor)


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each run of data."""
    begin, end = 0, 0
    while end < size and (data := _seek(descriptor, end, os.SEEK_DATA)) is not None:
        if data - end >= _SHORT_HOLE or not end:
            if end > begin:
                yield begin, end
            begin = data
        end = min(_seek(descriptor, data, os.SEEK_HOLE) or size, size)
    if end > begin:
        yield begin, end


def _seek(descriptor: int, at: int, what: int) -> int | None:
    """Where the next data or hole begins (lseek(2)); None if no data follows. A disk without holes has data everywhere."""
    try:
        return os.lseek(descriptor, at, what)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        return at if what == os.SEEK_DATA else None
