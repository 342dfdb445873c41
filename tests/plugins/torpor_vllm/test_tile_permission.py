"""The CPU's tile registers: each worker on a CPU requests them before it computes."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from torpor_vllm import tile_permission

if TYPE_CHECKING:
    import pytest


def test_a_worker_on_a_cpu_requests_the_tiles_and_no_other_process_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request belongs to the module that only workers on a CPU import."""
    asked: list[str] = []
    monkeypatch.setattr(tile_permission, "ensure_tile_permission", lambda: asked.append("asked"))
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])  # the patch adds a finder
    tile_permission.PATCH.apply()
    assert asked == []
    monkeypatch.setitem(sys.modules, "vllm.v1.worker.cpu_worker", ModuleType("cpu_worker"))
    tile_permission.PATCH.apply()
    assert asked == ["asked"]
