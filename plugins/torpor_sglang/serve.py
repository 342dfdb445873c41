"""`python -m torpor_sglang.serve <engine flags>`: the one way in which SGLang is started.

Starts SGLang's own HTTP server, unchanged but for the patches of `torpor_sglang.patches`, with the guard as the outermost
layer of its application. The flags are SGLang's; its own parser reads them.

Environment:
    TORPOR_BOOT_FD        the pipe with the guard's boot document; without it nothing is started
    TORPOR_UNGUARDED=1    start without a guard all the same, for debugging
    TORPOR_PATCHES        patches to switch off: -name,-other
    TORPOR_ANY_ENGINE=1   try an SGLang version that is not supported

The module's top level runs again in every process that SGLang spawns (its scheduler, its detokenizer), so the patches
reach those as well; whatever is not in `main` must therefore be cheap and harmless to repeat. On a CPU the scheduler is a
fork and the detokenizer a thread, which have the patches of this process.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import sys
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError, TorporError
from torpor_sglang.patches import apply_patches
from torpor_sglang.patches.cpu import choose_cpu
from torpor_sglang.reserved import check_environment, check_parsed_args
from torpor_sglang.versions import ANY_ENGINE_VARIABLE, check_version, installed_version

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    from torpor.guard import BootDocument
    from torpor_sglang.patches import PatchReport

__all__ = ["main"]

UNGUARDED_VARIABLE = "TORPOR_UNGUARDED"


def main(argv: Sequence[str]) -> int:
    """Start the server and stay until it ends.

    Args:
        argv: the engine's flags.

    Returns:
        The process's exit code: 0 after a server that ended by itself, 2 for a configuration that cannot work.
    """
    try:
        boot = _take_boot_document()
        version = installed_version()
        if os.environ.get(ANY_ENGINE_VARIABLE) != "1":
            check_version(version)
        check_environment(os.environ)
        report = _prepare_process(argv)
        _end_tree_on_sigterm()
        _log(_describe(version, report, guarded=boot is not None))
        _serve(argv, version, boot)
    except TorporError as error:
        _log(str(error))
        return error.exit_code
    return 0


def _take_boot_document() -> BootDocument | None:
    """Read the boot document before any other process exists that could hold its pipe."""
    from torpor.guard import read_boot  # noqa: PLC0415 - spawned processes have no use for it

    try:
        boot = read_boot()
    except ValueError as error:
        raise ConfigurationError(f"The guard's boot document cannot be used, so nothing is started: {error}.") from None
    if boot is None and os.environ.get(UNGUARDED_VARIABLE) != "1":
        raise ConfigurationError(
            "No boot document for the guard (TORPOR_BOOT_FD is not set), so nothing is started: the engine's management "
            f"routes would be open. Torpor's Engine.start(..., guard=...) hands one over; for debugging set {UNGUARDED_VARIABLE}=1."
        )
    return boot


def _prepare_process(argv: Sequence[str]) -> PatchReport:
    """Do what every process of the engine needs before it imports anything of SGLang's."""
    choose_cpu(argv, os.environ)
    return apply_patches(os.environ)


def _serve(argv: Sequence[str], version: str, boot: BootDocument | None) -> None:
    """Run SGLang's server in this process, and leave nothing of it behind."""
    _load_engine_plugins()
    from sglang.srt.server_args import prepare_server_args  # noqa: PLC0415 - imports torch

    server_args = prepare_server_args(list(argv))
    check_parsed_args(version, server_args)

    from sglang.srt.entrypoints.http_server import launch_server  # noqa: PLC0415 - most of a cold start
    from sglang.srt.utils import kill_process_tree  # noqa: PLC0415

    try:
        if boot is not None:
            from torpor_sglang.patches.guard import guard_patch  # noqa: PLC0415 - imports the server

            guard_patch(boot).apply()
        launch_server(server_args)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


def _load_engine_plugins() -> None:
    """Load SGLang's own plugins as its own launcher does (sglang/launch_server.py of 0.5.16 and 0.5.23)."""
    if importlib.util.find_spec("sglang.srt.plugins") is not None:
        from sglang.srt.plugins import load_plugins  # noqa: PLC0415 - not in 0.5.6.post2

        load_plugins()


def _end_tree_on_sigterm() -> None:
    """End the whole tree on SIGTERM while SGLang has no handler of its own.

    That is during its start (uvicorn's handlers come with the first request's event loop) and after uvicorn's graceful
    end, which raises the signal again: without this the process would end there, before its `finally`.
    """
    import psutil  # noqa: PLC0415 - spawned processes have no use for it

    def end_tree(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        while children := psutil.Process().children(recursive=True):
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            psutil.wait_procs(children, timeout=1.0)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, end_tree)


def _describe(version: str, report: PatchReport, *, guarded: bool) -> str:
    on = [patch.name if version in patch.versions else f"{patch.name} (not tested with it)" for patch in report.on]
    not_needed = [patch.name for patch in report.not_needed]
    off = [patch.name for patch in report.off]
    parts = [f"SGLang {version}", "guarded" if guarded else "NOT GUARDED: every route is open"]
    for label, names in (("patches", on), ("not needed", not_needed), ("switched off", off)):
        parts.append(f"{label}: {', '.join(names) or 'none'}")
    return "; ".join(parts)


def _log(message: str) -> None:
    print(f"torpor_sglang: {message}", file=sys.stderr, flush=True)


if __name__ == "__mp_main__":  # a process that SGLang spawned: multiprocessing hands it the launcher's argv
    _prepare_process(sys.argv[1:])

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
