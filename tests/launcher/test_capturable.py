"""The public names of `torpor.launcher`, and that its patches make a process that can be captured."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import torpor.launcher
from torpor.launcher import Patch, apply_patches, snapshot_patches

LAUNCHER = [
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
"""Golden: third parties write their launchers with these."""


def test_the_public_names_are_these_and_each_is_there() -> None:
    """Each name is the object of the module that defines it."""
    assert torpor.launcher.__all__ == LAUNCHER
    assert dir(torpor.launcher) == sorted(LAUNCHER)
    for _ in range(2):
        for name in LAUNCHER:
            found = getattr(torpor.launcher, name)
            if name in ("ANY_DOMAIN", "LEAST_NCCL"):  # a text and a tuple, which have no module of their own
                continue
            assert getattr(importlib.import_module(found.__module__), name) is found
            assert found.__doc__
    with pytest.raises(AttributeError, match=r"'torpor\.launcher' has no attribute 'nothing'"):
        _ = torpor.launcher.nothing


def test_importing_the_package_imports_none_of_its_modules() -> None:
    """Processes that an engine spawns need few of them."""
    code = "import sys, torpor.launcher; print([name for name in sys.modules if name.startswith('torpor.launcher.')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_one_list_has_what_every_engine_needs() -> None:
    """Each patch has a reason and can be switched off."""
    patches = snapshot_patches(("1.0",))
    assert [patch.name for patch in patches] == [
        "orphans",
        "process-identity",
        "tqdm-lock",
        "named-locks",
        "published-files",
    ]
    assert all(isinstance(patch, Patch) and patch.reason and patch.versions == ("1.0",) for patch in patches)
    names = ",".join(f"-{patch.name}" for patch in patches)
    report = apply_patches({"TORPOR_PATCHES": names}, patches)
    assert (report.on, len(report.off)) == ((), 5)


@pytest.mark.fault("an engine forgets a lock that its processes share", area="kernel objects", outcome="held")
@pytest.mark.parametrize("patched", [True, False])
def test_a_lock_that_was_handed_on_keeps_its_name(*, patched: bool) -> None:
    """Without the patches Python unlinks the semaphore while others map it, and a rootless capture is refused."""
    code = """
import gc, multiprocessing, os, sys
from torpor.launcher import apply_patches, snapshot_patches
apply_patches({} if sys.argv[1] == "True" else {"TORPOR_PATCHES": "-named-locks"}, snapshot_patches())
lock = multiprocessing.get_context("spawn").Lock()
file = "/dev/shm/sem." + lock._semlock.name.strip("/")
print(os.path.exists(file))
del lock
gc.collect()
print(os.path.exists(file))
"""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(patched)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["True", str(patched)]
