"""Requests the CPU's tile registers again when memory is resumed (`torpor.engine_patches.tile_permission` says why)."""

from __future__ import annotations

from torpor.launcher import Patch, TilePermission, has_tiles
from torpor_sglang.patches.handlers import RELEASE, RESUME, around_handler

__all__ = ["PATCH"]


def _apply() -> None:
    permission = TilePermission()
    around_handler(RELEASE, before=lambda _: permission.note())
    around_handler(RESUME, before=lambda _: permission.renew())


PATCH = Patch(
    name="tile-permission",
    reason=(
        "a restored process has lost the permission to use AMX, which torch chose at its start, so the first matrix product "
        "would end the scheduler with SIGILL"
    ),
    versions=("0.5.16", "0.5.18", "0.5.23"),
    applies=has_tiles,
    apply=_apply,
)
