"""What an engine's launcher is built of: code that runs inside the engine's own process.

A launcher is a module of an engine's plugin, run by the engine's interpreter (`python -m torpor_sglang.serve`). It reads the
guard's boot document, applies the plugin's patches and starts the engine's own server. The names of `__all__` are public:

    start            run_launcher does it all; take_boot_document, end_tree_on_sigterm and exit_code_of are its parts
    versions         EngineVersions: which version is installed, and which ones were checked
    guard            install_guard puts the guard before a Starlette application; limit_uvicorn and the patch http_limits
                     limit what a client may send before the guard sees a request
    patches          Patch, apply_patches and PatchReport: named changes to the engine, each with a reason and a switch;
                     after_import changes one of the engine's modules as soon as it is imported
    captures         snapshot_patches: orphans, process_identity, tqdm_lock and named_locks, what a capture of any engine needs;
                     end_with and keep_process_identities do it for one process without a patch
    several GPUs     NcclCommunicators suspends and resumes what ranks share of each other's GPU memory; together fails on all
                     ranks what failed on one, and rank_name names this one; loaded_nccl, nccl_too_old and LEAST_NCCL tell
                     whether the engine's NCCL can
    weights          model_sums, tensor_sums and word_sums: checksums of weights where they are, for before a sleep and after a wake
    replicas         renew_random_state, TilePermission, ensure_tile_permission and has_tiles: what a restored process renews
    public requests  RequestFields, PublicRequestRules, PublicRequest, RawRequest and ANY_DOMAIN: what a public request may carry

Only the standard library is needed here. A package of the engine's is changed only if the engine has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor._lazy import lazy_names

if TYPE_CHECKING:
    from torpor.engine_patches.after_import import after_import
    from torpor.engine_patches.named_locks import named_locks
    from torpor.engine_patches.nccl import NcclCommunicators
    from torpor.engine_patches.nccl_library import loaded_nccl
    from torpor.engine_patches.nccl_versions import LEAST_NCCL, nccl_too_old
    from torpor.engine_patches.orphans import end_with, orphans
    from torpor.engine_patches.patches import Patch, PatchReport, apply_patches
    from torpor.engine_patches.process_identity import keep_process_identities, process_identity
    from torpor.engine_patches.published_files import published_files
    from torpor.engine_patches.rank_exchange import rank_name, together
    from torpor.engine_patches.renewal import renew_random_state
    from torpor.engine_patches.tile_permission import TilePermission, ensure_tile_permission, has_tiles
    from torpor.engine_patches.tqdm_lock import tqdm_lock
    from torpor.engine_patches.weight_sums import model_sums, tensor_sums, word_sums
    from torpor.launcher.capturable import snapshot_patches
    from torpor.launcher.guarded_app import install_guard
    from torpor.launcher.http_limits import http_limits, limit_uvicorn
    from torpor.launcher.public_requests import ANY_DOMAIN, PublicRequest, PublicRequestRules, RawRequest, RequestFields
    from torpor.launcher.start import end_tree_on_sigterm, exit_code_of, run_launcher, take_boot_document
    from torpor.launcher.versions import EngineVersions

__all__ = [
    "ANY_DOMAIN",
    "LEAST_NCCL",
    "EngineVersions",
    "NcclCommunicators",
    "Patch",
    "PatchReport",
    "PublicRequest",
    "PublicRequestRules",
    "RawRequest",
    "RequestFields",
    "TilePermission",
    "after_import",
    "apply_patches",
    "end_tree_on_sigterm",
    "end_with",
    "ensure_tile_permission",
    "exit_code_of",
    "has_tiles",
    "http_limits",
    "install_guard",
    "keep_process_identities",
    "limit_uvicorn",
    "loaded_nccl",
    "model_sums",
    "named_locks",
    "nccl_too_old",
    "orphans",
    "process_identity",
    "published_files",
    "rank_name",
    "renew_random_state",
    "run_launcher",
    "snapshot_patches",
    "take_boot_document",
    "tensor_sums",
    "together",
    "tqdm_lock",
    "word_sums",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "torpor.engine_patches.after_import": ("after_import",),
        "torpor.engine_patches.named_locks": ("named_locks",),
        "torpor.engine_patches.nccl": ("NcclCommunicators",),
        "torpor.engine_patches.nccl_library": ("loaded_nccl",),
        "torpor.engine_patches.nccl_versions": (
            "LEAST_NCCL",
            "nccl_too_old",
        ),
        "torpor.engine_patches.orphans": (
            "end_with",
            "orphans",
        ),
        "torpor.engine_patches.patches": (
            "Patch",
            "PatchReport",
            "apply_patches",
        ),
        "torpor.engine_patches.process_identity": (
            "keep_process_identities",
            "process_identity",
        ),
        "torpor.engine_patches.published_files": ("published_files",),
        "torpor.engine_patches.rank_exchange": (
            "rank_name",
            "together",
        ),
        "torpor.engine_patches.renewal": ("renew_random_state",),
        "torpor.engine_patches.tile_permission": (
            "TilePermission",
            "ensure_tile_permission",
            "has_tiles",
        ),
        "torpor.engine_patches.tqdm_lock": ("tqdm_lock",),
        "torpor.engine_patches.weight_sums": (
            "model_sums",
            "tensor_sums",
            "word_sums",
        ),
        "torpor.launcher.capturable": ("snapshot_patches",),
        "torpor.launcher.guarded_app": ("install_guard",),
        "torpor.launcher.http_limits": (
            "http_limits",
            "limit_uvicorn",
        ),
        "torpor.launcher.public_requests": (
            "ANY_DOMAIN",
            "PublicRequest",
            "PublicRequestRules",
            "RawRequest",
            "RequestFields",
        ),
        "torpor.launcher.start": (
            "end_tree_on_sigterm",
            "exit_code_of",
            "run_launcher",
            "take_boot_document",
        ),
        "torpor.launcher.versions": ("EngineVersions",),
    },
)
