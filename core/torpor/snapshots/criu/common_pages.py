"""Pages that processes of one dump have in common: kept in one memory file, and mapped from there by all of them.

A fork has its parent's pages at the same addresses, until one of the two writes to them. CRIU writes them for each, and
afterwards nothing says that they were one page; so they are found again by comparing what lies at the same address.
Processes that were started anew have other addresses, and cost nothing here.
"""

from __future__ import annotations

import contextlib
import mmap
from bisect import bisect
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple

from torpor.snapshots.sandbox.pid1 import punch_hole

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["CommonPages", "Run"]

_PAGE = 4096
_LEAST = 16 * _PAGE
"""Bytes in a row: each such run costs up to two more mappings, which every restore has to make."""


class Run(NamedTuple):
    """Pages in a row.

    Attributes:
        start: address of the first one.
        end: address behind the last one.
        offset: where the first one lies in the file, bytes.
        file: CRIU's number of the file; 0 while that has none.
    """

    start: int
    end: int
    offset: int
    file: int = 0

    def part(self, start: int, end: int) -> Run:
        """The pages from one address to another."""
        return self._replace(start=start, end=end, offset=self.offset + start - self.start)


class CommonPages:
    """The memory files of a dump, as one after the other is written."""

    def __init__(self) -> None:
        self._files: list[tuple[Path, Sequence[Run]]] = []

    def taken_out(self, file: Path, runs: Sequence[Run]) -> list[Run]:
        """Take out of a new file the long runs of pages that an earlier one holds at the same addresses.

        Args:
            file: the new file. What an earlier one holds takes no room in it any more.
            runs: what its process maps of it, by address.

        Returns:
            What the process is to map instead, by address: runs of the new file and of earlier ones.
        """
        own, common = list(runs), []
        for earlier, theirs in self._files:
            with _content(file, "r+b") as (stream, mine), _content(earlier, "rb") as (_, others):
                pieces = [piece for run in own for piece in _parted(run, mine, theirs, others)]
                for part, elsewhere in pieces:
                    if elsewhere:
                        punch_hole(stream.fileno(), part.offset, part.end - part.start)
            common += [elsewhere for _, elsewhere in pieces if elsewhere]
            own = [part for part, elsewhere in pieces if not elsewhere]
        self._files.append((file, own))
        return sorted(own + common)


def _parted(run: Run, mine: mmap.mmap, theirs: Sequence[Run], others: mmap.mmap) -> Iterator[tuple[Run, Run | None]]:
    """The parts of a run, and for those that another process holds too, where in its file."""
    at = run.start
    for common in _common(run, mine, theirs, others):
        if at < common.start:
            yield run.part(at, common.start), None
        yield run.part(common.start, common.end), common
        at = common.end
    if at < run.end:
        yield run.part(at, run.end), None


def _common(run: Run, mine: mmap.mmap, theirs: Sequence[Run], others: mmap.mmap) -> Iterator[Run]:
    """The long runs of another process that hold what this one holds at the same addresses."""
    for other in theirs[max(0, bisect(theirs, (run.start,)) - 1) :]:
        if other.start >= run.end:
            return
        first, end = max(run.start, other.start), min(run.end, other.end)
        for at in range(first, end, _PAGE):
            here, there = run.offset + at - run.start, other.offset + at - other.start
            if mine[here : here + _PAGE] != others[there : there + _PAGE]:
                if at - first >= _LEAST:
                    yield other.part(first, at)
                first = at + _PAGE
        if end - first >= _LEAST:
            yield other.part(first, end)


@contextlib.contextmanager
def _content(file: Path, mode: Literal["rb", "r+b"]) -> Iterator[tuple[BinaryIO, mmap.mmap]]:
    with file.open(mode) as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as content:
        yield stream, content
