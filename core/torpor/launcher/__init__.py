"""What the launchers of engines are made of: the code that runs inside the engine's own process.

A launcher is a module of an engine's plugin (`python -m torpor_sglang.serve`, `python -m torpor_vllm.serve`), run by the
engine's interpreter: it takes the guard's boot document, applies the plugin's patches and starts the engine's own server.

    boot            the boot document, the end of the tree on SIGTERM, the line that says what was started
    versions        which version of the engine is installed, and whether it is one that was checked
    patches         named changes to the running engine, each with its reason, each to be switched off
    after_import    a change to a module of the engine's as soon as it is imported
    http_limits     limits on heads, with limited_h11 and limited_httptools, uvicorn's two parsers that keep them
    public_requests what a public request may carry: media, templates, token ids, fields
    guarded_app     the guard as the outermost layer of a Starlette application
    orphans, tqdm_lock, named_locks, process_identity, tile_permission    what every engine's processes need
    capturable      these patches as one list, for an engine of your own

The names in `__all__` are for plugins of third parties: `from torpor.launcher import apply_patches, snapshot_patches`.

Nothing but the standard library is needed here: the engine's packages are the engine's business. Where one of them is
changed, it is asked for first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

_HOME = {
    "Patch": "patches",
    "PatchReport": "patches",
    "PublicRequestRules": "public_requests",
    "RequestFields": "public_requests",
    "TilePermission": "tile_permission",
    "apply_patches": "patches",
    "check_version": "versions",
    "end_tree_on_sigterm": "boot",
    "end_with": "orphans",
    "exit_code_of": "boot",
    "has_tiles": "tile_permission",
    "install_guard": "guarded_app",
    "installed_version": "versions",
    "keep_process_identities": "process_identity",
    "limit_uvicorn": "http_limits",
    "renew_random_state": "renewal",
    "snapshot_patches": "capturable",
    "take_boot_document": "boot",
}
"""Each public name and its module; none is imported before somebody asks, as spawned processes need few of them."""

__all__ = [
    "Patch",
    "PatchReport",
    "PublicRequestRules",
    "RequestFields",
    "TilePermission",
    "apply_patches",
    "check_version",
    "end_tree_on_sigterm",
    "end_with",
    "exit_code_of",
    "has_tiles",
    "install_guard",
    "installed_version",
    "keep_process_identities",
    "limit_uvicorn",
    "renew_random_state",
    "snapshot_patches",
    "take_boot_document",
]

if TYPE_CHECKING:
    from torpor.launcher.boot import end_tree_on_sigterm, exit_code_of, take_boot_document
    from torpor.launcher.capturable import snapshot_patches
    from torpor.launcher.guarded_app import install_guard
    from torpor.launcher.http_limits import limit_uvicorn
    from torpor.launcher.orphans import end_with
    from torpor.launcher.patches import Patch, PatchReport, apply_patches
    from torpor.launcher.process_identity import keep_process_identities
    from torpor.launcher.public_requests import PublicRequestRules, RequestFields
    from torpor.launcher.renewal import renew_random_state
    from torpor.launcher.tile_permission import TilePermission, has_tiles
    from torpor.launcher.versions import check_version, installed_version


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'torpor.launcher' has no attribute {name!r}")
    import importlib  # noqa: PLC0415 - only for those who use a name

    value: object = getattr(importlib.import_module(f"torpor.launcher.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
