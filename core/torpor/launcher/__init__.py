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

from torpor._lazy import lazy_names

if TYPE_CHECKING:
    from torpor.engine_patches.orphans import end_with
    from torpor.engine_patches.patches import Patch, PatchReport, apply_patches
    from torpor.engine_patches.process_identity import keep_process_identities
    from torpor.engine_patches.renewal import renew_random_state
    from torpor.engine_patches.tile_permission import TilePermission, has_tiles
    from torpor.launcher.capturable import snapshot_patches
    from torpor.launcher.guarded_app import install_guard
    from torpor.launcher.http_limits import limit_uvicorn
    from torpor.launcher.public_requests import PublicRequestRules, RequestFields
    from torpor.launcher.start import end_tree_on_sigterm, exit_code_of, take_boot_document
    from torpor.launcher.versions import check_version, installed_version

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

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "torpor.engine_patches.orphans": ("end_with",),
        "torpor.engine_patches.patches": ("Patch", "PatchReport", "apply_patches"),
        "torpor.engine_patches.process_identity": ("keep_process_identities",),
        "torpor.engine_patches.renewal": ("renew_random_state",),
        "torpor.engine_patches.tile_permission": ("TilePermission", "has_tiles"),
        "torpor.launcher.capturable": ("snapshot_patches",),
        "torpor.launcher.guarded_app": ("install_guard",),
        "torpor.launcher.http_limits": ("limit_uvicorn",),
        "torpor.launcher.public_requests": ("PublicRequestRules", "RequestFields"),
        "torpor.launcher.start": ("end_tree_on_sigterm", "exit_code_of", "take_boot_document"),
        "torpor.launcher.versions": ("check_version", "installed_version"),
    },
)
