"""Watches the first requests after each start of one replica, and records whether anything was compiled for them.

`torpor.runtime.compilations` counts; it is imported once a replica serves, so no restore waits for it.
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Protocol

from torpor.runtime import later
from torpor.runtime.start_limits import CONTROL_TIMEOUT_S
from torpor.telemetry.events import log

if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor.deployment import Deployment
    from torpor.engine.handle import Engine
    from torpor.recipe import Recipe
    from torpor.runtime.compilations import Compiled, CompileWatch

__all__ = ["FirstRequests"]


class _Serving(Protocol):
    """What is asked of a boot."""

    deployment: Deployment
    recipe: Recipe
    replica: str

    @property
    def running_engine(self) -> Engine:
        """The engine."""


class FirstRequests:
    """The watch of one boot; nothing for an engine that names no kernel caches, or has no guard.

    Args:
        boot: of the replica.
        note: gets what was found, once for each start.
    """

    def __init__(self, boot: _Serving, note: Callable[[Compiled], None]) -> None:
        self._boot = boot
        self._note = note
        self._watch: CompileWatch | None = None
        self._changing = threading.Lock()

    def begin(self) -> None:
        """Start to watch: the replica serves from now on."""
        boot = self._boot
        plugin, engine = boot.deployment.engine, boot.running_engine
        names = plugin.kernel_cache_env(boot.deployment)
        if engine.guard_key is None or not names:
            return
        about = {"deployment": boot.deployment.name, "replica": boot.replica}
        try:
            with self._changing:
                self._watch = later.CompileWatch(
                    folders=later.cache_folders(dict(boot.recipe.env), names),
                    patterns=plugin.compile_lines,
                    log_tail=engine.log_tail,
                    served=self._served,
                    tell=self._note,
                    about=about,
                )
        except (RuntimeError, re.error) as error:  # no more threads, or no pattern: the replica serves without a watch
            log("warning", "first_requests_not_watched", **about, error=f"{type(error).__name__}: {error}")

    def end(self) -> None:
        """Stop watching, before a sleep or the replica's end. Harmless to repeat."""
        with self._changing:
            watch, self._watch = self._watch, None
        if watch is not None:
            watch.end()

    def _served(self) -> int:
        engine, port = self._boot.running_engine, self._boot.deployment.port
        with later.open_client(engine, port=port, timeout_s=CONTROL_TIMEOUT_S) as client:
            return later.GuardControl(engine, client).answered()
