"""Runs the detokenizer in a thread of the server on a CPU; its own process would cost 400 MB and a core's time."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Protocol

from torpor.launcher import Patch, after_import
from torpor_sglang.patches.cpu import is_cpu_engine

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    Launch = Callable[[object, object, object, object], tuple[list[object], list[str]]]

__all__ = ["PATCH", "detokenize_in_a_thread"]

_MODULE = "sglang.srt.entrypoints.engine"
_METHOD = "_launch_detokenizer_subprocesses"


class _Serving(Protocol):
    """The fields of SGLang's server arguments that this patch reads."""

    detokenizer_worker_num: int
    tokenizer_worker_num: int


class DetokenizerThread(threading.Thread):
    """A thread with the attributes of a process that SGLang's watchdog reads.

    Args:
        server_args: SGLang's.
        port_args: SGLang's: the names of the sockets.
    """

    exitcode: int | None = None
    pid = os.getpid()

    def __init__(self, server_args: object, port_args: object) -> None:
        super().__init__(name="detokenizer", daemon=True)
        self._arguments = (server_args, port_args)

    def run(self) -> None:
        """Detokenize until the process ends; a failure ends the server, as with a detokenizer process."""
        from sglang.srt.managers import detokenizer_manager  # noqa: PLC0415 - the engine's

        # The tokenizer's monitor already counts this process's CPU time, under the same metric name.
        detokenizer_manager.start_cpu_monitor_thread = lambda *_: None
        try:
            detokenizer_manager.DetokenizerManager(*self._arguments).event_loop()
        except Exception:
            print(f"The detokenizer failed: {traceback.format_exc()}", file=sys.stderr, flush=True)
            self.exitcode = 1
            os.kill(os.getpid(), signal.SIGQUIT)


def detokenize_in_a_thread(module: ModuleType) -> None:
    """Let `Engine` start a thread instead of a single detokenizer process; several detokenizers stay processes.

    0.5.6.post2 starts it in the middle of another function and is left unchanged: it hardly runs on a CPU.
    """
    if _METHOD not in vars(module.Engine):
        return
    launch: Launch = vars(module.Engine)[_METHOD].__func__

    def launch_thread(
        engine: object, server_args: _Serving, port_args: object, run_detokenizer_process_func: object
    ) -> tuple[list[object], list[str]]:
        if server_args.detokenizer_worker_num > 1 or server_args.tokenizer_worker_num > 1:
            return launch(engine, server_args, port_args, run_detokenizer_process_func)
        thread = DetokenizerThread(server_args, port_args)
        thread.start()
        return [thread], ["detokenizer"]

    setattr(module.Engine, _METHOD, classmethod(launch_thread))


PATCH = Patch(
    name="detokenizer-thread",
    reason=(
        "the detokenizer's process imports all of SGLang just for a tokenizer: 400 MB of a snapshot and a third of its restore, "
        "and it competes with the server for the same CPU"
    ),
    versions=("0.5.16", "0.5.18", "0.5.23"),
    applies=is_cpu_engine,
    apply=lambda: after_import(_MODULE, detokenize_in_a_thread),
)
