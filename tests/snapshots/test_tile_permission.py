"""The tile registers (AMX) across a real snapshot: what CRIU loses, the SGLang plugin's patch restores."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.snapshots.conftest import wait_for
from torpor.engine_patches.tile_permission import has_tiles
from torpor.snapshots.criu.run import dump, restore

if TYPE_CHECKING:
    from tests.snapshots.conftest import MakeSandbox
    from torpor.snapshots.criu.program import Criu

pytestmark = [
    pytest.mark.criu,
    pytest.mark.skipif(not has_tiles(), reason="this processor has no AMX"),
]

PROGRAM = Path(__file__).with_name("tile_program.py")


@pytest.mark.parametrize("patch", ["patched", "unpatched"])
@pytest.mark.ordinary_user
def test_a_restored_process_may_use_the_tiles_again_when_memory_is_resumed(
    criu: Criu, make_sandbox: MakeSandbox, tmp_path: Path, patch: str
) -> None:
    """CRIU 4.2.1 does not restore the kernel's permission: without the patch the first matrix instruction ends in SIGILL."""
    original = make_sandbox("original")
    original.spawn([sys.executable, str(PROGRAM), patch], env={"PATH": os.environ["PATH"]})
    assert wait_for(original.log_tail, 20.0) == ("released True",)
    dump(criu, original, tmp_path / "images", timeout_s=60.0)
    original.kill()
    replica = make_sandbox("replica")
    (tmp_path / "work").mkdir()
    restore(criu, replica, tmp_path / "images", work=tmp_path / "work", timeout_s=60.0)
    assert replica.run(["touch", "/dev/shm/go"], timeout_s=30.0).code == 0
    code = replica.wait(20.0)
    if patch == "patched":
        assert (code, replica.log_tail()) == (0, ("restored False", "resumed True"))
    else:
        assert (code, replica.log_tail()) == (-signal.SIGILL, ("restored False",))
