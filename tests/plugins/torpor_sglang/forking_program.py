"""Starts a scheduler like SGLang, with the patch `forked-scheduler`: `forking_program.py SERVER_ARGS`, as JSON.

The scheduler prints its state as JSON. A line on standard input ends both processes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from typing import TYPE_CHECKING

from torpor_sglang.patches.forked_scheduler import fork_schedulers

if TYPE_CHECKING:
    from collections.abc import Callable

SIGNALS = (signal.SIGTERM, signal.SIGQUIT)
state = {"forked": False}  # a spawned process imports this module again and sees this value


class Engine:
    """The part of SGLang's engine that the patch uses."""

    @classmethod
    def _launch_scheduler_processes(
        cls,
        server_args: object,  # noqa: ARG003 - SGLang's signature
        port_args: str,
        run_scheduler_process_func: Callable[[str, str], None],
        *,
        placement_group: str,
    ) -> multiprocessing.Process:
        process = multiprocessing.Process(target=run_scheduler_process_func, args=(port_args, placement_group))
        process.start()
        return process


def run(*arguments: str) -> None:
    """The scheduler: print the state and wait."""
    told = {
        "forked": state["forked"],
        "arguments": arguments,
        "method": multiprocessing.get_start_method(),
        "handlers": [getattr(signal.getsignal(number), "name", "") for number in SIGNALS],
        "pid": os.getpid(),
    }
    print(json.dumps(told), flush=True)
    time.sleep(60)


def main(options: dict[str, object]) -> None:
    """The server."""
    multiprocessing.set_start_method("spawn")
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)
    fork_schedulers(sys.modules[__name__], frozenset(os.listdir("/proc/self/task")))  # noqa: PTH208 - no files
    if options.pop("thread", False):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    state["forked"] = True
    process = Engine._launch_scheduler_processes(
        types.SimpleNamespace(**options), "ports", run, placement_group="place"
    )
    sys.stdin.readline()
    process.kill()
    process.join()
    print(f"afterwards: {multiprocessing.get_start_method()}", file=sys.stderr)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
