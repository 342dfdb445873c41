"""What every launcher does around its engine's own server: boot document, versions, patches, SIGTERM, the line in the log."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError, TorporError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import FrameType

    from torpor.engine_patches.patches import PatchReport
    from torpor.guard import BootDocument
    from torpor.launcher.versions import EngineVersions

__all__ = ["UNGUARDED_VARIABLE", "end_tree_on_sigterm", "exit_code_of", "run_launcher", "take_boot_document"]

UNGUARDED_VARIABLE = "TORPOR_UNGUARDED"
"""With the value 1 a launcher starts its engine without the guard, for a look at the bare engine; every route is open then."""


def run_launcher(
    argv: Sequence[str],
    *,
    name: str,
    versions: EngineVersions,
    check_environment: Callable[[Mapping[str, str]], None],
    prepare: Callable[[Sequence[str]], PatchReport],
    serve: Callable[[Sequence[str], str, BootDocument | None], None],
) -> int:
    """Start an engine's own server behind the guard, and stay until it ends.

    Args:
        argv: the engine's command line.
        name: the launcher's package, for lines of the log.
        versions: the engine's versions.
        check_environment: refuses variables that would open a way round the guard.
        prepare: applies the patches to this process, before it imports anything of the engine's.
        serve: runs the server; gets the command line, the engine's version and the boot document.

    Returns:
        The process's exit code: 0 after a server that ended by itself, 2 for a configuration that cannot work.
    """

    def start() -> None:
        boot = take_boot_document()
        version = versions.installed()
        versions.check(version)
        check_environment(os.environ)
        report = prepare(argv)
        end_tree_on_sigterm()
        guard = "guarded" if boot else "NOT GUARDED: every route is open"
        _log(name, f"{versions.engine} {version}; {guard}; {report.describe(version)}")
        serve(argv, version, boot)

    return exit_code_of(start, launcher=name)


def take_boot_document() -> BootDocument | None:
    """Read the boot document. Call it before any other process exists that could inherit its pipe.

    Returns:
        The document; None if TORPOR_UNGUARDED=1 asks for a start without a guard.

    Raises:
        ConfigurationError: the document is missing or damaged.
    """
    from torpor.guard import read_boot  # noqa: PLC0415 - guard: 16 ms of each spawned process

    try:
        boot = read_boot()
    except ValueError as error:
        raise ConfigurationError(f"The guard's boot document cannot be used, so nothing is started: {error}.") from None
    if boot is None and os.environ.get(UNGUARDED_VARIABLE) != "1":
        raise ConfigurationError(
            "No boot document for the guard (TORPOR_BOOT_FD is not set), so nothing is started: the engine's management "
            f"routes would be open. Torpor's start_engine(..., guard=...) hands one over; for debugging set {UNGUARDED_VARIABLE}=1."
        )
    return boot


def end_tree_on_sigterm() -> None:
    """End the whole process tree on SIGTERM while the engine has no handler of its own.

    That is during its start, before uvicorn installs its handlers, and after uvicorn's graceful end, which raises the signal
    again: without this handler the process would end there, before its `finally`.
    """
    import psutil  # noqa: PLC0415 - psutil: 12 ms of each spawned process

    def end_tree(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        while children := psutil.Process().children(recursive=True):
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            psutil.wait_procs(children, timeout=1.0)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, end_tree)


def exit_code_of(start: Callable[[], None], *, launcher: str) -> int:
    """Run a launcher's start; an error of Torpor's becomes one line of the log, and its exit code is returned."""
    try:
        start()
    except TorporError as error:
        _log(launcher, str(error))
        return error.exit_code
    return 0


def _log(launcher: str, message: str) -> None:
    """Write one line into the engine's log."""
    print(f"{launcher}: {message}", file=sys.stderr, flush=True)
