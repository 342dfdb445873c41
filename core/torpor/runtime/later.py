"""What talks to a running engine: imported at first use, while the engine starts. It needs httpx (70 ms)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor._lazy import lazy_names

if TYPE_CHECKING:
    from torpor.runtime.compilations import CompileWatch, cache_folders
    from torpor.runtime.guard_client import GuardControl, connect_failure, no_answer, open_client
    from torpor.runtime.readiness import exited_error, wait_ready
    from torpor.runtime.stage_failure import explained

__all__ = [
    "CompileWatch",
    "GuardControl",
    "cache_folders",
    "connect_failure",
    "exited_error",
    "explained",
    "no_answer",
    "open_client",
    "wait_ready",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "torpor.runtime.compilations": ("CompileWatch", "cache_folders"),
        "torpor.runtime.guard_client": ("GuardControl", "connect_failure", "no_answer", "open_client"),
        "torpor.runtime.readiness": ("exited_error", "wait_ready"),
        "torpor.runtime.stage_failure": ("explained",),
    },
)
