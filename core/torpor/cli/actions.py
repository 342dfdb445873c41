"""What each command runs. A function's module is imported when it is called, so that `torpor --help` imports none of them."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from torpor._lazy import lazy_names

if TYPE_CHECKING:
    from torpor.cli.bench import run_bench
    from torpor.cli.boots import run_boots
    from torpor.cli.catalog import run_list, run_prune
    from torpor.cli.compare import run_compare
    from torpor.cli.control import run_control
    from torpor.cli.create import run_create
    from torpor.cli.doctor import run_doctor
    from torpor.cli.key import show_new_key
    from torpor.cli.logs import run_logs
    from torpor.cli.new import run_new
    from torpor.cli.plan import show_plan
    from torpor.cli.plugins import list_plugins
    from torpor.cli.prewarm import run_prewarm
    from torpor.cli.probe import Probe, run_probe
    from torpor.cli.ray import run_ray_down, run_ray_status, run_ray_up
    from torpor.cli.ray_manifest import run_ray_manifest
    from torpor.cli.ray_plan import run_ray_plan
    from torpor.cli.remote_restore import run_restored
    from torpor.cli.removal import run_gc, run_rm
    from torpor.cli.report import run_report
    from torpor.cli.restore import run_restore
    from torpor.cli.serve import run_serve
    from torpor.cli.setup import run_setup
    from torpor.cli.snapshot import run_inspect, run_weights
    from torpor.cli.sources import source_of
    from torpor.cli.status import run_status
    from torpor.cli.store import run_ls, run_new_identity, run_new_signing_key, run_pull, run_push
    from torpor.cli.up import run_up

__all__ = [
    "Probe",
    "list_plugins",
    "run_bench",
    "run_boots",
    "run_compare",
    "run_control",
    "run_create",
    "run_doctor",
    "run_gc",
    "run_inspect",
    "run_list",
    "run_logs",
    "run_ls",
    "run_new",
    "run_new_identity",
    "run_new_signing_key",
    "run_prewarm",
    "run_probe",
    "run_prune",
    "run_pull",
    "run_push",
    "run_ray_down",
    "run_ray_manifest",
    "run_ray_plan",
    "run_ray_status",
    "run_ray_up",
    "run_report",
    "run_restore",
    "run_restored",
    "run_rm",
    "run_serve",
    "run_setup",
    "run_status",
    "run_up",
    "run_weights",
    "show_new_key",
    "show_plan",
    "source_of",
]

_load, __dir__ = lazy_names(
    __name__,
    {
        "torpor.cli.bench": ("run_bench",),
        "torpor.cli.boots": ("run_boots",),
        "torpor.cli.catalog": ("run_list", "run_prune"),
        "torpor.cli.compare": ("run_compare",),
        "torpor.cli.control": ("run_control",),
        "torpor.cli.create": ("run_create",),
        "torpor.cli.doctor": ("run_doctor",),
        "torpor.cli.key": ("show_new_key",),
        "torpor.cli.logs": ("run_logs",),
        "torpor.cli.new": ("run_new",),
        "torpor.cli.plan": ("show_plan",),
        "torpor.cli.plugins": ("list_plugins",),
        "torpor.cli.prewarm": ("run_prewarm",),
        "torpor.cli.ray": ("run_ray_down", "run_ray_status", "run_ray_up"),
        "torpor.cli.ray_manifest": ("run_ray_manifest",),
        "torpor.cli.ray_plan": ("run_ray_plan",),
        "torpor.cli.probe": ("Probe", "run_probe"),
        "torpor.cli.report": ("run_report",),
        "torpor.cli.remote_restore": ("run_restored",),
        "torpor.cli.restore": ("run_restore",),
        "torpor.cli.serve": ("run_serve",),
        "torpor.cli.setup": ("run_setup",),
        "torpor.cli.removal": ("run_gc", "run_rm"),
        "torpor.cli.snapshot": ("run_inspect", "run_weights"),
        "torpor.cli.sources": ("source_of",),
        "torpor.cli.status": ("run_status",),
        "torpor.cli.store": ("run_ls", "run_new_identity", "run_new_signing_key", "run_pull", "run_push"),
        "torpor.cli.up": ("run_up",),
    },
)


def __getattr__(name: str) -> object:
    """Import what a command runs. The garbage collector waits: its search is 10% of the imports' CPU time, and finds nothing."""
    gc.disable()
    try:
        return _load(name)
    finally:
        gc.enable()
