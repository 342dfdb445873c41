"""Blocks that glibc's malloc gave a mapping of their own, found by their headers in the memory of a process."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.snapshots.criu.common_pages import Run

__all__ = ["MallocBlocks"]

_PAGE = 4096
_FLAGS, _OWN_MAPPING = 7, 2  # the low bits of a size in a header (malloc/malloc.c: IS_MMAPPED)
_HEADER_OFFSETS = (0, 16, 48)  # of the header in the block's first page: malloc, and aligned to 32 and 64 bytes


class MallocBlocks:
    """Finds such blocks. Other memory that looks like one is treated as one, which does no harm.

    Args:
        words: content of the pages file, as words of 64 bits.
    """

    def __init__(self, words: memoryview) -> None:
        self._words = words
        self._block_end = 0  # address where the last block found ends

    def split(self, run: Run, area_end: int) -> Iterator[tuple[Run, bool]]:
        """Split a run into pieces; each with whether it belongs to such a block. Call it with ascending runs.

        Args:
            run: pages in a row.
            area_end: where the mapping ends that the run is in.
        """
        at = run.start
        while at < run.end:
            in_block = at < self._block_end
            end = min(self._block_end, run.end) if in_block else self._next_block(run, at, area_end)
            if end > at:
                yield run.part(at, end), in_block
            at = end

    def _next_block(self, run: Run, at: int, area_end: int) -> int:
        """Address of the next block's first page in the run, or the run's end."""
        page_words = _PAGE // 8
        first = (run.offset + at - run.start) // 8
        last = first + (run.end - at) // 8
        found = run.end
        for shift in _HEADER_OFFSETS:
            for page, size in enumerate(self._words[first + shift // 8 + 1 : last : page_words]):
                if size & _FLAGS != _OWN_MAPPING:
                    continue
                address, whole = at + page * _PAGE, (size & ~_FLAGS) + shift
                if address >= found:
                    break
                before = self._words[first + page * page_words + shift // 8]
                if before == shift and whole and whole % _PAGE == 0 and address + whole <= area_end:
                    found = address
                    self._block_end = address + whole
                    break
        return found
