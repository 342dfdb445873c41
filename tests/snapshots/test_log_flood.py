"""The log of an engine in a sandbox uses a bounded amount of memory: it lies on a tmpfs, as the snapshot includes it."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import pytest

from tests.snapshots.conftest import wait_for
from torpor.snapshots.criu.run import dump, restore

if TYPE_CHECKING:
    from pathlib import Path

    from tests.snapshots.conftest import MakeSandbox
    from torpor.snapshots.criu.program import Criu
    from torpor.snapshots.sandbox.sandbox import Sandbox

FLOOD = """
import os, sys, time
for number in range(1000):
    sys.stdout.write(f"line {number} ".ljust(100_000, "x") + "\\n")
print("the flood is over", flush=True)
number = 0
while True:
    print("tick", number, flush=True)
    number += 1
    time.sleep(0.1)
"""
"""100 MB, and then a line every tenth of a second."""


def last_tick(sandbox: Sandbox) -> int:
    """The number of the last complete line."""
    found = re.findall(r"^tick (\d+)$", "\n".join(sandbox.log_tail()[-3:]), re.MULTILINE)
    return int(found[-1]) if found else -1


def flood(sandbox: Sandbox) -> None:
    """Print much, and wait until its memory is free again."""
    sandbox.spawn([sys.executable, "-c", FLOOD], env={"PATH": "/usr/bin:/bin"})
    assert wait_for(lambda: last_tick(sandbox) >= 0, 60.0)
    assert wait_for(lambda: sandbox.side_file_bytes() < 3_000_000, 20.0), sandbox.side_file_bytes()


@pytest.mark.slow
def test_only_the_end_of_a_log_flood_is_kept(sandbox: Sandbox) -> None:
    """Later lines still arrive in order, and the last ones can be read."""
    flood(sandbox)
    tail = sandbox.log_tail()
    assert sum(map(len, tail)) < 500_000
    assert not any("\0" in line for line in tail)
    seen = last_tick(sandbox)
    assert wait_for(lambda: last_tick(sandbox) >= seen + 3)
    ticks = [int(line.split()[1]) for line in sandbox.log_tail() if line.startswith("tick ")]
    assert ticks == list(range(ticks[0], ticks[0] + len(ticks)))


@pytest.mark.criu
@pytest.mark.ordinary_user
def test_a_tree_that_printed_much_can_be_captured_and_restored(
    make_sandbox: MakeSandbox, criu: Criu, tmp_path: Path
) -> None:
    """The replica begins a log of its own and continues where the original was."""
    original = make_sandbox()
    flood(original)
    dump(criu, original, tmp_path / "images", timeout_s=60.0)
    at = last_tick(original)
    assert sum(file.stat().st_size for file in (tmp_path / "images").iterdir()) < 50_000_000
    copy = make_sandbox("copy")
    restore(criu, copy, tmp_path / "images", work=tmp_path, timeout_s=60.0)
    assert wait_for(lambda: last_tick(copy) > at)
    assert not any(line.startswith("line ") for line in copy.log_tail())
