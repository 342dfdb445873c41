"""Which programs and libraries rely on zeroes after MADV_DONTNEED (see `torpor.snapshots.criu.mapped_memory`)."""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["needs_zeroes"]

_JEMALLOC, _GO_SECTIONS = b"<jemalloc>", (b".go.buildinfo", b".note.go.buildid")
_ELF = struct.Struct("<16xHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")


def needs_zeroes(program: Path) -> str:
    """Name the part of a program or library that relies on zeroes; empty when there is none, or the file cannot be read."""
    with contextlib.suppress(OSError, ValueError, IndexError, struct.error), program.open("rb") as stream:
        for name, offset, size in _sections(stream):
            if name in _GO_SECTIONS:
                return "Go's runtime"
            if name == b".rodata":
                stream.seek(offset)
                if _JEMALLOC in stream.read(size):
                    return "jemalloc"
    return ""


def _sections(stream: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Name, offset and size of each section of a 64-bit ELF file (elf(5))."""
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
