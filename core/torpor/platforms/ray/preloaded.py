"""What the process of a replica imports, imported ahead: every Ray worker imports this module before it gets work.

The variable `RAY_preload_python_modules` of `torpor.platforms.ray.options.cluster_environment` names it. A worker that was started
ahead (`torpor.platforms.ray.next_worker`) has done it when a request comes; any other one imports the same things a moment later.
What cannot be imported here fails where it is used, with its reason.
"""

from __future__ import annotations

import contextlib
import importlib

__all__ = ["MODULES"]

MODULES = (
    "ray.serve._private.replica",
    "torpor.platforms.ray.replica",
    "torpor.platforms.local.replicas",
    "torpor.runtime.boot",
    "torpor.runtime.guard_client",
    "torpor.runtime.stage_failure",
    "torpor.snapshots.remote.finding",
    "torpor.snapshots.sandbox.side_files",
)

for _name in MODULES:
    with contextlib.suppress(Exception):
        importlib.import_module(_name)
