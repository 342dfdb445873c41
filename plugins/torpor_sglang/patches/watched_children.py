"""Ends the server at once when a process that it started ends with an error."""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import multiprocessing.process
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

from torpor.launcher import Patch, after_import

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess
    from types import ModuleType

__all__ = ["PATCH", "watch_children"]

_MODULE = "sglang.srt.entrypoints.engine"
_LOOK_S = 1.0
_STOPPED = (-signal.SIGTERM, -signal.SIGINT)
"""Exit codes of a process that was stopped: the server is then being stopped, too."""


def watch_children(_module: ModuleType, end: Callable[[BaseProcess], None] | None = None) -> None:
    """Watch every process that this one starts from now on.

    Args:
        _module: SGLang's engine module.
        end: called with the first process that ended with an error; by default it ends the server with its whole tree.
    """
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
            if process.exitcode and process.exitcode not in _STOPPED:
                end(process)
                return


def _ended_well(process: BaseProcess) -> bool:
    return process.exitcode == 0 or process.exitcode in _STOPPED


def _end_server(process: BaseProcess) -> None:
    import psutil  # noqa: PLC0415 - only where the engine has it, which has imported it

    print(
        f"torpor_sglang: the engine's process {process.name} (pid {process.pid}) ended with code {process.exitcode}; "
        "the server ends with it",
        file=sys.stderr,
        flush=True,
    )
    # Not through SGLang's SIGQUIT handler: it sleeps for 5 s before it dumps the schedulers' state.
    for member in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            member.kill()
    os.kill(os.getpid(), signal.SIGKILL)


PATCH = Patch(
    name="watched-children",
    reason=(
        "SGLang 0.5.6.post2 does not notice that its scheduler was killed: the server keeps running but answers no request. "
        "Later versions check once a second, then sleep for 5 s before they end, while requests hang"
    ),
    versions=("0.5.6.post2", "0.5.16", "0.5.18", "0.5.23"),
    applies=lambda: True,
    apply=lambda: after_import(_MODULE, watch_children),
)
