"""`torpor.snapshots.criu.common_pages`: finds pages that two processes of a dump share; without CRIU."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from torpor.snapshots.criu.common_pages import CommonPages, Run

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = 4096
BASE = 0x7F00_0000_0000


def written(file: Path, pages: Sequence[int]) -> Path:
    """A memory file whose pages begin with these numbers."""
    file.write_bytes(b"".join(page.to_bytes(8, "little") + b"\xff" * (PAGE - 8) for page in pages))
    return file


def run(first: int, last: int, *, offset: int, file: int) -> Run:
    """Pages by number."""
    return Run(BASE + first * PAGE, BASE + last * PAGE, offset * PAGE, file)


def content(runs: Sequence[Run], files: dict[int, Path]) -> dict[int, int]:
    """The first number of each page, by page, as a process sees it."""
    seen = {}
    for one in runs:
        data = files[one.file].read_bytes()
        for at in range(one.start, one.end, PAGE):
            offset = one.offset + at - one.start
            seen[(at - BASE) // PAGE] = int.from_bytes(data[offset : offset + 8], "little")
    return seen


def blocks(file: Path) -> int:
    """Pages that a file occupies on the disk."""
    return file.stat().st_blocks * 512 // PAGE


def test_long_runs_of_equal_pages_are_mapped_from_the_first_file(tmp_path: Path) -> None:
    """They become holes in the second file; no page of either process changes."""
    one, two = list(range(1, 101)), list(range(1, 101))
    two[30] = two[31] = 1000  # between two long runs
    two[90] = 2000  # nine pages before the end: too few for a mapping of their own
    files = {7: written(tmp_path / "memory-1.img", one), 8: written(tmp_path / "memory-2.img", [5, 5, *two])}
    common = CommonPages()
    mine = [run(0, 100, offset=0, file=7)]
    assert common.deduplicated(files[7], mine) == mine
    seen = common.deduplicated(files[8], [run(0, 100, offset=2, file=8)])
    assert seen == [
        run(0, 30, offset=0, file=7),
        run(30, 32, offset=32, file=8),
        run(32, 90, offset=32, file=7),
        run(90, 100, offset=92, file=8),
    ]
    assert content(seen, files) == dict(enumerate(two))
    assert content(mine, files) == dict(enumerate(one))
    assert (blocks(files[7]), blocks(files[8])) == (100, 14)


def test_equal_pages_at_other_addresses_stay_where_they_are(tmp_path: Path) -> None:
    """Processes started by an exec have other addresses; nothing is compared."""
    pages = list(range(1, 101))
    files = [written(tmp_path / f"memory-{number}.img", pages) for number in (1, 2)]
    common = CommonPages()
    common.deduplicated(files[0], [run(0, 100, offset=0, file=1)])
    elsewhere = [run(500, 600, offset=0, file=2)]
    assert common.deduplicated(files[1], elsewhere) == elsewhere
    assert blocks(files[1]) == 100


def test_runs_that_overlap_in_part_are_cut(tmp_path: Path) -> None:
    """Each process has its own cuts, and a third can share pages with either of the others."""
    pages = list(range(1, 201))
    third = [*pages[:150], *range(5001, 5051)]
    files = {1: written(tmp_path / "memory-1.img", pages[:100]), 2: written(tmp_path / "memory-2.img", pages)}
    files[3] = written(tmp_path / "memory-3.img", third)
    common = CommonPages()
    common.deduplicated(files[1], [run(0, 40, offset=0, file=1), run(60, 100, offset=60, file=1)])
    second = common.deduplicated(files[2], [run(0, 200, offset=0, file=2)])
    assert [(one.file, (one.end - one.start) // PAGE) for one in second] == [(1, 40), (2, 20), (1, 40), (2, 100)]
    seen = common.deduplicated(files[3], [run(0, 20, offset=0, file=3), run(20, 200, offset=20, file=3)])
    assert content(second, files) == dict(enumerate(pages))
    assert content(seen, files) == dict(enumerate(third))
    assert {one.file for one in seen} == {1, 2, 3}
    assert blocks(files[3]) == 50


@pytest.mark.parametrize("seed", range(20))
def test_no_page_ever_changes(tmp_path: Path, seed: int) -> None:
    """Whatever pages are equal and however runs are cut, each process sees what it wrote."""
    random = Random(seed)
    common, files = CommonPages(), dict[int, Path]()
    for number in range(1, 4):
        pages = [page if random.random() < 0.97 else 10_000 * number + page for page in range(300)]
        files[number] = written(tmp_path / f"memory-{number}.img", pages)
        cuts = sorted({0, 300, *(random.randrange(300) for _ in range(6))})
        runs = [run(first, last, offset=first, file=number) for first, last in pairwise(cuts)]
        kept = runs[: random.randrange(1, len(runs))]
        before = content(kept, files)
        assert content(common.deduplicated(files[number], kept), files) == before
