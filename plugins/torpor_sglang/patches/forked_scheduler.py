"""Forks the scheduler from the HTTP server on a CPU: a spawned process would import all of SGLang a second time.

A fork starts with its parent's modules. That saves their import. A snapshot also holds the pages that neither process has
written to only once (`torpor.snapshots.criu.mapped_memory`), because they are at the same addresses in both.

A fork keeps only one thread, so it is unsafe if other threads do work that the child needs. At this point of SGLang's start
there are only OpenBLAS's threads, which numpy's import starts. OpenBLAS ends them before a fork and starts them again in the
child (pthread_atfork(3)). libgomp does not: if the parent has run a parallel region of torch's, the child hangs in its first
one. So the patch counts the threads. If there are more than after numpy's import, it spawns the scheduler as usual and logs
the reason. CUDA does not work in a fork, so the patch leaves engines on a GPU alone.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torpor.launcher import Patch, after_import, end_with
from torpor_sglang.patches.cpu import is_cpu_engine

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    Run = Callable[..., object]
    Launch = Callable[..., object]

__all__ = ["PATCH", "fork_schedulers"]

_MODULE = "sglang.srt.entrypoints.engine"
_METHOD = "_launch_scheduler_processes"
_TASKS = Path("/proc/self/task")


class _Placement(Protocol):
    """The fields of SGLang's server arguments that need a spawned process."""

    dp_size: int
    numa_node: list[int] | None
    enable_memory_saver: bool


def fork_schedulers(module: ModuleType, known_threads: frozenset[str]) -> None:
    """Let `Engine` fork its schedulers if that is safe.

    0.5.6.post2 starts them in the middle of another function and is left unchanged: it hardly runs on a CPU.

    Args:
        module: SGLang's, with the class `Engine`.
        known_threads: ids of the harmless threads.
    """
    if _METHOD not in vars(module.Engine):
        return
    launch: Launch = vars(module.Engine)[_METHOD].__func__

    def launch_forked(
        engine: object,
        /,
        server_args: _Placement,
        port_args: object,
        run_scheduler_process_func: Run,
        **others: object,
    ) -> object:
        if reason := _reason_to_spawn(server_args, known_threads):
            print(f"torpor_sglang: the scheduler is not forked: {reason}", file=sys.stderr, flush=True)
            return launch(engine, server_args, port_args, run_scheduler_process_func, **others)
        usual = multiprocessing.get_start_method()
        run = functools.partial(_run_forked, os.getpid(), usual, run_scheduler_process_func)
        multiprocessing.set_start_method("fork", force=True)
        try:
            return launch(engine, server_args, port_args, run, **others)
        finally:
            multiprocessing.set_start_method(usual, force=True)

    setattr(module.Engine, _METHOD, classmethod(launch_forked))


def _reason_to_spawn(server_args: _Placement, known_threads: frozenset[str]) -> str:
    """Why a fork is not possible; empty if it is."""
    if server_args.dp_size > 1:
        return "a controller of several data-parallel schedulers starts them"
    if server_args.numa_node is not None:
        return "numactl binds it to a NUMA node, which it does to programs"
    if server_args.enable_memory_saver:
        return "the memory saver is a library that is loaded before a program"
    if more := _threads() - known_threads:
        return f"{len(more)} more threads run here than importing numpy leaves"
    return ""


def _run_forked(parent_pid: int, start_method: str, run: Run, *arguments: object) -> None:
    """Set up what a spawned process would have from the start, then run the scheduler."""
    end_with(parent_pid)
    for number in (signal.SIGTERM, signal.SIGQUIT):  # the parent's handlers would end the parent's tree
        signal.signal(number, signal.SIG_DFL)
    multiprocessing.set_start_method(start_method, force=True)
    run(*arguments)


def _threads() -> frozenset[str]:
    return frozenset(task.name for task in _TASKS.iterdir())


def _apply() -> None:
    known_threads: set[str] = set()
    after_import("numpy", lambda _: known_threads.update(_threads()))
    after_import(_MODULE, lambda module: fork_schedulers(module, frozenset(known_threads)))


PATCH = Patch(
    name="forked-scheduler",
    reason=(
        "a spawned scheduler imports all of SGLang again: two fifths of a cold start on a CPU, and 270 MB of a snapshot that a "
        "fork shares with the server"
    ),
    versions=("0.5.16", "0.5.18", "0.5.23"),
    applies=lambda: is_cpu_engine() and sys.platform == "linux",
    apply=_apply,
)
