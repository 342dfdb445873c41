"""Ends the server when a process that it started ends with an error, for versions that do not look after them."""

from __future__ import annotations

import multiprocessing.connection
import multiprocessing.process
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

from torpor.launcher.after_import import after_import
from torpor.launcher.patches import Patch

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess
    from types import ModuleType

__all__ = ["PATCH", "watch_children"]

_MODULE = "sglang.srt.entrypoints.engine"
_OWN_WATCHDOG = "SubprocessWatchdog"
_LOOK_S = 1.0


def watch_children(module: ModuleType, end: Callable[[BaseProcess], None] | None = None) -> None:
    """Watch every process that this one starts from now on, unless this version's engine does so itself.

    Args:
        module: SGLang's, with the class `Engine`.
        end: told the first process that ended with an error; by default the server is ended with its whole tree.
    """
    if hasattr(module, _OWN_WATCHDOG):
        return
    started: list[BaseProcess] = []
    start = multiprocessing.process.BaseProcess.start
    owner = os.getpid()

    def start_watched(self: BaseProcess) -> None:
        start(self)
        if os.getpid() != owner:
            return
        started.append(self)
        if len(started) == 1:
            threading.Thread(target=_watch, args=(started, end or _end_server), daemon=True, name="children").start()

    multiprocessing.process.BaseProcess.start = start_watched  # type: ignore[method-assign]


def _watch(started: list[BaseProcess], end: Callable[[BaseProcess], None]) -> None:
    while True:
        watched = {process.sentinel: process for process in list(started) if not _ended_well(process)}
        if not watched:
            threading.Event().wait(_LOOK_S)
            continue
        for sentinel in multiprocessing.connection.wait(list(watched), timeout=_LOOK_S):
            process = watched[sentinel]  # type: ignore[index]  # the sentinels given are integers
            process.join(_LOOK_S)
            if process.exitcode:
                end(process)
                return


def _ended_well(process: BaseProcess) -> bool:
    return process.exitcode == 0


def _end_server(process: BaseProcess) -> None:
    print(
        f"torpor_sglang: the engine's process {process.name} (pid {process.pid}) ended with code {process.exitcode}; "
        "the server ends with it",
        file=sys.stderr,
        flush=True,
    )
    os.kill(os.getpid(), signal.SIGQUIT)  # SGLang's handler ends the whole tree


PATCH = Patch(
    name="watched-children",
    reason=(
        "SGLang 0.5.6.post2 does not notice that its scheduler was killed: the server stays and answers nothing; later "
        "versions have a watchdog of their own, which is left to it"
    ),
    versions=("0.5.6.post2", "0.5.16", "0.5.23"),
    applies=lambda: True,
    apply=lambda: after_import(_MODULE, watch_children),
)
