"""Take GPU code for other cards out of a shared library, for a machine to which little can be carried.

    python3 -m benchmarks.gpu.slim_library FILE [--kernels PATTERN]

The section `.nv_fatbin` holds containers, each with one entry for each architecture. What the entries for others than sm_90 hold
is overwritten with zeros, which compress to nothing; headers stay, and CUDA's loader passes over what it does not pick. Where a
container has no code for sm_90, its newest PTX stays, which the driver compiles. With PATTERN (a regular expression) code for
sm_90 goes, too, of which no kernel's mangled name is matched; compressed entries cannot be looked into and stay.
"""

from __future__ import annotations

import argparse
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

CARD = 90
_MAGIC = 0xBA55ED50
_PTX, _CODE = 1, 2
_CONTAINER = struct.Struct("<IHHQ")  # magic, version, size of this header, bytes after it
_ENTRY = struct.Struct("<HHIQIIHHI")  # kind, version, size of this header, bytes after it, ..., architecture
_SECTION = struct.Struct("<IIQQQQ")  # name, kind, flags, address, offset, size


class Entry(NamedTuple):
    """Code for one architecture: where its bytes lie in the file."""

    kind: int
    architecture: int
    start: int
    end: int


def main() -> None:
    """Change the file in place; say what stayed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--kernels", type=lambda text: re.compile(text.encode()))
    options = parser.parse_args()
    data = bytearray(options.file.read_bytes())
    kept = gone = 0
    for container in containers(data):
        wanted = chosen(container)
        for entry in container:
            size = entry.end - entry.start
            if entry in wanted and (options.kernels is None or has_kernel(data, entry, options.kernels)):
                kept += size
            else:
                data[entry.start : entry.end] = bytes(size)
                gone += size
    options.file.write_bytes(data)
    print(f"{options.file.name}: {kept / 1e6:.1f} MB of GPU code kept, {gone / 1e6:.1f} MB overwritten")


def containers(data: bytearray) -> Iterator[list[Entry]]:
    """The entries of each container."""
    for begin, end in fatbin_sections(data):
        at = begin
        while at + _CONTAINER.size <= end:
            magic, _, header, size = _CONTAINER.unpack_from(data, at)
            if magic != _MAGIC:
                at += 8  # padding between containers
                continue
            yield list(entries(data, at + header, at + header + size))
            at += header + size


def fatbin_sections(data: bytearray) -> Iterator[tuple[int, int]]:
    """Begin and end of each section of GPU code, from the ELF header (elf(5), 64 bits)."""
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, number, names_at = struct.unpack_from("<HHH", data, 0x3A)
    sections = [_SECTION.unpack_from(data, table + index * size) for index in range(number)]
    names = sections[names_at][4]
    for name, _, _, _, offset, length in sections:
        if data[names + name : names + name + 20].startswith((b".nv_fatbin\0", b"__nv_relfatbin\0")):
            yield offset, offset + length


def entries(data: bytearray, at: int, end: int) -> Iterator[Entry]:
    """The entries between two places."""
    while at < end:
        kind, _, header, size, _, _, _, _, architecture = _ENTRY.unpack_from(data, at)
        yield Entry(kind, architecture, at + header, at + header + size)
        at += header + size


def chosen(container: list[Entry]) -> list[Entry]:
    """What the card takes out of a container."""
    if code := [entry for entry in container if entry.kind == _CODE and entry.architecture == CARD]:
        return code
    ptx = [entry for entry in container if entry.kind == _PTX and entry.architecture <= CARD]
    return [max(ptx, key=lambda entry: entry.architecture)] if ptx else []


def has_kernel(data: bytearray, entry: Entry, pattern: re.Pattern[bytes]) -> bool:
    """Whether a kernel is wanted, or there is no telling."""
    names = set(re.findall(rb"\.text\.(_Z\w+)", data[entry.start : entry.end]))
    return not names or any(pattern.search(name) for name in names)


if __name__ == "__main__":
    main()
