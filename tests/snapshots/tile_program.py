"""A stand-in for a scheduler that uses AMX's tile registers: run with `patched` or `unpatched`.

It uses the registers and releases memory. When /dev/shm/go exists, it resumes memory and uses the registers again, through
handlers with or without the patch.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import time
from pathlib import Path

from torpor.engine_patches.tile_permission import TilePermission, has_permission, request_permission
from torpor_sglang.patches.handlers import RELEASE, RESUME, wrap_handler

CODE = bytes.fromhex("c4e2784907 c4e27b49c0 c4e27849c0 c3")  # ldtilecfg [rdi]; tilezero tmm0; tilerelease; ret
ONE_TILE = bytes([1, *[0] * 15, 64, *[0] * 31, 1, *[0] * 15])  # palette 1; tile 0 has 1 row of 64 bytes


class Scheduler:
    """The two handlers of SGLang's scheduler."""

    def release_memory_occupation(self, request: object) -> str:
        return "released"

    def resume_memory_occupation(self, request: object) -> str:
        use_tiles()
        return "resumed"


def use_tiles() -> None:
    """Touch a matrix register; SIGILL without the kernel's permission."""
    function(ctypes.create_string_buffer(ONE_TILE, 64))


area = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
area.write(CODE)
function = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(ctypes.addressof(ctypes.c_char.from_buffer(area)))

if sys.argv[1] == "patched":
    module = sys.modules[__name__]
    permission = TilePermission()
    wrap_handler(module, RELEASE, before=lambda _: permission.note())
    wrap_handler(module, RESUME, before=lambda _: permission.renew())
request_permission()
scheduler = Scheduler()
use_tiles()
print(scheduler.release_memory_occupation(None), has_permission(), flush=True)
while not Path("/dev/shm/go").exists():
    time.sleep(0.01)
print("restored", has_permission(), flush=True)
print(scheduler.resume_memory_occupation(None), has_permission(), flush=True)
