"""Finds pages that processes of one dump share, keeps them in one memory file, and has all of them map that file.

A fork shares its parent's pages at the same addresses until one of the two writes to them. CRIU writes each page once per
process, and its images do not record the sharing. So this module compares the content at equal addresses. Processes that were
started by an exec have other addresses and cost nothing here.
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
"""Shortest run to share, in bytes: each costs up to two more mappings, which every restore has to make."""


class Run(NamedTuple):
    """Pages in a row.

    Attributes:
        start: address of the first one.
        end: address behind the last one.
        offset: position of the first one in the file, bytes.
        file: CRIU's id of the file; 0 before it has one.
    """

    start: int
    end: int
    offset: int
    file: int = 0

    def part(self, start: int, end: int) -> Run:
        """The pages from one address to another."""
        return self._replace(start=start, end=end, offset=self.offset + start - self.start)


class CommonPages:
    """The memory files of a dump; pass each one to `deduplicated` once it is written."""

    def __init__(self) -> None:
        self._files: list[tuple[Path, Sequence[Run]]] = []

    def deduplicated(self, file: Path, runs: Sequence[Run]) -> list[Run]:
        """Replace long runs of a new file by equal runs that an earlier file holds at the same addresses.

        Args:
            file: the new file; the replaced runs become holes in it.
            runs: what its process maps from it, by address.

        Returns:
            What the process has to map instead, by address: runs of the new file and of earlier files.
        """
        own, common = list(runs), []
        for earlier, theirs in self._files:
            with _content(file, "r+b") as (stream, mine), _content(earlier, "rb") as (_, others):
                pieces = [piece for run in own for piece in _split(run, mine, theirs, others)]
                for part, elsewhere in pieces:
                    if elsewhere:
                        punch_hole(stream.fileno(), part.offset, part.end - part.start)
            common += [elsewhere for _, elsewhere in pieces if elsewhere]
            own = [part for part, elsewhere in pieces if not elsewhere]
        self._files.append((file, own))
        return sorted(own + common)


def _split(run: Run, mine: mmap.mmap, theirs: Sequence[Run], others: mmap.mmap) -> Iterator[tuple[Run, Run | None]]:
    """Split a run; each part comes with the equal run of another process, or None."""
    at = run.start
    for common in _common(run, mine, theirs, others):
        if at < common.start:
            yield run.part(at, common.start), None
        yield run.part(common.start, common.end), common
        at = common.end
    if at < run.end:
        yield run.part(at, run.end), None


def _common(run: Run, mine: mmap.mmap, theirs: Sequence[Run], others: mmap.mmap) -> Iterator[Run]:
    """The long runs of another process that are equal to this one at the same addresses."""
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
