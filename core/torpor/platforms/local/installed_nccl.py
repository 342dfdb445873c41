"""The NCCL that an engine's interpreter on this machine would load, and whether a snapshot of several GPUs can be taken with it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torpor.engine.child_process import run_child
from torpor.engine_patches import nccl_file
from torpor.engine_patches.nccl_versions import can_suspend, nccl_of_code, too_old_text
from torpor.engine_plugins.nccl_needed import nccl_cure, needs_suspend
from torpor.errors import ConfigurationError

if TYPE_CHECKING:
    from torpor.deployment import Deployment
    from torpor.recipe import Recipe

__all__ = ["InstalledNccl", "check_nccl", "installed_nccl"]

_QUERY_TIMEOUT_S = 60.0  # the library has 300 MB, and may lie on a slow disk


class InstalledNccl(NamedTuple):
    """What was found.

    Attributes:
        version: of the library; None if it is unknown.
        file: the library's path; empty if none was found.
        against: why the version is unknown; empty if it is known.
    """

    version: tuple[int, int, int] | None
    file: str = ""
    against: str = ""


def installed_nccl(python: str, recipe: Recipe) -> InstalledNccl:
    """Ask an engine's interpreter which NCCL its torch would load; nothing of the engine is imported.

    Args:
        python: the engine's interpreter.
        recipe: whose environment it gets.
    """
    program = Path(nccl_file.__file__).read_text(encoding="utf-8")
    try:
        done = run_child([python, "-c", program], timeout_s=_QUERY_TIMEOUT_S, env={**os.environ, **recipe.env})
        told = json.loads(done.stdout) if done.returncode == 0 else {}
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return InstalledNccl(None, against=f"{python} cannot be asked: {error}")
    if not isinstance(told, dict) or not isinstance(told.get("code"), int):
        against = told.get("against") if isinstance(told, dict) else None
        return InstalledNccl(None, against=str(against or f"{python} ended with code {done.returncode}"))
    return InstalledNccl(nccl_of_code(told["code"]), file=str(told.get("file", "")))


def check_nccl(deployment: Deployment, recipe: Recipe) -> None:
    """Refuse a start whose sleep would fail, because this NCCL cannot suspend its communicators.

    An NCCL that is not found here is not refused: the engine's own launcher looks at what it has loaded.

    Args:
        deployment: what is to be captured, or put to sleep.
        recipe: with the paths of this machine.

    Raises:
        ConfigurationError: the NCCL is too old.
    """
    if not needs_suspend(deployment):
        return
    found = installed_nccl(deployment.engine.engine_python, recipe)
    if found.version is not None and not can_suspend(found.version):
        raise ConfigurationError(
            f"Deployment {deployment.name!r} shares {deployment.gpu_count} GPUs, and {found.file} is too old: "
            f"{too_old_text(found.version)}. To change that, {nccl_cure(deployment, recipe)}."
        )
