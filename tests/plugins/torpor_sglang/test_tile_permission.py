"""The CPU's tile registers: a process has to request them and loses them in a restore."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

from torpor.engine_patches import tile_permission
from torpor_sglang.patches.handlers import RELEASE, RESUME, wrap_handler

needs_tiles = pytest.mark.skipif(not tile_permission.has_tiles(), reason="this CPU has no AMX")


def in_a_process(program: str) -> str:
    """Run code in a new process, because a process cannot give the permission back."""
    code = f"from torpor.engine_patches.tile_permission import has_permission, request_permission\n{program}"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert asked.returncode == 0, asked.stderr
    return asked.stdout.strip()


def test_a_new_process_has_no_permission() -> None:
    """An exec drops the parent's permission, and a CPU without AMX never grants it."""
    assert in_a_process("print(has_permission())") == "False"


@needs_tiles
def test_a_process_gets_the_permission_on_request() -> None:
    """A second request is harmless, and forks inherit the permission."""
    program = "import os; request_permission(); request_permission(); print(has_permission()); "
    program += "pid = os.fork(); pid or os._exit(not has_permission()); print(os.waitpid(pid, 0)[1])"
    assert in_a_process(program).split() == ["True", "0"]


@pytest.mark.parametrize(("had", "asked"), [(True, 1), (False, 0)])
def test_a_resume_renews_a_permission_that_existed_at_the_release(
    monkeypatch: pytest.MonkeyPatch, *, had: bool, asked: int
) -> None:
    """It does so before the memory is back and anything is computed. Without a permission before, it requests none."""
    allowed, did = [had], list[str]()
    monkeypatch.setattr(tile_permission, "has_permission", lambda: allowed[-1])
    monkeypatch.setattr(tile_permission, "request_permission", lambda: did.append("asked"))
    handlers = ModuleType("handlers")

    class Updater:
        def release_memory_occupation(self, request: str) -> str:
            did.append(f"released {request}")
            return "asleep"

        def resume_memory_occupation(self, request: str) -> str:
            did.append(f"resumed {request}")
            return "awake"

    Updater.__module__ = "handlers"
    handlers.Updater = Updater  # type: ignore[attr-defined]
    permission = tile_permission.TilePermission()
    wrap_handler(handlers, RELEASE, before=lambda _: permission.note())
    wrap_handler(handlers, RESUME, before=lambda _: permission.renew())
    assert Updater().release_memory_occupation("all") == "asleep"
    allowed.append(False)  # the restore
    assert Updater().resume_memory_occupation("all") == "awake"
    assert did == ["released all", *["asked"] * asked, "resumed all"]
